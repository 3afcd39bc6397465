//! Everything that determines the result of a run.
//!
//! A [`Recipe`] and a dataset determine every byte of the checkpoint. All fields are resolved: no `auto` remains, so a
//! recipe means the same on another machine. It is stored in the checkpoint and in `recipe.toml`, under the names of
//! the flags. Everything else (where, how fast, how often saved) is in
//! [`RunOptions`](super::options::RunOptions).
//!
//! A setting of the recipe is a field with its reference value, a row of [`Recipe::validate`] in the module beside this one, and a flag.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::class_weights::ClassWeights;
use super::freeze::Freeze;
use super::optimizer::{Decayed, Optimizer};
use super::schedule_kind::ScheduleKind;
use crate::data::augment::Auto;
use crate::data::{CropMode, NormaliseBy, Sampling, Shuffle};
use crate::model::{Architecture, BatchNormConfig, ModelError, Padding, Variant};
use crate::network::{Depth, NetworkConfig};
use crate::ops::{Frozen, LabelForm, Statistics, Update, WeightDecay, Weights};

/// See the module's description. The names of the fields are those of the flags. A field that checkpoints from before lack
/// is not written where it has its default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    pub model: Variant,
    /// Side of the network's input in pixels.
    pub resolution: usize,
    /// The resolutions of earlier stages, if the run begins with smaller images; see [`Stage`](super::Stage). As the next
    /// field, not written without stages.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub progressive: Vec<usize>,
    /// What the strength of the augmentation is multiplied by in the first stage; it rises to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progressive_augment: Option<f64>,
    pub padding: Padding,
    /// Resolved: resized or pad.
    pub crop: CropMode,
    #[serde(flatten)]
    pub sampling: Sampling,
    /// The automatic augmentation. In the next six, none is [`STANDARD`](crate::data::augment::Policy::STANDARD).
    #[serde(default, skip_serializing_if = "Auto::is_none")]
    pub augment: Auto,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_area: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_ratio: Option<[f64; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flip: Option<f64>,
    #[serde(default, skip_serializing_if = "is_0")]
    pub vertical_flip: f64,
    #[serde(default, skip_serializing_if = "is_0")]
    pub color_jitter: f64,
    #[serde(default, skip_serializing_if = "is_0")]
    pub random_erasing: f64,
    /// α of mixup and of cutmix; 0 is none. These and the next three are not written where they have their default,
    /// because earlier checkpoints lack them.
    #[serde(default, skip_serializing_if = "is_0")]
    pub mixup: f64,
    #[serde(default, skip_serializing_if = "is_0")]
    pub cutmix: f64,
    /// Share of pairs that are mixed, 1 unless set; and of those that cutmix mixes, a half unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_prob: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_switch_prob: Option<f64>,
    /// From this epoch on nothing is mixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_off_epoch: Option<u64>,
    /// Length of the schedule; may be a fraction.
    pub epochs: f64,
    /// Images of an optimiser step.
    pub batch_size: usize,
    /// Images of a forward pass, over which batch norm takes its statistics; divides the batch.
    pub micro_batch: usize,
    /// The highest learning rate, reached at the end of the warm-up.
    pub lr: f64,
    pub warmup_epochs: f64,
    /// The rate of the first step, if the warm-up begins there: then it reaches `lr` one step after its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup_lr: Option<f64>,
    #[serde(default, skip_serializing_if = "ScheduleKind::is_cosine")]
    pub schedule: ScheduleKind,
    /// Where a cosine or a line ends; other schedules fall no lower.
    #[serde(default, skip_serializing_if = "is_0")]
    pub min_lr: f64,
    /// What an exponential schedule or one of steps multiplies the rate by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_rate: Option<f64>,
    /// How often an exponential schedule does so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_epochs: Option<f64>,
    /// The epochs at which a schedule of steps does so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub milestones: Vec<f64>,
    pub optimizer: Optimizer,
    /// Decay of RMSprop's mean square.
    pub alpha: f64,
    pub momentum: f64,
    pub rms_eps: f64,
    /// Nesterov's form of SGD's momentum.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nesterov: bool,
    /// Of AdamW, 0.9, 0.999 and 1e-8 unless set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta2: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adam_eps: Option<f64>,
    pub weight_decay: f64,
    /// The most that the L2 norm of all gradients may be; larger ones are scaled down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    #[serde(default, skip_serializing_if = "Decayed::is_all")]
    pub weight_decay_of: Decayed,
    /// The learning rate of all parameters before the classifier, as a share of the classifier's; none means 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_lr: Option<f64>,
    /// In so many epochs, the first ones, only the classifier moves; none means 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classifier_epochs: Option<f64>,
    /// The decay of the scale and shift of batch norm, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay_bn: Option<f64>,
    pub label_smoothing: f64,
    /// What each class counts in the loss; not written where all count the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_weights: Option<ClassWeights>,
    /// Stochastic depth: the drop rate rises linearly with the block index; this is its value one past the last block.
    pub drop_connect: f64,
    pub dropout: f64,
    /// Share of the new batch in the running statistics.
    pub bn_momentum: f64,
    pub bn_eps: f64,
    /// Decay of the weights' moving average; 0 means none.
    pub ema: f64,
    pub seed: u64,
    /// Epochs between evaluations; there is always one at the end.
    pub eval_every: f64,
    /// The run ends when so many evaluations in a row were not better than the best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// A checksum of the file that the weights came from: its path may change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// The last layer or stage that stays as it is, with all before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Freeze>,
    /// Batch norm normalises by its running statistics, which do not move.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze_bn: bool,
    /// Batch norm takes its statistics over the micro-batches of all ranks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_bn: bool,
    /// The channel means and deviations.
    #[serde(default, skip_serializing_if = "NormaliseBy::is_dataset")]
    pub normalise: NormaliseBy,
}

