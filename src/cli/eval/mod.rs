//! `effnet-eval`: its flags, and what it does.

mod classify;
mod compare;
mod evaluate;
mod explain;
mod export;
mod images;
mod predictions;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgGroup, Parser, value_parser};

use super::UsageError;
use crate::data::Split;
use crate::files::FileError;
use crate::model::formats::convention::Convention;
use crate::model::formats::naming::Naming;
use crate::model::formats::weights_file::{Average, WeightsFile};
use crate::names::shown_path;
use crate::ops::cuda::Precision;
use crate::train::checkpoint::{self, Checkpoint, CheckpointError, Metadata};
use crate::train::device::{self, Selected, Storage};
use crate::train::{DeviceChoice, TrainError, foreign};

/// The most threads: more would only exhaust memory.
const MOST: u64 = 1024;

/// Evaluate a checkpoint, classify images with it, or export its weights.
///
/// `effnet-eval runs/b0/checkpoint.bin` evaluates the validation images of the run's own data and prints the same
/// result as training. With images or folders of images after the checkpoint, it prints the most probable classes of each.
#[derive(Parser, Clone, Debug)]
#[command(name = "effnet-eval", version, max_term_width = 110)]
#[command(group(ArgGroup::new("written").args(["export", "report", "compare"])))]
pub struct EvalFlags {
    /// checkpoint.bin, best.bin or a numbered checkpoint; a run's folder, whose best.bin is taken; or weights of timm, torchvision, lukemelas or Keras (.safetensors, .pth)
    pub checkpoint: PathBuf,
    /// Image files to classify (JPEG, PNG, WebP, GIF, BMP or TIFF), and folders with such files in them
    pub images: Vec<PathBuf>,
    /// Directory made by effnet-pack; or images as effnet-pack takes them, which are packed once, beside the run; or `synthetic` [default: the run's own, from recipe.toml beside the checkpoint; otherwise $EFFNET_DATA; otherwise `data`]
    #[arg(long, value_name = "DIR|synthetic", conflicts_with = "images")]
    pub data: Option<String>,
    /// The images to evaluate: train, val, or test, if the set has test images
    #[arg(long, value_name = "SPLIT", default_value = "val", value_parser = Split::from_str, conflicts_with = "images")]
    pub split: Split,
    /// Images of a pass [default: the run's micro-batch, which gives the result of training to the last digit; to classify images 32 at most]
    #[arg(long, value_name = "IMAGES", value_parser = value_parser!(u64).range(1..=1 << 20))]
    pub batch_size: Option<u64>,
    /// auto, cpu or cuda
    #[arg(long, default_value = "auto", value_parser = DeviceChoice::from_str)]
    pub device: DeviceChoice,
    /// How activations are stored: fp16 (a GPU only), bf16 or fp32 [default: fp16 on a GPU, fp32 on the CPU]
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_str)]
    pub precision: Option<Precision>,
    /// Compute threads [default: all cores]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..=MOST))]
    pub threads: Option<u64>,
    /// Threads that prepare images [default: 2 on the CPU; on a GPU all cores but one]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..=MOST))]
    pub loader_threads: Option<u64>,
    /// Weights for images and --export: raw, or ema, their moving average
    #[arg(long, value_name = "KIND", default_value = "raw", value_parser = Average::from_str)]
    pub weights: Average,
    /// Write the network for other programs, and a model card beside it, and exit. By its ending: .safetensors, plain weights for timm and others; .onnx, weights and operators in one file
    #[arg(long, value_name = "OUT.safetensors|OUT.onnx", conflicts_with_all = ["images", "data", "batch_size"])]
    pub export: Option<PathBuf>,
    /// Whose names the tensors of --export have: timm, torchvision or lukemelas [default: timm]
    #[arg(long, value_name = "WHOSE", requires = "export", value_parser = Naming::from_str)]
    pub names: Option<Naming>,
    /// The ONNX file takes bytes [N, side, side, 3] and normalises them itself
    #[arg(long, requires = "export")]
    pub bytes_in: bool,
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
    /// Print CSV, a line for each image: image, class_1, probability_1, class_2 and so on
    #[arg(long, requires = "images", conflicts_with = "json")]
    pub csv: bool,
    /// Write the classes of images into this file, which is replaced when all of them are known. Without --json and --csv its ending says the form: .csv, .jsonl, or else text
    #[arg(long, value_name = "FILE", requires = "images")]
    pub out: Option<PathBuf>,
    /// Classes of each image, the most probable ones [default: 5]
    #[arg(long, value_name = "COUNT", value_parser = value_parser!(u64).range(1..), requires = "images")]
    pub topk: Option<u64>,
    /// Draw what speaks for the most probable class of an image: the image, and beside it the image under its class activation map. For several images or a folder, a folder of such pictures
    #[arg(long, value_name = "OUT.png|DIR", requires = "images")]
    pub explain: Option<PathBuf>,
    /// Explain this class in place of the most probable one
    #[arg(long, value_name = "NAME", requires = "explain")]
    pub explain_class: Option<String>,
}

