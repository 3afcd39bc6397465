//! What determines a run's result, and what does not.
//!
//! A [`Recipe`] with a dataset determines every byte of the checkpoint. It is resolved: no `auto` is left in
//! it, so it means the same on another machine. It stands in the checkpoint and in `recipe.toml`, under the
//! names of the command line's flags. [`RunOptions`] are the rest: where, how fast, how often saved.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::{CropMode, DataError, Source};
use crate::model::{Architecture, BatchNormConfig, ModelError, Padding, Variant};
use crate::network::NetworkConfig;
use crate::ops::cuda::Precision;
use crate::ops::{RmsPropForm, Rule, Statistics, Update, Weights};
use crate::parallel::Ranks;

/// The optimisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimizer {
    /// PyTorch's form: epsilon outside the root, rate outside the momentum buffer, mean-square from 0.
    Rmsprop,
    /// TensorFlow's form: epsilon inside the root, rate inside the momentum buffer, mean-square from 1.
    RmspropTf,
    Sgd,
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Optimizer::Rmsprop => "rmsprop",
            Optimizer::RmspropTf => "rmsprop-tf",
            Optimizer::Sgd => "sgd",
        })
    }
}

impl FromStr for Optimizer {
    type Err = String;

    fn from_str(text: &str) -> Result<Optimizer, String> {
        match text {
            "rmsprop" => Ok(Optimizer::Rmsprop),
            "rmsprop-tf" => Ok(Optimizer::RmspropTf),
            "sgd" => Ok(Optimizer::Sgd),
            _ => Err(format!("`{text}` is no optimizer: use rmsprop, rmsprop-tf or sgd")),
        }
    }
}

/// All that, with the data, determines the result. Field names are the flags'.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    pub model: Variant,
    /// Side of the network's input, pixels.
    pub resolution: usize,
    pub padding: Padding,
    /// Resolved: resized or pad.
    pub crop: CropMode,
    /// Length of the schedule; may be a fraction.
    pub epochs: f64,
    /// Images of an optimiser step.
    pub batch_size: usize,
    /// Images of a forward pass, over which batch norm takes its statistics; divides the batch.
    pub micro_batch: usize,
    /// Highest learning rate, reached at the end of the warm-up.
    pub lr: f64,
    pub warmup_epochs: f64,
    pub optimizer: Optimizer,
    /// Decay of RMSprop's mean-square.
    pub alpha: f64,
    pub momentum: f64,
    pub rms_eps: f64,
    pub weight_decay: f64,
    pub label_smoothing: f64,
    /// Stochastic depth of the last block, were there one more.
    pub drop_connect: f64,
    pub dropout: f64,
    /// Share of the new batch in the running statistics.
    pub bn_momentum: f64,
    pub bn_eps: f64,
    /// Decay of the weights' moving average; 0 is off.
    pub ema: f64,
    pub seed: u64,
    /// Epochs between evaluations; there is always one at the end.
    pub eval_every: f64,
    /// The content of the file that the weights came from, as a checksum: its path may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// Batch norm takes its statistics over the micro-batches of all ranks. Not written where it is off, as in
    /// checkpoints from before there were ranks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_bn: bool,
}

