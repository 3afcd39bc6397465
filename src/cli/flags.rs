//! Every flag of `effnet-train`, defined once.
//!
//! A field is the flag, its help, and its key in a configuration file. [`Settings`] are what a file may set too;
//! [`Actions`] belong to one call. Nothing here has a default: a field that is `None` was not given, so that layers
//! (command line, file, the demo's preset) can lie over each other. The defaults stand in the help and are tested
//! against the recipe that comes out.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::{Deserialize as DeriveDeserialize, Serialize, Serializer};

use crate::data::CropMode;
use crate::model::{Padding, Variant};
use crate::ops::cuda::Precision;
use crate::train::{DeviceChoice, Optimizer};

/// Train EfficientNet B0-B7 on images that effnet-pack has packed.
///
/// Try `effnet-train --demo`: it trains B0 on a small real set that is part of the program. Every setting below has
/// the reference recipe's value unless it is given here or in a file (--config); the command line goes before the file.
#[derive(Parser, Debug)]
#[command(name = "effnet-train", version, max_term_width = 110)]
pub struct Flags {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub actions: Actions,
}

/// What a configuration file may set too, under the same names.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, DeriveDeserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Member of the family: b0 to b7 [default: b0]
    #[arg(long, value_name = "NAME", value_parser = Variant::from_str, help_heading = MODEL)]
    #[serde(default, serialize_with = "as_text", deserialize_with = "from_text")]
    pub model: Option<Variant>,
    /// Side of the network's input in pixels, 32 or more [default: the member's own: 224 for b0, 600 for b7]
    #[arg(long, value_name = "PIXELS", value_parser = whole, allow_negative_numbers = true, help_heading = MODEL)]
    pub resolution: Option<u64>,
    /// symmetric: as PyTorch does; same: as TensorFlow does, for weights that come from there [default: symmetric]
    #[arg(long, value_name = "KIND", value_parser = Padding::from_str, help_heading = MODEL)]
    pub padding: Option<Padding>,
    /// Share of dropped features before the classifier, 0 (off) to below 1 [default: the member's own: 0.2 for b0, 0.5 for b7]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub dropout: Option<f64>,
    /// Stochastic depth: share of samples that skip the deepest blocks, less the shallower; 0 is off [default: 0.2]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub drop_connect: Option<f64>,
    /// Batch norm: share of the new batch in the running statistics. PyTorch's convention; 0.1 here is 0.9 in TensorFlow [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub bn_momentum: Option<f64>,
    /// Batch norm: what is added to the variance [default: 1e-5]
    #[arg(long, value_name = "EPS", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub bn_eps: Option<f64>,
    /// Start from these weights (timm's names); the classifier is new where the number of classes differs
    #[arg(long, value_name = "FILE.safetensors", help_heading = MODEL)]
    pub init_from: Option<PathBuf>,

    /// Directory that effnet-pack made, or `synthetic` for images made up on the fly [default: $EFFNET_DATA, else `data`]
    #[arg(long, value_name = "DIR|synthetic", help_heading = DATA)]
    pub data: Option<String>,
    /// How images become square: resized (random crops, resized), pad, or auto: pad where all are small enough [default: auto]
    #[arg(long, value_name = "MODE", value_parser = CropMode::from_str, help_heading = DATA)]
    pub crop: Option<CropMode>,
    /// Threads that prepare images [default: 2]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = DATA)]
    pub loader_threads: Option<u64>,

    /// Length of the schedule in epochs; may be a fraction [default: 400]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub epochs: Option<f64>,
    /// Images of an optimiser step [default: 4096]
    #[arg(long, value_name = "IMAGES", value_parser = whole, allow_negative_numbers = true, help_heading = RECIPE)]
    pub batch_size: Option<u64>,
    /// Images of a forward pass, which batch norm sees together; divides the batch. auto: the batch, or on a GPU the most that fits [default: auto]
    #[arg(long, value_name = "IMAGES|auto", value_parser = auto_or_whole, allow_negative_numbers = true, help_heading = RECIPE)]
    #[serde(default, deserialize_with = "micro_batch")]
    pub micro_batch: Option<MicroBatch>,
    /// Highest learning rate, at the end of the warm-up; from there it falls as a cosine [default: 0.08 x batch / 4096]
    #[arg(long, value_name = "RATE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub lr: Option<f64>,
    /// Epochs in which the learning rate rises from 0; less than --epochs [default: 16, or a tenth of a shorter run]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub warmup_epochs: Option<f64>,
    /// rmsprop: PyTorch's form; rmsprop-tf: TensorFlow's; sgd: with momentum [default: rmsprop]
    #[arg(long, value_name = "NAME", value_parser = Optimizer::from_str, help_heading = RECIPE)]
    pub optimizer: Option<Optimizer>,
    /// Decay of RMSprop's mean square [default: 0.9]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub alpha: Option<f64>,
    /// Decay of the optimiser's momentum [default: 0.9]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub momentum: Option<f64>,
    /// Epsilon of RMSprop: outside the root in PyTorch's form, inside in TensorFlow's [default: 0.01]
    #[arg(long, value_name = "EPS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub rms_eps: Option<f64>,
    /// L2 decay of every parameter, those of batch norm too [default: 1e-5]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub weight_decay: Option<f64>,
    /// Share of the target that is spread over all classes [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub label_smoothing: Option<f64>,
    /// Decay of a moving average of the weights, evaluated beside them, such as 0.9999; 0 is off [default: 0]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub ema: Option<f64>,
    /// Decides every random draw: one seed, one result, whatever the number of threads [default: 0]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RECIPE)]
    pub seed: Option<u64>,
    /// Batch norm takes its statistics over the images of all ranks; without it, each rank over its own
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = RECIPE)]
    pub sync_bn: Option<bool>,
    /// Epochs between evaluations; may be a fraction; there is always one at the end [default: 1]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub eval_every: Option<f64>,

    /// auto, cpu or cuda; a line says what auto took, and why [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = DeviceChoice::from_str, help_heading = RUN)]
    pub device: Option<DeviceChoice>,
    /// How a GPU stores activations: fp16 (with dynamic loss scaling), bf16 or fp32 [default: fp16]
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_str, help_heading = RUN)]
    pub precision: Option<Precision>,
    /// GPUs of this machine to train on, a process each; needs CUDA. Inside torchrun, mpirun or srun leave it out [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub gpus: Option<u64>,
    /// Processes of this machine to train with on the CPU [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub ranks: Option<u64>,
    /// Machines that train together, each with as many --gpus or --ranks; start this program on each [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub nodes: Option<u64>,
    /// Which of the --nodes this machine is, from 0
    #[arg(long, value_name = "K", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub node_rank: Option<u64>,
    /// Where rank 0 listens, with --nodes: machine 0 by a name that the others know, and a free port
    #[arg(long, value_name = "HOST:PORT", help_heading = RUN)]
    pub rendezvous: Option<String>,
    /// Seconds that ranks wait for each other at the start [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub rendezvous_timeout: Option<u64>,
    /// Seconds that a rank may stand still before the run is stopped [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub watchdog: Option<u64>,
    /// Compute threads on the CPU, of each rank; the result does not depend on them [default: one a core, shared by the machine's ranks]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub threads: Option<u64>,
    /// Stop after this many steps in all; the schedule stays that of the whole run
    #[arg(long, value_name = "STEPS", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub max_steps: Option<u64>,

    /// Run directory [default: runs/<model>]
    #[arg(long, value_name = "DIR", help_heading = OUTPUT)]
    pub out: Option<PathBuf>,
    /// Steps between checkpoints, beside those at evaluations; 0 is none [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = whole, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub checkpoint_every: Option<u64>,
    /// Numbered checkpoints to keep beside the latest and the best [default: 0]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub keep: Option<u64>,
}

