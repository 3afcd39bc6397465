//! Options of a run that do not change its result: its data and directory, the device, how often it saves.
//!
//! The names of the fields are those of the flags. A file or a command line sets a field under its name; see
//! [`RunOptions`]. Some options are kept in `recipe.toml`, so that a resumed run needs no flags; see
//! [`RecipeFile`](super::recipe_file::RecipeFile).

use std::env;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::data::{DataError, Source};
use crate::model::formats::weights_file::Average;
use crate::names;
use crate::ops::cuda::Precision;
use crate::parallel::Ranks;

/// Where the images come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", from = "String")]
pub enum DataChoice {
    /// A directory that `effnet-pack` made.
    Dir(PathBuf),
    /// Generated images.
    Synthetic,
    /// The dataset inside the program.
    Demo,
}

/// `--data synthetic` has as many classes and images as ImageNet, so that epochs and steps are those of a real run.
const SYNTHETIC_CLASSES: usize = 1000;
const SYNTHETIC_TRAIN: usize = 1_281_167;
const SYNTHETIC_VAL: usize = 50_000;

impl DataChoice {
    /// The data of a command that names none: the directory in `$EFFNET_DATA`, otherwise `data`.
    pub fn from_environment() -> DataChoice {
        let dir = env::var_os("EFFNET_DATA").filter(|value| !value.is_empty());
        DataChoice::Dir(dir.map_or_else(|| "data".into(), PathBuf::from))
    }

    /// Opens the images. Synthetic images have the resolution of the network.
    ///
    /// # Errors
    /// [`DataError`] for a directory without a dataset, and for the demo: its images must be packed into a directory
    /// first.
    pub fn open(&self, resolution: usize) -> Result<Source, DataError> {
        match self {
            DataChoice::Dir(dir) => Source::open(dir),
            DataChoice::Synthetic => {
                Source::synthetic(SYNTHETIC_CLASSES, SYNTHETIC_TRAIN, SYNTHETIC_VAL, resolution)
            }
            DataChoice::Demo => Err(DataError::Invalid("the demo's images are packed by --demo".into())),
        }
    }
}

impl fmt::Display for DataChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataChoice::Dir(dir) => write!(f, "{}", dir.display()),
            DataChoice::Synthetic => f.write_str("synthetic"),
            DataChoice::Demo => f.write_str("demo"),
        }
    }
}

/// `synthetic`, or a directory; a directory of that name is `./synthetic`. The demo has no text: `--demo` packs its
/// images into a directory.
impl From<String> for DataChoice {
    fn from(text: String) -> DataChoice {
        match text.as_str() {
            "synthetic" => DataChoice::Synthetic,
            _ => DataChoice::Dir(text.into()),
        }
    }
}

impl From<DataChoice> for String {
    fn from(choice: DataChoice) -> String {
        choice.to_string()
    }
}

/// The device to compute on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = DeviceChoice::unknown)]
pub enum DeviceChoice {
    /// A GPU if there is one, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
}

impl DeviceChoice {
    fn unknown(name: &str) -> String {
        names::unknown::<DeviceChoice>("device", name)
    }
}

/// Whether a GPU computes expanded tensors again in place of storing them. It does so in the first stages, in fp16 and bf16;
/// the result is the same bits.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = RecomputeChoice::unknown)]
pub enum RecomputeChoice {
    /// Where the card is faster so.
    #[default]
    Auto,
    /// Always: it takes less memory.
    On,
    Off,
}

impl RecomputeChoice {
    fn is_auto(&self) -> bool {
        *self == RecomputeChoice::Auto
    }

    fn unknown(name: &str) -> String {
        names::unknown::<RecomputeChoice>("recompute", name)
    }
}

/// See the module's description. Fields that a file may set are read from a table by serde; the others belong to one
/// call.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RunOptions {
    pub data: DataChoice,
    pub device: DeviceChoice,
    /// Storage type of activations; none means fp16 on a GPU, fp32 on the CPU. A checkpoint does not depend on it.
    pub precision: Option<Precision>,
    #[serde(skip_serializing_if = "RecomputeChoice::is_auto")]
    pub recompute: RecomputeChoice,
    /// Compute threads; 0 means one for each core.
    pub threads: usize,
    /// Threads that prepare images; 0 means as many as suit the device and the machine.
    pub loader_threads: usize,
    /// Steps between checkpoints; 0 means only after evaluations and at the end.
    pub checkpoint_every: u64,
    /// Numbered checkpoints to keep, in addition to the latest and the best.
    pub keep: usize,
    /// Whether the run ends with a page, `report.html`.
    pub report: bool,
    /// Stops after this many steps in all; the schedule stays that of the whole run.
    pub max_steps: Option<u64>,
    /// Weights to start from. [`Recipe::init_from`](super::recipe::Recipe::init_from) identifies their content.
    pub init_from: Option<PathBuf>,
    /// Which copy, where the file has a moving average beside the weights.
    #[serde(skip_serializing_if = "Average::is_raw")]
    pub init_weights: Average,
    /// Takes them also if some of the model's tensors are missing in the file.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub init_partial: bool,
    /// Where images that come unpacked are packed; none means beside the run directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pack_dir: Option<PathBuf>,
    /// Writes the log also as `log.csv`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_csv: bool,
    /// Writes event files for TensorBoard.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
    /// The run directory.
    #[serde(skip)]
    pub out: PathBuf,
    /// Lets a GPU divide the batch into micro-batches that fit its memory. The result is then part of the run's recipe.
    #[serde(skip)]
    pub auto_micro_batch: bool,
    /// Measures the time of each pass over this many steps.
    #[serde(skip)]
    pub profile: Option<u64>,
    #[serde(skip)]
    pub resume: bool,
    /// With `resume`: the run goes on to so many epochs; see [`extension`](super::extension).
    #[serde(skip)]
    pub extend: Option<f64>,
    #[serde(skip)]
    pub force: bool,
    /// Whether other processes train too, and how they find each other.
    #[serde(skip)]
    pub ranks: Ranks,
    /// The flags that start as many ranks again, for the command that resumes the run.
    #[serde(skip)]
    pub started_with: Option<String>,
}

impl RunOptions {
    /// The defaults, for a run in `out`.
    pub fn new(data: DataChoice, out: impl Into<PathBuf>) -> RunOptions {
        RunOptions {
            data,
            out: out.into(),
            device: DeviceChoice::Auto,
            precision: None,
            recompute: RecomputeChoice::Auto,
            threads: 0,
            loader_threads: 0,
            checkpoint_every: 0,
            keep: 0,
            report: true,
            max_steps: None,
            init_from: None,
            init_weights: Average::Raw,
            init_partial: false,
            pack_dir: None,
            log_csv: false,
            tensorboard: false,
            auto_micro_batch: false,
            profile: None,
            resume: false,
            extend: None,
            force: false,
            ranks: Ranks::One,
            started_with: None,
        }
    }
}

impl Default for RunOptions {
    fn default() -> RunOptions {
        RunOptions::new(DataChoice::from_environment(), "runs")
    }
}
