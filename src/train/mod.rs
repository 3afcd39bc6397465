//! Training and evaluation: what turns a network and a dataset into a checkpoint.
//!
//! A run is fixed by its [`Recipe`] and the data; everything else ([`RunOptions`]) may differ from run to run
//! and from resume to resume without a byte of the checkpoint changing.

pub mod events;
pub mod recipe;

pub use events::{EvaluationRecord, Header, Outcome, Reporter, StepRecord};
pub use recipe::{DataChoice, DeviceChoice, Optimizer, Recipe, RecipeError, RunOptions};