/// Errors of the program; each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error("{}: it keeps no moving average of the weights (it was trained without --ema)", .0.display())]
    NoAverage(PathBuf),
    #[error("{}: its classes ({theirs}) are not this data's ({ours}), or have other names or another order; give the data that it was trained on",
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
    #[error("{}: --export writes OUT.safetensors or OUT.onnx, as the name's ending says", .0.display())]
    ExportEnding(PathBuf),
    #[error("{}: --bytes-in is for OUT.onnx; a file of weights has no input", .0.display())]
    BytesIn(PathBuf),
    #[error("{}: --names is for OUT.safetensors; ONNX has names of its own", .0.display())]
    NamesInOnnx(PathBuf),
    #[error("--names keras: Keras's weights are read, not written; give timm, torchvision or lukemelas")]
    KerasNames,
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
    #[error("{}: no image in this folder and its folders", shown_path(.0))]
    NoImages(PathBuf),
    #[error("{}: {problem}", shown_path(file))]
    NoPlace { file: PathBuf, problem: &'static str },
    #[error("--explain-class {name}: the checkpoint has no such class; it has {classes}: {some}")]
    NoClass { name: String, classes: usize, some: String },
    #[error(
        "{} and {} would have one picture, {}; explain them in two calls",
        shown_path(one),
        shown_path(two),
        shown_path(picture)
    )]
    OnePicture { picture: PathBuf, one: PathBuf, two: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
    /// Ctrl-C or SIGTERM.
    #[error("stopped after {done} of {images} images{}",
        out.as_ref().map_or(String::new(), |out| format!("; {} is not written", out.display())))]
    Stopped { done: usize, images: usize, out: Option<PathBuf> },
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
        let read = match checkpoint::read(&self.checkpoint) {
            // Not one of this program: weights that another has written.
            Err(CheckpointError::Foreign { .. }) => self.foreign(err)?,
            other => other.map_err(TrainError::from)?,
        };
        if self.weights == Average::Ema && read.state.ema.is_empty() {
            return Err(EvalError::NoAverage(self.checkpoint.clone()));
        }
        match &self.export {
            Some(file) => self.export(&read, file, out),
            None if self.images.is_empty() => self.evaluate(&read, out, err),
            None => self.classify(&read, out, err),
        }
    }

    fn foreign(&self, err: &mut dyn Write) -> Result<Checkpoint, EvalError> {
        let file = WeightsFile::read(&self.checkpoint).map_err(TrainError::from)?;
        let read = foreign::checkpoint(&file).map_err(TrainError::from)?;
        let whose = Convention::of(&file, file.copy(Average::Raw).map_err(TrainError::from)?).whose;
        let Metadata { model, padding, resolution, crop, classes, recipe, .. } = &read.metadata;
        writeln!(
            err,
            "{}: weights ({whose}): {model}, {} classes, --padding {padding}, --bn-eps {:e}, --normalise {}; images are {crop} to \
             {resolution}",
            self.checkpoint.display(),
            classes.len(),
            recipe.bn_eps,
            recipe.normalise
        )?;
        Ok(read)
    }

    fn selected(&self) -> Result<Selected, EvalError> {
        let storage = Storage { precision: self.precision, ..Storage::default() };
        let selected = device::select(self.device, self.threads.unwrap_or(0) as usize, storage);
        Ok(selected.map_err(TrainError::from)?)
    }
}
