//! Training and evaluation: what turns a network and a dataset into a checkpoint.
//!
//! A run is fixed by its [`Recipe`] and the data; everything else ([`RunOptions`]) may differ from run to run
//! and from resume to resume without a byte of the checkpoint changing.
//!
//! [`train`] is the loop ([`run`]) around an [`engine`]; what comes before the first step is in `session`, what
//! follows a step in `after_step`, what is told on the way in [`events`], what stays in [`checkpoint`], [`log`] and
//! [`recipe_file`].

mod after_step;
pub mod checkpoint;
pub mod curves;
pub mod device;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod evaluator;
pub mod events;
pub mod loading;
pub mod log;
pub mod memory;
pub mod not_finite;
pub mod profile;
pub mod program;
pub mod recipe;
pub mod recipe_file;
pub mod report;
pub mod run;
pub mod schedule;
mod session;
pub mod team;

pub use error::TrainError;
pub use events::{EvaluationRecord, Header, Outcome, Reporter, StepRecord};
pub use memory::{MemoryPlan, memory_plan};
pub use recipe::{DataChoice, DeviceChoice, Optimizer, Recipe, RecipeError, RunOptions};
pub use run::train;
pub use session::{check, saved_recipe};