/// A recipe that cannot be carried out. The text names the flag.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RecipeError {
    #[error("--{flag} {value}: {problem}")]
    Flag { flag: &'static str, value: String, problem: &'static str },
    #[error("--micro-batch {micro_batch} does not divide --batch-size {batch_size}")]
    MicroBatch { micro_batch: usize, batch_size: usize },
    #[error(
        "--batch-size {batch_size} cannot be cut evenly among {ranks} ranks: take {}, or --batch-size {}",
        ranks_that_divide(*batch_size, *ranks),
        batches_that_divide(*batch_size, *ranks)
    )]
    Ranks { batch_size: usize, ranks: usize },
    #[error(
        "--micro-batch {micro_batch} does not divide the {share} images that each of {ranks} ranks has of --batch-size \
         {batch_size}"
    )]
    MicroBatchOfRanks { micro_batch: usize, share: usize, batch_size: usize, ranks: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The next smaller and the next larger number of ranks that divide the batch: "6 or 8 ranks".
fn ranks_that_divide(batch_size: usize, ranks: usize) -> String {
    let smaller = (1..ranks).rev().find(|ranks| batch_size.is_multiple_of(*ranks)).unwrap_or(1);
    let larger = (ranks + 1..=batch_size).find(|ranks| batch_size.is_multiple_of(*ranks));
    match larger {
        Some(larger) => format!("{smaller} or {larger} ranks"),
        None => format!("{smaller} rank{}", if smaller == 1 { "" } else { "s" }),
    }
}

/// The next smaller and the next larger batch that the ranks divide: "91 or 98".
fn batches_that_divide(batch_size: usize, ranks: usize) -> String {
    let larger = batch_size.next_multiple_of(ranks);
    match larger.saturating_sub(ranks) {
        0 => larger.to_string(),
        smaller => format!("{smaller} or {larger}"),
    }
}

impl Recipe {
    /// The reference rate at this batch size: 0.08 at 4096 images a step, in proportion.
    pub fn reference_lr(batch_size: usize) -> f64 {
        0.08 * batch_size as f64 / 4096.0
    }

    /// The reference recipe (Composer's EfficientNet-B0, after NVIDIA's) for a member of the family, with crops
    /// resized.
    pub fn reference(model: Variant, batch_size: usize) -> Recipe {
        let scaling = model.scaling();
        Recipe {
            model,
            resolution: scaling.resolution,
            padding: Padding::Symmetric,
            crop: CropMode::Resized,
            epochs: 400.0,
            batch_size,
            micro_batch: batch_size,
            lr: Recipe::reference_lr(batch_size),
            warmup_epochs: 16.0,
            optimizer: Optimizer::Rmsprop,
            alpha: 0.9,
            momentum: 0.9,
            rms_eps: 0.01,
            weight_decay: 1e-5,
            label_smoothing: 0.1,
            drop_connect: 0.2,
            dropout: scaling.dropout,
            bn_momentum: 0.1,
            bn_eps: 1e-5,
            ema: 0.0,
            seed: 0,
            eval_every: 1.0,
            init_from: None,
            sync_bn: false,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that makes no sense, by its flag.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let positive = |v: f64| v > 0.0 && v.is_finite();
        let not_negative = |v: f64| v >= 0.0 && v.is_finite();
        let share = |v: f64| (0.0..1.0).contains(&v);
        let checks: [(&'static str, f64, bool, &'static str); 16] = [
            ("batch-size", self.batch_size as f64, self.batch_size > 0, "must be at least 1"),
            ("micro-batch", self.micro_batch as f64, self.micro_batch > 0, "must be at least 1"),
            ("epochs", self.epochs, positive(self.epochs), "must be above 0"),
            ("lr", self.lr, positive(self.lr), "must be above 0"),
            (
                "warmup-epochs",
                self.warmup_epochs,
                not_negative(self.warmup_epochs) && self.warmup_epochs < self.epochs,
                "must be at least 0 and less than --epochs",
            ),
            ("alpha", self.alpha, share(self.alpha), "must be at least 0 and below 1"),
            ("momentum", self.momentum, share(self.momentum), "must be at least 0 and below 1"),
            ("rms-eps", self.rms_eps, positive(self.rms_eps), "must be above 0"),
            ("weight-decay", self.weight_decay, not_negative(self.weight_decay), "must be at least 0"),
            (
                "label-smoothing",
                self.label_smoothing,
                share(self.label_smoothing),
                "must be at least 0 and below 1",
            ),
            ("drop-connect", self.drop_connect, share(self.drop_connect), "must be at least 0 and below 1"),
            ("dropout", self.dropout, share(self.dropout), "must be at least 0 and below 1"),
            (
                "bn-momentum",
                self.bn_momentum,
                self.bn_momentum > 0.0 && self.bn_momentum <= 1.0,
                "must be above 0 and at most 1",
            ),
            ("bn-eps", self.bn_eps, positive(self.bn_eps), "must be above 0"),
            ("ema", self.ema, share(self.ema), "must be at least 0 (off) and below 1"),
            ("eval-every", self.eval_every, positive(self.eval_every), "must be above 0"),
        ];
        for (flag, value, good, problem) in checks {
            if !good {
                return Err(RecipeError::Flag { flag, value: value.to_string(), problem });
            }
        }
        // TOML's integers are signed.
        if self.seed > i64::MAX as u64 {
            let (value, problem) = (self.seed.to_string(), "must be below 2^63");
            return Err(RecipeError::Flag { flag: "seed", value, problem });
        }
        if !self.batch_size.is_multiple_of(self.micro_batch) {
            let (micro_batch, batch_size) = (self.micro_batch, self.batch_size);
            return Err(RecipeError::MicroBatch { micro_batch, batch_size });
        }
        self.architecture(2)?;
        Ok(())
    }

    /// The network for data of this many classes.
    pub fn architecture(&self, classes: usize) -> Result<Architecture, ModelError> {
        let batch_norm = BatchNormConfig { momentum: self.bn_momentum, eps: self.bn_eps };
        Architecture::new(self.model, classes, self.resolution, self.padding, batch_norm)
    }

    /// How the network runs over one micro-batch in training, on one of so many ranks.
    pub fn network_config(&self, ranks: usize) -> NetworkConfig {
        NetworkConfig {
            images: self.micro_batch,
            statistics: Statistics::Batch,
            statistics_ranks: if self.sync_bn { ranks } else { 1 },
            drop_path: self.drop_connect,
            dropout: self.dropout,
            label_smoothing: self.label_smoothing,
            step_images: self.batch_size,
        }
    }

    /// The sets of weights that a run evaluates: the trained ones and, where one is kept, their moving average.
    pub fn weights(&self) -> &'static [Weights] {
        if self.ema > 0.0 { &[Weights::Raw, Weights::Ema] } else { &[Weights::Raw] }
    }

    /// The optimiser's step.
    pub fn update(&self) -> Update {
        let (alpha, momentum, eps) = (self.alpha as f32, self.momentum as f32, self.rms_eps as f32);
        let rule = match self.optimizer {
            Optimizer::Rmsprop => Rule::RmsProp { form: RmsPropForm::PyTorch, alpha, momentum, eps },
            Optimizer::RmspropTf => Rule::RmsProp { form: RmsPropForm::TensorFlow, alpha, momentum, eps },
            Optimizer::Sgd => Rule::Sgd { momentum },
        };
        Update { rule, weight_decay: self.weight_decay as f32, ema: self.ema > 0.0 }
    }

    /// One phrase for every field in which the two differ: "lr is 0.02, the checkpoint's 0.01".
    pub fn differences(&self, saved: &Recipe) -> Vec<String> {
        let fields = |recipe: &Recipe| match serde_json::to_value(recipe) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => unreachable!("a recipe becomes a JSON object"),
        };
        let (here, there) = (fields(self), fields(saved));
        let names: std::collections::BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        let text = |value: Option<&serde_json::Value>| value.map_or("not set".to_string(), |v| v.to_string());
        names
            .into_iter()
            .filter(|name| here.get(*name) != there.get(*name))
            .map(|name| {
                format!("{name} is {}, the checkpoint's {}", text(here.get(name)), text(there.get(name)))
            })
            .collect()
    }
}

