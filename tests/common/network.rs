//! Networks for tests.

use effnet::model::{Architecture, BatchNormConfig, Padding, Variant};
use effnet::network::{Depth, NetworkConfig};
use effnet::ops::{Frozen, RmsPropForm, Rule, Statistics, Update, WeightDecay};

/// A member of the family with PyTorch's padding and constants.
pub fn architecture(variant: Variant, classes: usize, side: usize) -> Architecture {
    Architecture::new(variant, classes, side, Padding::Symmetric, BatchNormConfig::default()).unwrap()
}

/// Training with masks and label smoothing.
pub fn training(images: usize) -> NetworkConfig {
    NetworkConfig {
        trained_from: Some(Depth::Stem),
        statistics: Statistics::Batch,
        drop_path: 0.2,
        dropout: 0.2,
        label_smoothing: 0.1,
        ..NetworkConfig::inference(images)
    }
}

/// The recipe's optimiser.
pub const UPDATE: Update = Update {
    rule: Rule::RmsProp { form: RmsPropForm::PyTorch, alpha: 0.9, momentum: 0.9, eps: 0.01 },
    weight_decay: WeightDecay { rate: 1e-5, by_parameter: false },
    clip_norm: None,
    ema: true,
    frozen: Frozen::NOTHING,
};
