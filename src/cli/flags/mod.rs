//! Every flag of `effnet-train`.
//!
//! A field is a flag, its help and its key in a configuration file. [`Settings`] can also be given in a file;
//! [`Actions`] belong to one call. No field has a default: `None` means that the flag was not given, so that layers
//! (command line, file, preset of the demo) can be merged. To add a setting, add the field here, a field of the same
//! name to [`Recipe`](crate::train::Recipe) or [`RunOptions`](crate::train::RunOptions), and a row to
//! [`Recipe::validate`](crate::train::Recipe::validate) or [`Settings::check`].

mod check;
pub mod file;
mod values;

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser};
use serde::{Deserialize, Serialize};
pub use values::MicroBatch;
use values::{from_text, number, pair, path, whole};

use crate::data::augment::Auto;
use crate::data::{CropMode, NormaliseBy, Shuffle};
use crate::model::formats::weights_file::Average;
use crate::model::{Padding, Variant};
use crate::ops::cuda::Precision;
use crate::train::{ClassWeights, Decayed, DeviceChoice, Freeze, Optimizer, RecomputeChoice, ScheduleKind};

const MODEL: &str = "Model";
const DATA: &str = "Data";
const RECIPE: &str = "Recipe";
const RUN: &str = "Run";
const OUTPUT: &str = "Output";

/// Train EfficientNet B0-B7 on images that effnet-pack has packed.
///
/// Try `effnet-train --demo`: it trains B0 on a small real dataset that is part of the program. Without --config, the
/// resolution, batch, epochs, learning rate, dropout and evaluations that are not given are chosen for the number of images, their
/// sizes and the device; the run says what it chose. All else, and what a file (--config) leaves out, has the value of the
/// reference recipe. The command line overrides the file.
#[derive(Parser, Debug)]
#[command(name = "effnet-train", version, max_term_width = 110)]
pub struct Flags {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub actions: Actions,
}