/// Where the images come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataChoice {
    /// A directory that `effnet-pack` made.
    Dir(PathBuf),
    /// Made up on the fly.
    Synthetic,
    /// The set that travels inside the program.
    Demo,
}

/// `--data synthetic` has ImageNet's numbers, so that epochs and steps are those of the real thing.
const SYNTHETIC: (usize, usize, usize) = (1000, 1_281_167, 50_000);

impl DataChoice {
    /// Opens the images. Synthetic ones have the network's own resolution.
    ///
    /// # Errors
    /// [`DataError`] for a directory without a dataset, and for the demo's set, which has no place of its own:
    /// whoever runs the demo packs it somewhere.
    pub fn open(&self, resolution: usize) -> Result<Source, DataError> {
        match self {
            DataChoice::Dir(dir) => Source::open(dir),
            DataChoice::Synthetic => {
                let (classes, train, val) = SYNTHETIC;
                Source::synthetic(classes, train, val, resolution)
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

impl FromStr for DataChoice {
    type Err = std::convert::Infallible;

    /// `synthetic`, or a directory; one of that name is `./synthetic`. The demo's images have no name: `--demo`
    /// packs them into a directory.
    fn from_str(text: &str) -> Result<DataChoice, Self::Err> {
        Ok(match text {
            "synthetic" => DataChoice::Synthetic,
            dir => DataChoice::Dir(dir.into()),
        })
    }
}

/// What to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    #[default]
    Auto,
    Cpu,
    Cuda,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceChoice::Auto => "auto",
            DeviceChoice::Cpu => "cpu",
            DeviceChoice::Cuda => "cuda",
        })
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda),
            _ => Err(format!("`{text}` is no device: use auto, cpu or cuda")),
        }
    }
}