impl Recipe {
    /// The reference recipe (Composer's EfficientNet-B0, after NVIDIA's) for a member of the family, with crops
    /// resized. Its rate is 0.08 for 4096 images a step, in proportion.
    pub fn reference(model: Variant, batch_size: usize) -> Recipe {
        let scaling = model.scaling();
        Recipe {
            model,
            resolution: scaling.resolution,
            progressive: Vec::new(),
            progressive_augment: None,
            padding: Padding::Symmetric,
            crop: CropMode::Resized,
            sampling: Sampling::PLAIN,
            augment: Auto::None,
            crop_area: None,
            crop_ratio: None,
            flip: None,
            vertical_flip: 0.0,
            color_jitter: 0.0,
            random_erasing: 0.0,
            mixup: 0.0,
            cutmix: 0.0,
            mixup_prob: None,
            mixup_switch_prob: None,
            mixup_off_epoch: None,
            epochs: 400.0,
            batch_size,
            micro_batch: batch_size,
            lr: 0.08 * batch_size as f64 / 4096.0,
            warmup_epochs: 16.0,
            warmup_lr: None,
            schedule: ScheduleKind::Cosine,
            min_lr: 0.0,
            decay_rate: None,
            decay_epochs: None,
            milestones: Vec::new(),
            optimizer: Optimizer::Rmsprop,
            alpha: 0.9,
            momentum: 0.9,
            rms_eps: 0.01,
            nesterov: false,
            beta1: None,
            beta2: None,
            adam_eps: None,
            weight_decay: 1e-5,
            clip_norm: None,
            weight_decay_of: Decayed::All,
            weight_decay_bn: None,
            body_lr: None,
            classifier_epochs: None,
            label_smoothing: 0.1,
            class_weights: None,
            drop_connect: 0.2,
            dropout: scaling.dropout,
            bn_momentum: 0.1,
            bn_eps: 1e-5,
            ema: 0.0,
            seed: 0,
            eval_every: 1.0,
            patience: None,
            init_from: None,
            freeze: None,
            freeze_bn: false,
            sync_bn: false,
            normalise: NormaliseBy::Dataset,
        }
    }

