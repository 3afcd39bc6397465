//! Errors that end a run. Each message is one line and says what to do.

use std::path::PathBuf;

use indicatif::HumanBytes;

use super::checkpoint::{CheckpointError, DirectoryError};
use super::device::DeviceError;
use super::memory::MemoryError;
use super::program::quoted;
use super::recipe_file::RecipeFileError;
use super::recipe_limits::RecipeError;
use super::report::log::LogError;
use super::report::rows::decimals;
use super::trainer::schedule::NoSteps;
use crate::data::DataError;
use crate::model::ModelError;
use crate::model::formats::WeightsError;
use crate::ops::OpsError;
use crate::parallel::{GroupError, Stopped};

#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Schedule(#[from] NoSteps),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Ops(#[from] OpsError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    RecipeFile(#[from] RecipeFileError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "cannot resume {}: {}; leave these flags out to go on{}, or start another run from its weights with them: \
        --init-from {} --out ANOTHER instead of --resume",
        checkpoint.display(),
        differences.join("; "),
        more.map_or(String::new(), |epochs| format!(" (--extend {epochs} in place of --epochs goes on to more epochs)")),
        quoted(checkpoint)
    )]
    OtherRecipe {
        checkpoint: PathBuf,
        differences: Vec<String>,
        /// The epochs that were asked for, if they are more than the checkpoint's.
        more: Option<f64>,
    },
    #[error("{}: {problem}; the run was trained on the images there: if they have been moved, --data DIR says where \
        they are", dir.display())]
    DataMoved { dir: PathBuf, problem: String },
    #[error(
        "cannot resume {}: it was trained on other data (fingerprint {theirs}, this data's is {ours}); give the \
        run's own --data",
        checkpoint.display()
    )]
    OtherData { checkpoint: PathBuf, theirs: String, ours: String },
    #[error(
        "step {step}: the {what} (first not finite: {tensor}); nothing was saved since step {saved}: start again \
        from {} with a lower --lr (--init-from {} --out ANOTHER)",
        checkpoint.display(),
        checkpoint.display()
    )]
    NotFinite { step: u64, what: String, tensor: String, saved: u64, checkpoint: PathBuf },
    #[error("the run has diverged: its last validation loss is {}; start again with a lower --lr or a longer \
        --warmup-epochs{}", decimals(*loss), best.map_or(String::new(), |step| format!("; best.bin has the weights of step {step}")))]
    Diverged {
        loss: f64,
        /// The step of the best checkpoint.
        best: Option<u64>,
    },
    #[error("--batch-size {batch} needs {} of memory, {} are available; take a smaller one", HumanBytes(*need),
        HumanBytes(*have))]
    EvaluationMemory { batch: usize, need: u64, have: u64 },
    #[error("step {step}: the data ended early")]
    DataEnded { step: u64 },
    #[error("the evaluation saw {seen} images, but the split has {expected}")]
    Count { seen: u64, expected: u64 },
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The first error of all ranks. `told` means that the rank itself prints it.
    #[error("{stopped}{}", stopped.remedy())]
    Rank { stopped: Stopped, told: bool },
}
