//! Training and evaluation: from a network and a dataset to a checkpoint.
//!
//! A [`Recipe`] and the data determine the result of a run. All other [`RunOptions`] may differ between runs, and
//! between a run and its resumption, without a change of one byte of the checkpoint.
//!
//! | module | |
//! |---|---|
//! | [`recipe`] ([`optimizer`], [`schedule_kind`], [`sampling`], [`class_weights`], [`freeze`]), [`options`], [`recipe_file`] | what to train, how, and both as a file |
//! | [`fit`] | the recipe of a set of images, where nobody said otherwise |
//! | [`extension`] | `--extend`: a run goes on to more epochs |
//! | `trainer` | the loop: [`run`], [`engine`], [`schedule`] |
//! | `evaluation` | accuracy and loss: [`evaluate`], [`evaluator`], [`details`]; files of images: [`classify`], [`heat_map`] |
//! | [`checkpoint`] | the state of a run as a file, and the run directory |
//! | [`report`] | what a run reports: [`events`] and their writers |
//! | [`device`], [`memory`] | the hardware, and what fits into its memory |
//! | [`team`] | the ranks of a run |

mod augmentation;
pub mod checkpoint;
pub mod class_weights;
pub mod device;
mod division;
pub mod error;
mod evaluation;
pub mod extension;
pub mod fit;
pub mod foreign;
pub mod freeze;
pub mod loading;
pub mod memory;
mod mixing;
pub mod optimizer;
pub mod options;
pub mod program;
mod progressive;
pub mod recipe;
pub mod recipe_file;
mod recipe_limits;
pub mod report;
pub mod sampling;
pub mod schedule_kind;
pub mod team;
mod trainer;

pub use class_weights::ClassWeights;
pub use error::TrainError;
pub use evaluation::{classify, details, evaluate, evaluator, heat_map, whole};
pub use freeze::Freeze;
pub use memory::{MemoryPlan, memory_plan};
pub use optimizer::{Decayed, Optimizer};
pub use options::{DataChoice, DeviceChoice, RecomputeChoice, RunOptions};
pub use progressive::Stage;
pub use recipe::Recipe;
pub use recipe_limits::RecipeError;
pub use report::events::{EvaluationRecord, Header, Outcome, Reporter, StepRecord};
pub use report::{curves, events, log, page, profile};
pub use schedule_kind::ScheduleKind;
pub use trainer::run::{train, train_selected};
pub use trainer::session::{check, same_recipe, saved_recipe};
pub use trainer::{engine, not_finite, run, schedule};
