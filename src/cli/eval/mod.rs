//! `effnet-eval`: its flags, and what it does.

mod classify;
mod compare;
mod evaluate;
mod export;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Parser, ValueEnum, value_parser};

use super::UsageError;
use crate::data::Split;
use crate::ops::cuda::Precision;
use crate::train::checkpoint;
use crate::train::device::{self, Selected, Storage};
use crate::train::{DeviceChoice, TrainError};

/// The most threads: more would only exhaust memory.
const MOST: u64 = 1024;

/// Evaluate a checkpoint, classify images with it, or export its weights.
///
/// `effnet-eval runs/b0/checkpoint.bin` evaluates the validation images of the run's own data and prints the same
/// result as training. With images after the checkpoint, it prints the five most probable classes of each.
#[derive(Parser, Clone, Debug)]
#[command(name = "effnet-eval", version, max_term_width = 110)]
#[command(group(ArgGroup::new("written").args(["export", "report", "compare"])))]
pub struct EvalFlags {
    /// checkpoint.bin, best.bin or a numbered checkpoint; or a run's folder, whose best.bin is taken
    pub checkpoint: PathBuf,
    /// Image files to classify: JPEG, PNG, WebP, GIF, BMP or TIFF
    pub images: Vec<PathBuf>,
    /// Directory made by effnet-pack; or images as effnet-pack takes them, which are packed once, beside the run; or `synthetic` [default: the run's own, from recipe.toml beside the checkpoint; otherwise $EFFNET_DATA; otherwise `data`]
    #[arg(long, value_name = "DIR|synthetic", conflicts_with = "images")]
    pub data: Option<String>,
    /// The images to evaluate: train, val, or test, if the set has test images
    #[arg(long, value_name = "SPLIT", default_value = "val", value_parser = Split::from_str, conflicts_with = "images")]
    pub split: Split,
    /// Images of a pass [default: the run's micro-batch, which gives the result of training to the last digit]
    #[arg(long, value_name = "IMAGES", value_parser = value_parser!(u64).range(1..=1 << 20), conflicts_with = "images")]
    pub batch_size: Option<u64>,
    /// auto, cpu or cuda
    #[arg(long, default_value = "auto", value_parser = DeviceChoice::from_str)]
    pub device: DeviceChoice,
    /// How a GPU stores activations: fp16, bf16 or fp32 [default: fp16]
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_str)]
    pub precision: Option<Precision>,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..=MOST))]
    pub threads: Option<u64>,
    /// Threads that prepare images [default: 2 on the CPU; on a GPU all cores but one]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..=MOST))]
    pub loader_threads: Option<u64>,
    /// Weights for images and --export: raw, or ema, their moving average
    #[arg(long, value_name = "KIND", default_value = "raw")]
    pub weights: Kind,
    /// Write the plain weights under timm's names and exit
    #[arg(long, value_name = "OUT.safetensors", conflicts_with_all = ["images", "data", "batch_size"])]
    pub export: Option<PathBuf>,
    /// Write a page about the run and this checkpoint, and evaluate for it [default: report.html beside the checkpoint; report-SPLIT.html for another --split]
    #[arg(long, value_name = "OUT.html", num_args = 0..=1, conflicts_with_all = ["images", "export"])]
    pub report: Option<Option<PathBuf>>,
    /// Write a page that shows several runs side by side: `effnet-eval --compare runs/a runs/b OUT.html`
    #[arg(long, conflicts_with_all = ["export", "report", "data", "batch_size"])]
    pub compare: bool,
    /// Let --export replace a file, and --report or --compare one that is no report
    #[arg(long, requires = "written")]
    pub force: bool,
    /// Print JSON: one object, or one a line for images
    #[arg(long)]
    pub json: bool,
}

/// A set of weights in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Raw,
    Ema,
}

/// Errors of the program; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("{}: it keeps no moving average of the weights (it was trained without --ema)", .0.display())]
    NoAverage(PathBuf),
    #[error("{}: its classes ({theirs}) are not this data's ({ours}); give the data that it was trained on",
        checkpoint.display())]
    Classes { checkpoint: PathBuf, theirs: usize, ours: usize },
    #[error("{data} is not the data that {} was trained on (its fingerprint differs); --data {data} evaluates on \
        it nevertheless", checkpoint.display())]
    OtherData { checkpoint: PathBuf, data: String },
    #[error(
        "{0}: the set has no test images; a source with train/, val/ and test/ gives some: pack it again with \
        `effnet-pack SOURCE OUT`, then give --data OUT"
    )]
    NoTest(String),
    #[error("{} is a checkpoint, which an export would replace; give --export another name", .0.display())]
    OntoCheckpoint(PathBuf),
    #[error("{} is a folder; --export needs the name of a file", .0.display())]
    ExportFolder(PathBuf),
    #[error("{0}")]
    Usage(#[from] UsageError),
    #[error("{} is there and is no report; --force replaces it", .0.display())]
    OntoOther(PathBuf),
    #[error("{} is a checkpoint, which the report would replace; give it another name", .0.display())]
    PageOntoCheckpoint(PathBuf),
    #[error("{} is a folder; --report needs the name of a file", .0.display())]
    ReportFolder(PathBuf),
    #[error("{failed} of {images} images could not be read")]
    Images { failed: usize, images: usize },
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl EvalFlags {
    /// Does what the flags say; writes results to `out` and warnings to `err`.
    ///
    /// # Errors
    /// [`EvalError`].
    pub fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), EvalError> {
        if self.compare {
            return self.compare(out);
        }
        let checkpoint = checkpoint::of(&self.checkpoint).map_err(TrainError::from)?;
        if let (true, Some(name)) = (checkpoint != self.checkpoint, checkpoint.file_name()) {
            writeln!(err, "{}: a folder; its {} is taken", self.checkpoint.display(), name.display())?;
        }
        EvalFlags { checkpoint, ..self.clone() }.run_on_file(out, err)
    }

    fn run_on_file(&self, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), EvalError> {
        let read = checkpoint::read(&self.checkpoint).map_err(TrainError::from)?;
        if self.weights == Kind::Ema && read.state.ema.is_empty() {
            return Err(EvalError::NoAverage(self.checkpoint.clone()));
        }
        match &self.export {
            Some(file) => self.export(&read, file, out),
            None if self.images.is_empty() => self.evaluate(&read, out, err),
            None => self.classify(&read, out, err),
        }
    }

    fn selected(&self) -> Result<Selected, EvalError> {
        let storage = Storage { precision: self.precision, ..Storage::default() };
        let selected = device::select(self.device, self.threads.unwrap_or(0) as usize, storage);
        Ok(selected.map_err(TrainError::from)?)
    }
}