/// Flags that a configuration file can also set, under the same names.
#[derive(Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
    /// Member of the family: b0 to b7 [default: b0]
    #[arg(long, value_name = "NAME", value_parser = Variant::from_str, help_heading = MODEL)]
    #[serde(default, deserialize_with = "from_text")]
    pub model: Option<Variant>,
    /// Side of the network's input in pixels, 32 or more [default: the member's own, 224 for b0 and 600 for b7, but no more than the images have]
    #[arg(long, value_name = "PIXELS", value_parser = whole, allow_negative_numbers = true, help_heading = MODEL)]
    pub resolution: Option<u64>,
    /// Begin with smaller images: the resolutions of earlier stages, such as 128,160. All stages have as many steps, and the last one has --resolution
    #[arg(long, value_name = "PIXELS", value_parser = whole, value_delimiter = ',', allow_negative_numbers = true, help_heading = MODEL)]
    pub progressive: Option<Vec<u64>>,
    /// Strength of the augmentation in the first of these stages; it rises to 1 with them [default: 1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub progressive_augment: Option<f64>,
    /// symmetric: as in PyTorch; same: as in TensorFlow, for weights from there [default: symmetric]
    #[arg(long, value_name = "KIND", value_parser = Padding::from_str, help_heading = MODEL)]
    pub padding: Option<Padding>,
    /// Share of dropped features before the classifier, 0 (off) to below 1 [default: the member's own, 0.2 for b0 and 0.5 for b7; 0 for fewer than 10,000 steps]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub dropout: Option<f64>,
    /// Stochastic depth: share of images that skip a block; it rises with the depth up to this value; 0 is off [default: 0.2; 0 for fewer than 10,000 steps]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub drop_connect: Option<f64>,
    /// Batch norm: share of the new batch in the running statistics. PyTorch's convention; 0.1 here is 0.9 in TensorFlow [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub bn_momentum: Option<f64>,
    /// Batch norm: added to the variance [default: 1e-5]
    #[arg(long, value_name = "EPS", value_parser = number, allow_hyphen_values = true, help_heading = MODEL)]
    pub bn_eps: Option<f64>,
    /// Start from these weights: a safetensors file, PyTorch's .pth, or a checkpoint of another run, with the names of timm, torchvision, lukemelas or Keras. Model, padding, bn-eps and normalise follow from them; if the number of classes differs, the classifier is initialised anew
    #[arg(long, value_name = "FILE", value_parser = path, help_heading = MODEL)]
    pub init_from: Option<PathBuf>,
    /// Where the file of --init-from holds both: raw, its weights, or ema, their moving average [default: raw]
    #[arg(long, value_name = "KIND", value_parser = Average::from_str, help_heading = MODEL)]
    pub init_weights: Option<Average>,
    /// Go on where --init-from lacks some of the model's tensors: they keep their initial values
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = MODEL)]
    pub init_partial: Option<bool>,

    /// Directory made by effnet-pack; or images as effnet-pack takes them (folders, tar, CSV, Parquet …), which are packed once; or `synthetic` for generated images [default: $EFFNET_DATA, otherwise `data`]
    #[arg(long, value_name = "SOURCE|synthetic", help_heading = DATA)]
    pub data: Option<String>,
    /// Where images that are not packed yet are packed, and found again [default: `packed` beside the run directory]
    #[arg(long, value_name = "DIR", value_parser = path, help_heading = DATA)]
    pub pack_dir: Option<PathBuf>,
    /// How images become square: resized (random crops, resized), pad, or auto: pad if all images are icons of 64 pixels at most and fit [default: auto]
    #[arg(long, value_name = "MODE", value_parser = CropMode::from_str, help_heading = DATA)]
    pub crop: Option<CropMode>,
    /// Order of an epoch: full: any; blocks: for images that do not fit into memory, neighbours are read together and mixed with those of 512 MiB [default: full]
    #[arg(long, value_name = "KIND", value_parser = Shuffle::from_str, help_heading = DATA)]
    pub shuffle: Option<Shuffle>,
    /// Draw every class equally often: images of rare classes come several times an epoch, each time augmented anew
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = DATA)]
    pub balance: Option<bool>,
    /// none, autoaugment (ImageNet's policy), rand-m9-n2 (RandAugment as in timm, also -mstd0.5 and -inc1) or trivial (TrivialAugmentWide) [default: none]
    #[arg(long, value_name = "NAME", value_parser = Auto::from_str, help_heading = DATA)]
    pub augment: Option<Auto>,
    /// Least and largest share of an image's area that a random crop has [default: 0.08,1]
    #[arg(long, value_name = "LEAST,MOST", value_parser = pair, help_heading = DATA)]
    pub crop_area: Option<[f64; 2]>,
    /// Least and largest ratio of width to height of a random crop [default: 0.75,1.3333]
    #[arg(long, value_name = "LEAST,MOST", value_parser = pair, help_heading = DATA)]
    pub crop_ratio: Option<[f64; 2]>,
    /// Share of training images that are mirrored [default: 0.5]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub flip: Option<f64>,
    /// Share of training images that are turned upside down [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub vertical_flip: Option<f64>,
    /// Largest change of brightness, contrast and saturation, such as 0.4 [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub color_jitter: Option<f64>,
    /// Share of training images of which a rectangle is erased [default: 0]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub random_erasing: Option<f64>,
    /// Mixup: each pair of images becomes two blends of both, by a share from Beta(ALPHA, ALPHA), such as 0.2; 0 is none [default: 0]
    #[arg(long, value_name = "ALPHA", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub mixup: Option<f64>,
    /// Cutmix: the two images of a pair exchange a rectangle, whose size is from Beta(ALPHA, ALPHA), such as 1; 0 is none [default: 0]
    #[arg(long, value_name = "ALPHA", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub cutmix: Option<f64>,
    /// Share of pairs that --mixup or --cutmix mixes [default: 1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub mixup_prob: Option<f64>,
    /// With both, the share of mixed pairs that --cutmix mixes [default: 0.5]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = DATA)]
    pub mixup_switch_prob: Option<f64>,
    /// Mix only in so many epochs, the first ones [default: all]
    #[arg(long, value_name = "EPOCH", value_parser = whole, allow_negative_numbers = true, help_heading = DATA)]
    pub mixup_off_epoch: Option<u64>,
    /// Channel means and deviations: dataset, imagenet, or M,D or M,M,M,D,D,D as fractions of full intensity [default: those of the weights of --init-from; otherwise dataset]
    #[arg(long, value_name = "WHICH", value_parser = NormaliseBy::from_str, allow_hyphen_values = true, help_heading = DATA)]
    #[serde(default, deserialize_with = "from_text")]
    pub normalise: Option<NormaliseBy>,
    /// Threads that prepare images, in each rank; the result does not depend on them [default: 2 on the CPU; on a GPU all cores but one, divided among the machine's ranks]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = DATA)]
    pub loader_threads: Option<u64>,

    /// Length of the schedule in epochs; may be a fraction [default: enough for 3,000 steps on the CPU, 10,000 on a GPU; 400 for half a million images]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub epochs: Option<f64>,
    /// Images of an optimiser step [default: about a 128th of the training images, from 32 to 4096]
    #[arg(long, value_name = "IMAGES", value_parser = whole, allow_negative_numbers = true, help_heading = RECIPE)]
    pub batch_size: Option<u64>,
    /// Images of a forward pass, over which batch norm takes its statistics; divides the batch. auto: the batch, or the most that fits [default: auto]
    #[arg(long, value_name = "IMAGES|auto", value_parser = MicroBatch::from_str, allow_negative_numbers = true, help_heading = RECIPE)]
    pub micro_batch: Option<MicroBatch>,
    /// Highest learning rate, reached at the end of the warm-up; then it falls as --schedule says [default: 5e-4 x batch / 64; 0.08 x batch / 4096 for half a million images]
    #[arg(long, value_name = "RATE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub lr: Option<f64>,
    /// Epochs in which the learning rate rises from 0; less than --epochs [default: 16, or a tenth of --epochs if that is less]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub warmup_epochs: Option<f64>,
    /// Learning rate of everything before the classifier, as a share of --lr, for trained weights; above 0, at most 1 [default: 1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub body_lr: Option<f64>,
    /// In the first epochs only the classifier's weights move (batch norms still gather their statistics); may be a fraction, less than --epochs [default: 0; with the preset finetune 1]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub classifier_epochs: Option<f64>,
    /// Learning rate of the first step, from which the warm-up rises, as in timm and TensorFlow [default: the rise of one step]
    #[arg(long, value_name = "RATE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub warmup_lr: Option<f64>,
    /// How the rate falls after the warm-up: cosine or linear, down to --min-lr; exponential: times --decay-rate every --decay-epochs; steps: times --decay-rate at --milestones; constant [default: cosine]
    #[arg(long, value_name = "KIND", value_parser = ScheduleKind::from_str, help_heading = RECIPE)]
    #[serde(default, deserialize_with = "from_text")]
    pub schedule: Option<ScheduleKind>,
    /// Lowest learning rate after the warm-up [default: 0]
    #[arg(long, value_name = "RATE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub min_lr: Option<f64>,
    /// What --schedule exponential or steps multiplies the learning rate by, such as 0.97
    #[arg(long, value_name = "FACTOR", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub decay_rate: Option<f64>,
    /// How often --schedule exponential does so; counted from the start of the run, with the warm-up
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub decay_epochs: Option<f64>,
    /// The epochs at which --schedule steps does so, such as 30,60,80
    #[arg(long, value_name = "EPOCHS", value_parser = number, value_delimiter = ',', allow_hyphen_values = true, help_heading = RECIPE)]
    pub milestones: Option<Vec<f64>>,
    /// rmsprop: as in PyTorch; rmsprop-tf: as in TensorFlow; sgd: with momentum; adamw: as in PyTorch [default: rmsprop]
    #[arg(long, value_name = "NAME", value_parser = Optimizer::from_str, help_heading = RECIPE)]
    pub optimizer: Option<Optimizer>,
    /// Decay of RMSprop's mean square [default: 0.9]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub alpha: Option<f64>,
    /// Decay of the optimiser's momentum [default: 0.9]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub momentum: Option<f64>,
    /// Epsilon of RMSprop: outside the root for rmsprop, inside for rmsprop-tf [default: 0.01]
    #[arg(long, value_name = "EPS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub rms_eps: Option<f64>,
    /// Nesterov's form of the momentum, for --optimizer sgd
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = RECIPE)]
    pub nesterov: Option<bool>,
    /// Decay of AdamW's mean [default: 0.9]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub beta1: Option<f64>,
    /// Decay of AdamW's mean square [default: 0.999]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub beta2: Option<f64>,
    /// Epsilon of AdamW, outside the root [default: 1e-8]
    #[arg(long, value_name = "EPS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub adam_eps: Option<f64>,
    /// Decay of the parameters: L2, for adamw decoupled from the gradient [default: 1e-5]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub weight_decay: Option<f64>,
    /// Which parameters decay: all; no-batch-norm, as in TensorFlow's and NVIDIA's recipes; weights: no batch norm and no biases, as in timm's [default: all]
    #[arg(long, value_name = "KIND", value_parser = Decayed::from_str, help_heading = RECIPE)]
    pub weight_decay_of: Option<Decayed>,
    /// Decay of the scale and shift of batch norm, whatever --weight-decay-of says [default: as the others]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub weight_decay_bn: Option<f64>,
    /// Scale the gradients of a step down if their L2 norm is above this; the norm is then in the log [default: none]
    #[arg(long, value_name = "NORM", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub clip_norm: Option<f64>,
    /// Share of the target that is spread over all classes [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub label_smoothing: Option<f64>,
    /// What each class counts in the loss: balanced (in inverse proportion to its training images), or a file of `class,weight` lines. The mean over the training images becomes 1 [default: all count the same]
    #[arg(long, value_name = "balanced|FILE", value_parser = ClassWeights::from_str, help_heading = RECIPE)]
    pub class_weights: Option<ClassWeights>,
    /// Decay of a moving average of the weights, which is evaluated too, such as 0.9999; 0 is off [default: 0]
    #[arg(long, value_name = "DECAY", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub ema: Option<f64>,
    /// Seed of all random numbers; the result does not depend on the number of threads [default: 0]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RECIPE)]
    pub seed: Option<u64>,
    /// Train only the layers after this one: conv_stem, blocks.0 to blocks.6, or conv_head (then the classifier alone is trained). It and all before it stay as they are, for trained weights, and cost no way back [default: none]
    #[arg(long, value_name = "LAYER", value_parser = Freeze::from_str, help_heading = RECIPE)]
    #[serde(default, deserialize_with = "from_text")]
    pub freeze: Option<Freeze>,
    /// Batch norm normalises by its running statistics in training too, and does not move them: for trained weights and small batches. Its scale and shift are still trained
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = RECIPE)]
    pub freeze_bn: Option<bool>,
    /// Batch norm takes its statistics over the images of all ranks; otherwise each rank over its own images
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = RECIPE)]
    pub sync_bn: Option<bool>,
    /// Epochs between evaluations; may be a fraction; there is always one at the end [default: 1, or more for at most 40]
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, help_heading = RECIPE)]
    pub eval_every: Option<f64>,
    /// End the run after so many evaluations in a row that were not better than the best [default: none]
    #[arg(long, value_name = "EVALUATIONS", value_parser = whole, allow_negative_numbers = true, help_heading = RECIPE)]
    pub patience: Option<u64>,

    /// auto, cpu or cuda; the report says what auto chose, and why [default: auto]
    #[arg(long, value_name = "DEVICE", value_parser = DeviceChoice::from_str, help_heading = RUN)]
    pub device: Option<DeviceChoice>,
    /// How activations are stored: fp16 (a GPU only, with dynamic loss scaling), bf16 or fp32 [default: fp16 on a GPU, fp32 on the CPU]
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_str, help_heading = RUN)]
    pub precision: Option<Precision>,
    /// Whether a GPU computes the first stages' expanded tensors again in place of storing them: auto (where the card is faster so), on (for less memory) or off; the result is the same [default: auto]
    #[arg(long, value_name = "WHEN", value_parser = RecomputeChoice::from_str, help_heading = RUN)]
    pub recompute: Option<RecomputeChoice>,
    /// GPUs of this machine to train on, one process for each; needs CUDA. Leave it out under torchrun, mpirun or srun [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub gpus: Option<u64>,
    /// Processes of this machine to train with on the CPU [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub ranks: Option<u64>,
    /// Machines that train together, each with the same --gpus or --ranks; start this program on each of them [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub nodes: Option<u64>,
    /// The number of this machine among the --nodes, from 0
    #[arg(long, value_name = "K", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub node_rank: Option<u64>,
    /// Where rank 0 listens, with --nodes: a name of machine 0 that the others can resolve, and a free port
    #[arg(long, value_name = "HOST:PORT", help_heading = RUN)]
    pub rendezvous: Option<String>,
    /// Seconds that ranks wait for each other at the start [default: 120]
    #[arg(long, value_name = "SECONDS", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub rendezvous_timeout: Option<u64>,
    /// Seconds that a rank may make no progress before the run is stopped [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub watchdog: Option<u64>,
    /// Compute threads of each rank on the CPU; the result does not depend on them [default: all cores, divided among the machine's ranks]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub threads: Option<u64>,
    /// Stop after this many steps in all; the schedule remains that of the whole run
    #[arg(long, value_name = "STEPS", value_parser = whole, allow_negative_numbers = true, help_heading = RUN)]
    pub max_steps: Option<u64>,

    /// Run directory [default: runs/<model>]
    #[arg(long, value_name = "DIR", value_parser = path, help_heading = OUTPUT)]
    pub out: Option<PathBuf>,
    /// Steps between checkpoints, in addition to those after evaluations; 0 is none [default: 0]
    #[arg(long, value_name = "STEPS", value_parser = whole, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub checkpoint_every: Option<u64>,
    /// Numbered checkpoints to keep, in addition to the latest and the best [default: 0]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub keep: Option<u64>,
    /// Write log.csv too: log.jsonl for a spreadsheet
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = OUTPUT)]
    pub log_csv: Option<bool>,
    /// Write event files for TensorBoard into the run directory: `tensorboard --logdir runs`
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = OUTPUT)]
    pub tensorboard: Option<bool>,
    /// Write report.html at the end, a page about the run; the best weights are evaluated once more for it [default: true]
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = OUTPUT)]
    pub report: Option<bool>,
}