/// What one call is asked to do.
#[derive(Args, Clone, Debug, Default)]
pub struct Actions {
    /// Train b0 on 12,000 images of Fashion-MNIST that are part of the program, by a recipe of its own
    #[arg(long, help_heading = DATA, conflicts_with = "data")]
    pub demo: bool,
    /// Take settings from a file; that of a run, recipe.toml, repeats the run byte for byte
    #[arg(long, value_name = "FILE.toml", help_heading = RECIPE)]
    pub config: Option<PathBuf>,
    /// Go on with the run in --out, by the recipe that its checkpoint holds
    #[arg(long, help_heading = RUN, conflicts_with = "force")]
    pub resume: bool,
    /// Replace the run that --out holds
    #[arg(long, help_heading = RUN)]
    pub force: bool,
    /// Time the passes of this many steps, after a few to warm up, and print them as a table
    #[arg(long, value_name = "STEPS", value_parser = whole, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub profile: Option<u64>,
    /// Print the memory plan and stop
    #[arg(long, help_heading = OUTPUT, conflicts_with = "summary")]
    pub dry_run: bool,
    /// Print the layer table (shapes, parameters, multiply-adds, bytes) and stop
    #[arg(long, help_heading = OUTPUT)]
    pub summary: bool,
    /// Report as JSON, one object a line
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}

const MODEL: &str = "Model";
const DATA: &str = "Data";
const RECIPE: &str = "Recipe";
const RUN: &str = "Run";
const OUTPUT: &str = "Output";

/// `auto` or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MicroBatch {
    Auto,
    Images(u64),
}

/// Up to what TOML's signed integers hold.
fn whole(text: &str) -> Result<u64, &'static str> {
    let number = text.parse().ok().filter(|&number| number <= i64::MAX as u64);
    number.ok_or("must be a whole number from 0 to 2^63 - 1")
}

/// Any float, NaN included: what is in range is the recipe's to say, in one place for flags and files.
fn number(text: &str) -> Result<f64, &'static str> {
    text.parse().map_err(|_| "must be a number")
}

fn auto_or_whole(text: &str) -> Result<MicroBatch, &'static str> {
    match text {
        "auto" => Ok(MicroBatch::Auto),
        _ => whole(text).map(MicroBatch::Images).map_err(|_| "must be auto or a whole number"),
    }
}

impl Serialize for MicroBatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            MicroBatch::Auto => serializer.serialize_str("auto"),
            MicroBatch::Images(images) => serializer.serialize_u64(*images),
        }
    }
}

fn micro_batch<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MicroBatch>, D::Error> {
    #[derive(DeriveDeserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    let text = match Either::deserialize(deserializer) {
        Ok(Either::Number(images)) => images.to_string(),
        Ok(Either::Text(text)) => text,
        Err(_) => return Err(D::Error::custom("must be auto or a whole number")),
    };
    auto_or_whole(&text).map(Some).map_err(D::Error::custom)
}

fn as_text<S: Serializer, T: ToString>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    value.as_ref().map(T::to_string).serialize(serializer)
}

fn from_text<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: std::fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}