/// What does not change the result.
#[derive(Clone, Debug)]
pub struct RunOptions {
    pub data: DataChoice,
    /// The run directory.
    pub out: PathBuf,
    pub device: DeviceChoice,
    /// Storage type on a GPU; none takes fp16 there. A checkpoint does not depend on it.
    pub precision: Option<Precision>,
    /// Lets a GPU cut the batch into micro-batches that fit. Decided when a run starts, and then in its recipe.
    pub auto_micro_batch: bool,
    /// Times the passes of this many steps.
    pub profile: Option<u64>,
    /// Compute threads; 0 is one a core.
    pub threads: usize,
    pub loader_threads: usize,
    /// Steps between checkpoints; 0 leaves those at evaluations and at the end.
    pub checkpoint_every: u64,
    /// Numbered checkpoints to keep beside the latest and the best.
    pub keep: usize,
    /// Stops after this many steps in all; the schedule stays.
    pub max_steps: Option<u64>,
    /// Weights to start from; [`Recipe::init_from`] is derived from the file.
    pub init_from: Option<PathBuf>,
    pub resume: bool,
    pub force: bool,
    /// Whether others train too, and how they are found.
    pub ranks: Ranks,
    /// Flags that start as many again, for the command that goes on.
    pub started_with: Option<String>,
}

impl RunOptions {
    /// The defaults, for a run into `out`.
    pub fn new(data: DataChoice, out: impl Into<PathBuf>) -> RunOptions {
        RunOptions {
            data,
            out: out.into(),
            device: DeviceChoice::Auto,
            precision: None,
            auto_micro_batch: false,
            profile: None,
            threads: 0,
            loader_threads: 2,
            checkpoint_every: 0,
            keep: 0,
            max_steps: None,
            init_from: None,
            resume: false,
            force: false,
            ranks: Ranks::One,
            started_with: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_recipe_is_valid_and_survives_json_and_toml() {
        for model in Variant::ALL {
            let mut recipe = Recipe::reference(model, 96);
            recipe.seed = i64::MAX as u64;
            recipe.lr = 0.1 + 0.2;
            assert_eq!(recipe.validate(), Ok(()));
            let json = serde_json::to_string(&recipe).unwrap();
            assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
            let text = toml::to_string(&recipe).unwrap();
            assert_eq!(toml::from_str::<Recipe>(&text).unwrap(), recipe);
        }
        let mut recipe = Recipe::reference(Variant::B0, 64);
        let json = serde_json::to_string(&recipe).unwrap();
        assert!(!json.contains("sync-bn"), "an old checkpoint would not be equal: {json}");
        recipe.sync_bn = true;
        let synced = serde_json::to_string(&recipe).unwrap();
        assert!(
            synced.contains("\"sync-bn\":true") && serde_json::from_str::<Recipe>(&synced).unwrap() == recipe
        );
        assert!(serde_json::from_str::<Recipe>(&json.replace("\"lr\"", "\"learning\"")).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_flag() {
        let refused = |change: fn(&mut Recipe)| {
            let mut recipe = Recipe::reference(Variant::B0, 64);
            change(&mut recipe);
            recipe.validate().unwrap_err().to_string()
        };
        assert!(refused(|r| r.batch_size = 0).contains("--batch-size 0"));
        assert!(refused(|r| r.lr = -0.1).contains("--lr -0.1"));
        assert!(refused(|r| r.lr = f64::NAN).contains("--lr NaN"));
        assert!(refused(|r| r.weight_decay = -1.0).contains("--weight-decay"));
        assert!(refused(|r| r.dropout = 1.0).contains("--dropout"));
        assert!(refused(|r| r.resolution = 31).contains("31"));
        assert!(refused(|r| r.micro_batch = 48).contains("--micro-batch 48"));
        assert!(refused(|r| r.warmup_epochs = 400.0).contains("--warmup-epochs"));
        assert!(refused(|r| r.seed = u64::MAX).contains("--seed"));
    }

    #[test]
    fn every_difference_is_named() {
        let saved = Recipe::reference(Variant::B0, 64);
        let mut here = saved.clone();
        assert!(here.differences(&saved).is_empty());
        here.epochs = 3.0;
        here.init_from = Some("0badcafe".into());
        let found = here.differences(&saved);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0], "epochs is 3.0, the checkpoint's 400.0");
        assert_eq!(found[1], "init-from is \"0badcafe\", the checkpoint's not set");
    }
}