/// Flags that belong to one call.
#[derive(Args, Clone, Debug, Default)]
pub struct Actions {
    /// Train b0 on 12,000 images of Fashion-MNIST that are part of the program, with their own recipe
    #[arg(long, help_heading = DATA, conflicts_with = "data")]
    pub demo: bool,
    /// Take settings from a file; the recipe.toml of a run repeats the run byte for byte
    #[arg(long, value_name = "FILE.toml", help_heading = RECIPE)]
    pub config: Option<PathBuf>,
    /// Begin with a recipe by name: composer (as without a preset), nvidia, tpu, finetune or small; `list` describes them, `show NAME` prints one. Other settings override it. Its learning rates change in proportion to another --batch-size
    #[arg(long, value_name = "NAME", num_args = 1..=2, help_heading = RECIPE)]
    pub preset: Vec<String>,
    /// Continue the run in --out with the recipe in its checkpoint
    #[arg(long, help_heading = RUN, conflicts_with = "force")]
    pub resume: bool,
    /// With --resume: go on to so many epochs, more than the run was planned for. From here on the learning rate is that of a run of this length, so the result is not that of a run planned so from the start
    #[arg(long, value_name = "EPOCHS", value_parser = number, allow_hyphen_values = true, requires = "resume", conflicts_with = "epochs", help_heading = RUN)]
    pub extend: Option<f64>,
    /// Replace the run in --out
    #[arg(long, help_heading = RUN)]
    pub force: bool,
    /// Measure the time of each pass over this many steps, after a few steps of warm-up, and print a table
    #[arg(long, value_name = "STEPS", value_parser = whole, allow_negative_numbers = true, help_heading = OUTPUT)]
    pub profile: Option<u64>,
    /// Write a page that shows sixteen training images as the network sees them, and exit
    #[arg(long, value_name = "FILE.html", help_heading = OUTPUT, conflicts_with_all = ["summary", "dry_run"])]
    pub preview: Option<PathBuf>,
    /// Print the memory plan and exit
    #[arg(long, help_heading = OUTPUT, conflicts_with = "summary")]
    pub dry_run: bool,
    /// Print the layer table (shapes, parameters, multiply-adds, bytes) and exit
    #[arg(long, help_heading = OUTPUT)]
    pub summary: bool,
    /// Report as JSON, one object a line
    #[arg(long, help_heading = OUTPUT)]
    pub json: bool,
}
