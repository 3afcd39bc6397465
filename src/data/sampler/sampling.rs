//! What a recipe says about the order of the samples.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::names;

/// Which samples make an epoch, and in which order. Neither field is written where it has its default, because
/// checkpoints from before lack them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sampling {
    #[serde(default, skip_serializing_if = "Shuffle::is_full")]
    pub shuffle: Shuffle,
    /// Every class is drawn equally often, however many samples it has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub balance: bool,
}

impl Sampling {
    /// Each sample once an epoch, in any order.
    pub const PLAIN: Sampling = Sampling { shuffle: Shuffle::Full, balance: false };
}

/// How far a sample may move from its place in the set.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case", parse_err_ty = String, parse_err_fn = Shuffle::unknown)]
pub enum Shuffle {
    /// Every order of an epoch is equally likely.
    #[default]
    Full,
    /// Blocks of neighbours come in any order, and are mixed in a buffer: for sets larger than memory.
    Blocks,
}

impl Shuffle {
    fn unknown(name: &str) -> String {
        names::unknown::<Shuffle>("kind of shuffle", name)
    }

    pub fn is_full(&self) -> bool {
        *self == Shuffle::Full
    }
}
