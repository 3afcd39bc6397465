//! `effnet-eval`: its flags, and what it does.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum, value_parser};
use serde_json::{Value, json};

use super::unpacked::{is_source, packed, store};
use crate::data::{DataError, Source, Split};
use crate::model::ParamTable;
use crate::model::formats::{self, TrainedModel, safetensors};
use crate::names::shown;
use crate::ops::cuda::Precision;
use crate::ops::{Ops, Weights};
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::device::{self, Hardware, Selected, Storage, With};
use crate::train::evaluate::{Evaluation, rate};
use crate::train::evaluator::Evaluator;
use crate::train::memory::prepared_bytes;
use crate::train::recipe_file::RecipeFile;
use crate::train::report::rows::FEW_CLASSES;
use crate::train::{DataChoice, DeviceChoice, TrainError, loading};

/// The most threads: more would only exhaust memory.
const MOST: u64 = 1024;
/// The number of classes printed for an image.
const TOP: usize = 5;

/// Evaluate a checkpoint, classify images with it, or export its weights.
///
/// `effnet-eval runs/b0/checkpoint.bin` evaluates the validation images of the run's own data and prints the same
/// result as training. With images after the checkpoint, it prints the five most probable classes of each.
#[derive(Parser, Clone, Debug)]
#[command(name = "effnet-eval", version, max_term_width = 110)]
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
    /// Let --export replace a file
    #[arg(long, requires = "export")]
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

    fn export(&self, read: &Checkpoint, file: &Path, out: &mut dyn Write) -> Result<(), EvalError> {
        if file.is_dir() {
            return Err(EvalError::ExportFolder(file.to_owned()));
        }
        // Under any of its names: through a link too, the optimiser's state would be lost.
        if checkpoint::is_checkpoint(file) {
            return Err(EvalError::OntoCheckpoint(file.to_owned()));
        }
        let values = match self.weights {
            Kind::Raw => &read.state.parameters,
            Kind::Ema => &read.state.ema,
        };
        let model = TrainedModel { architecture: &read.architecture, values, steps: read.metadata.step };
        formats::export(file, &model, self.force).map_err(TrainError::from)?;
        let tensors = safetensors::listing(&ParamTable::new(&read.architecture)).len();
        if self.json {
            writeln!(out, "{}", json!({ "file": file.display().to_string(), "tensors": tensors }))?;
        } else {
            writeln!(out, "{}: {tensors} tensors under timm's names", file.display())?;
        }
        Ok(())
    }

    fn evaluate(&self, read: &Checkpoint, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), EvalError> {
        let selected = self.selected()?;
        let (choice, source) = self.source(read, err)?;
        if source.fingerprint() != read.metadata.data {
            if self.data.is_none() {
                let checkpoint = self.checkpoint.clone();
                return Err(EvalError::OtherData { checkpoint, data: choice.to_string() });
            }
            writeln!(err, "warning: {choice} is not the data that this checkpoint was trained on")?;
        }
        let batch = self.batch_size.map_or(read.metadata.recipe.micro_batch, |images| images as usize);
        let since = Instant::now();
        let figures = selected.with(EvaluateSplit {
            read,
            batch,
            source: &source,
            split: self.split,
            threads: self.loader_threads.unwrap_or(0) as usize,
        })?;
        let rate = rate((source.samples(self.split) * figures.len()) as u64, since);
        if self.json {
            return Ok(writeln!(out, "{}", figures_json(&figures, rate))?);
        }
        let metadata = &read.metadata;
        let place = format!("step {} of {}, epoch {:.2}", metadata.step, metadata.steps, metadata.epoch);
        writeln!(out, "{}: {}, {place}", self.checkpoint.display(), metadata.model)?;
        writeln!(
            out,
            "{choice}, {} images of {}, {rate:.0} images/s",
            source.samples(self.split),
            self.split
        )?;
        for (name, e) in ["weights", "average"].iter().zip(&figures) {
            let top1 = 100.0 * e.top1;
            let top5 = match source.classes() {
                ..=FEW_CLASSES => String::new(),
                _ => format!("top-5 {:6.2} %   ", 100.0 * e.top5),
            };
            writeln!(out, "  {name:<8} top-1 {top1:6.2} %   {top5}loss {:.4}", e.loss)?;
        }
        Ok(())
    }

    /// The images to evaluate, and the name of the data.
    fn source(&self, read: &Checkpoint, err: &mut dyn Write) -> Result<(DataChoice, Source), EvalError> {
        let beside = self.checkpoint.with_file_name("recipe.toml");
        let mut choice = match &self.data {
            Some(text) => DataChoice::from(text.clone()),
            None if beside.exists() => RecipeFile::read(&beside).map_err(TrainError::from)?.options.data,
            None => DataChoice::from_environment(),
        };
        let source = match choice.open(read.metadata.resolution) {
            Err(DataError::NoDataset { dir, .. }) if self.data.is_some() && is_source(&dir) => {
                let run = self.checkpoint.parent().unwrap_or(Path::new(""));
                let place = packed(&dir, &store(run, None), &Arc::default(), &mut |line| {
                    // Nobody may be there to read it.
                    let _ = writeln!(err, "{line}");
                });
                choice = DataChoice::Dir(place.map_err(TrainError::from)?);
                choice.open(read.metadata.resolution)
            }
            Err(DataError::NoDataset { dir, problem }) if self.data.is_none() && beside.exists() => {
                return Err(TrainError::DataMoved { dir, problem }.into());
            }
            other => other,
        };
        let source = source.map_err(TrainError::from)?;
        if source.samples(self.split) == 0 {
            return Err(EvalError::NoTest(choice.to_string()));
        }
        let theirs = &read.metadata.classes;
        if *theirs != source.class_names() {
            return Err(EvalError::Classes {
                checkpoint: self.checkpoint.clone(),
                theirs: theirs.len(),
                ours: source.classes(),
            });
        }
        Ok((choice, source))
    }

    fn selected(&self) -> Result<Selected, EvalError> {
        let storage = Storage { precision: self.precision, ..Storage::default() };
        let selected = device::select(self.device, self.threads.unwrap_or(0) as usize, storage);
        Ok(selected.map_err(TrainError::from)?)
    }

    fn classify(&self, read: &Checkpoint, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), EvalError> {
        self.selected()?.with(Classify { flags: self, read, out, err })
    }

    fn classify_with<O: Ops + Send>(
        &self,
        mut evaluator: Evaluator<O>,
        out: &mut dyn Write,
        err: &mut dyn Write,
    ) -> Result<(), EvalError> {
        let weights = match self.weights {
            Kind::Raw => Weights::Raw,
            Kind::Ema => Weights::Ema,
        };
        let mut failed = 0;
        for image in &self.images {
            // After a broken image the others are still classified.
            let ranked = match evaluator.classify(image, weights, TOP) {
                Ok(ranked) => ranked,
                Err(error) => {
                    failed += 1;
                    if image.is_dir() {
                        writeln!(err, "error: {}: a folder; give image files", image.display())?;
                        continue;
                    }
                    writeln!(err, "error: {error}")?;
                    continue;
                }
            };
            let name = image.display().to_string();
            if self.json {
                let classes: Vec<Value> =
                    ranked.iter().map(|(class, p)| json!({ "class": class, "probability": p })).collect();
                writeln!(out, "{}", json!({ "image": name, "classes": classes }))?;
                continue;
            }
            writeln!(out, "{}", shown(&name))?;
            for (class, p) in ranked {
                writeln!(out, "  {:6.2} %  {}", 100.0 * p, shown(&class))?;
            }
        }
        match failed {
            0 => Ok(()),
            failed => Err(EvalError::Images { failed, images: self.images.len() }),
        }
    }
}

