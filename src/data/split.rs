//! The parts of a dataset: training and validation, which every set has, and test, which some have.

use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumString, VariantNames};

use crate::names;

/// Training, validation or test, named as in shard names and on the command line.
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
    /// Looked at once a run is chosen: neither training nor a choice by validation has seen it.
    Test,
}

impl Split {
    /// What every set has.
    pub const BOTH: [Split; 2] = [Split::Train, Split::Val];
    pub const ALL: [Split; 3] = [Split::Train, Split::Val, Split::Test];

    fn unknown(name: &str) -> String {
        names::unknown::<Split>("split", name)
    }
}
