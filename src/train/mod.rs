//! Training and evaluation: what turns a network and a dataset into a checkpoint.
//!
//! A run is fixed by its [`Recipe`] and the data; everything else ([`RunOptions`]) may differ from run to run
//! and from resume to resume without a byte of the checkpoint changing.
//!
//! [`train`] is the loop ([`run`]) around an [`engine`]; what comes before the first step is in `session`, what
//! follows a step in `after_step`, what is told on the way in [`events`], what stays in [`checkpoint`], [`log`] and
//! [`recipe_file`].

pub mod checkpoint;
pub mod device;
pub mod error;
mod evaluation;
pub mod loading;
pub mod memory;
pub mod program;
pub mod recipe;
pub mod recipe_file;
pub mod report;
pub mod team;
mod trainer;

pub use error::TrainError;
pub use evaluation::{evaluate, evaluator};
pub use memory::{MemoryPlan, memory_plan};
pub use recipe::{DataChoice, DeviceChoice, Optimizer, Recipe, RecipeError, RunOptions};
pub use report::events::{EvaluationRecord, Header, Outcome, Reporter, StepRecord};
pub use report::{curves, events, log, profile};
pub use trainer::run::train;
pub use trainer::session::{check, saved_recipe};
pub use trainer::{engine, not_finite, run, schedule};
