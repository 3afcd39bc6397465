//! The two halves of a dataset.

use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumString, VariantNames};

use crate::names;

/// Training or validation, named as in shard names and on the command line.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    AsRefStr,
    Display,
    EnumString,
    VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = Split::unknown)]
pub enum Split {
    Train,
    Val,
}

impl Split {
    pub const BOTH: [Split; 2] = [Split::Train, Split::Val];

    fn unknown(name: &str) -> String {
        names::unknown::<Split>("split", name)
    }
}
