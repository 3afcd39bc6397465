//! A step, as the loop speaks of it to a device: its parameters, its batch, its figures.

use serde::{Deserialize, Serialize};

use super::tensor::Tensor;
use crate::pixels::BatchPixels;

/// Everything that differs from step to step and is not data.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepParams {
    pub seed: u64,
    pub step: u64,
    /// Position of the batch's first sample in the endless concatenation of epochs: masks are drawn by position.
    pub first_position: u64,
    pub learning_rate: f32,
    /// d of this step, its warm-up applied.
    pub ema_decay: f32,
}

/// What a step came to, over all its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepFigures {
    /// Sum of the images' losses.
    pub loss: f64,
    /// Images whose largest logit is their label's (see [`score::rank`]).
    pub correct: u64,
    /// Whether the update changed nothing, because the loss or a gradient was not finite.
    pub skipped: bool,
}

/// Dynamic loss scaling: the loss is multiplied by `scale` before the backward pass and the gradients divided by
/// it after, so that small ones survive fp16. A step with a gradient that is not finite is skipped and halves
/// the scale; many good steps in a row double it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LossScale {
    pub scale: f32,
    /// Since the scale last changed.
    pub good_steps: u32,
    /// Steps skipped, in all.
    pub skipped: u32,
}

/// A sequence of passes that is run again and again, the same but for the step's parameters and the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sequence {
    /// A micro-batch, sent as `slot`, of a training step: its first, its last, or one between.
    Training { slot: usize, first: bool, last: bool },
    /// A batch of inference.
    Inference { slot: usize },
}

impl Sequence {
    /// Which of the two batches under way it works on.
    pub fn slot(self) -> usize {
        match self {
            Sequence::Training { slot, .. } | Sequence::Inference { slot } => slot,
        }
    }
}

/// A batch on its way to the device: bytes and labels on the host, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct BatchInput<'a> {
    /// Squares [N, R, R, 3], or a raw batch of as many, where the device [takes those](Device::prepares_images).
    pub pixels: BatchPixels<'a>,
    /// [N]; empty in inference.
    pub labels: &'a [u32],
    pub target: BatchTarget,
}

/// Where a batch goes: the network's input, and how a byte becomes a number: (byte/255 − mean)/deviation.
#[derive(Clone, Copy, Debug)]
pub struct BatchTarget {
    pub image: Tensor,
    pub labels: Option<Tensor>,
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

/// Which weights the forward pass uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Raw,
    Ema,
}