    /// This recipe with the fields that `settings` holds. Other keys are ignored, and `init-from`, a path in settings and a
    /// checksum here.
    ///
    /// # Errors
    /// A value of another type.
    pub fn with(&self, settings: &Table) -> Result<Recipe, toml::de::Error> {
        let table = |recipe: &Recipe| Table::try_from(recipe).expect("a recipe becomes a table");
        let keys = table(&self.with_every_key());
        let mut merged = table(self);
        let fields = settings.iter().filter(|(key, _)| keys.contains_key(*key));
        merged.extend(fields.map(|(key, value)| (key.clone(), value.clone())));
        merged.try_into()
    }

    /// Has a key for every field that can be set, in place of the defaults that are not written.
    pub(crate) fn with_every_key(&self) -> Recipe {
        Recipe {
            warmup_lr: Some(0.0),
            schedule: ScheduleKind::Linear,
            min_lr: 1.0,
            decay_rate: Some(1.0),
            decay_epochs: Some(1.0),
            milestones: vec![1.0],
            clip_norm: Some(1.0),
            nesterov: true,
            beta1: Some(0.0),
            beta2: Some(0.0),
            adam_eps: Some(1.0),
            weight_decay_of: Decayed::Weights,
            weight_decay_bn: Some(0.0),
            body_lr: Some(1.0),
            classifier_epochs: Some(0.0),
            freeze: Some(Freeze::Stem),
            freeze_bn: true,
            sync_bn: true,
            normalise: NormaliseBy::Imagenet,
            patience: Some(1),
            init_from: None,
            sampling: Sampling { shuffle: Shuffle::Blocks, balance: true },
            augment: Auto::AutoAugment,
            progressive: vec![0],
            progressive_augment: Some(1.0),
            crop_area: Some([0.0; 2]),
            crop_ratio: Some([0.0; 2]),
            flip: Some(0.0),
            vertical_flip: 1.0,
            color_jitter: 1.0,
            random_erasing: 1.0,
            mixup: 1.0,
            cutmix: 1.0,
            mixup_prob: Some(1.0),
            mixup_switch_prob: Some(1.0),
            mixup_off_epoch: Some(1),
            class_weights: Some(ClassWeights::Balanced),
            ..self.clone()
        }
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
            trained_from: Some(self.freeze.map_or(Depth::Stem, Freeze::first_trained)),
            statistics: if self.freeze_bn { Statistics::Running } else { Statistics::Batch },
            statistics_ranks: if self.sync_bn { ranks } else { 1 },
            drop_path: self.drop_connect,
            dropout: self.dropout,
            label_smoothing: self.label_smoothing,
            labels: LabelForm { mixed: self.mixes(), weighted: self.class_weights.is_some() },
            step_images: self.batch_size,
        }
    }

    /// The sets of weights that a run evaluates: the trained ones and their moving average, if there is one.
    pub fn weights(&self) -> &'static [Weights] {
        if self.ema > 0.0 { &[Weights::Raw, Weights::Ema] } else { &[Weights::Raw] }
    }

    /// The optimiser's step, for a network of which nothing is frozen.
    pub fn update(&self) -> Update {
        let weight_decay = match self.weight_decay_bn {
            // The factors are the rates themselves: one of the two may be 0.
            Some(_) => WeightDecay { rate: 1.0, by_parameter: true },
            None => WeightDecay {
                rate: self.weight_decay as f32,
                by_parameter: self.weight_decay_of != Decayed::All,
            },
        };
        Update {
            rule: self.rule(),
            weight_decay,
            clip_norm: self.clip_norm.map(|norm| norm as f32),
            ema: self.ema > 0.0,
            frozen: Frozen::NOTHING,
        }
    }

    /// The fields and their values as JSON, sorted by name.
    pub fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => unreachable!("a recipe becomes a JSON object"),
        }
    }

    /// One phrase for every field in which the two differ: "lr is 0.02, the checkpoint's 0.01".
    pub fn differences(&self, saved: &Recipe) -> Vec<String> {
        let here = self.fields();
        let there = saved.fields();
        let names: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
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

/// For fields that are not written where they have their default.
fn is_0(value: &f64) -> bool {
    *value == 0.0
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