/// Evaluates a split on a device of either kind.
struct EvaluateSplit<'a> {
    read: &'a Checkpoint,
    batch: usize,
    source: &'a Source,
    split: Split,
    /// Threads that prepare images; 0 for the default.
    threads: usize,
}

impl With for EvaluateSplit<'_> {
    type Output = Result<Vec<Evaluation>, EvalError>;

    fn with<H: Hardware>(self, hardware: H) -> Self::Output {
        let bytes = self.batch as u64 * prepared_bytes(&hardware.device(), self.read.metadata.resolution);
        let threads = loading::threads(self.threads, &hardware, 1, bytes);
        let mut evaluator = Evaluator::new(self.read, self.batch, hardware)?;
        Ok(evaluator.split(self.source, self.split, threads)?)
    }
}

/// Classifies single images on a device of either kind.
struct Classify<'a> {
    flags: &'a EvalFlags,
    read: &'a Checkpoint,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl With for Classify<'_> {
    type Output = Result<(), EvalError>;

    fn with<H: Hardware>(self, hardware: H) -> Self::Output {
        self.flags.classify_with(Evaluator::new(self.read, 1, hardware)?, self.out, self.err)
    }
}

/// The results of the raw weights, with those of their moving average as `ema`.
fn figures_json(figures: &[Evaluation], rate: f64) -> Value {
    let mut object = json!(figures.first());
    object["images_per_second"] = rate.into();
    if let Some(ema) = figures.get(1) {
        object["ema"] = json!(ema);
    }
    object
}
