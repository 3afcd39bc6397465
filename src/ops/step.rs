//! A step as the training loop describes it to a device: its parameters, its batch, its figures.

use serde::{Deserialize, Serialize};

use super::tensor::Tensor;
use crate::labels::Labels;
use crate::pixels::BatchPixels;

/// Everything that changes from step to step and is not data.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepParams {
    pub seed: u64,
    pub step: u64,
    /// Position of the batch's first sample in the endless concatenation of epochs: masks are drawn by position.
    pub first_position: u64,
    pub learning_rate: f32,
    /// The first `body` elements of the parameters have the learning rate `body_rate`.
    pub body: usize,
    pub body_rate: f32,
    /// The decay d of this step, with warm-up applied.
    pub ema_decay: f32,
}

/// The results of a step, over all its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepFigures {
    /// Sum of the images' losses.
    pub loss: f64,
    /// Correct predictions: images whose largest logit is their label's (see [`score::rank`](super::score::rank)).
    /// Of a mixed image the label of the larger part counts.
    pub correct: u64,
    /// Whether the update changed nothing, because the loss or a gradient was not finite.
    pub skipped: bool,
    /// The L2 norm of all gradients before they were clipped, if the update clips.
    pub gradient_norm: Option<f32>,
}

/// Dynamic loss scaling: the loss is multiplied by `scale` before the backward pass and the gradients divided by
/// it after, so that small ones survive fp16. A step with a gradient that is not finite is skipped and halves
/// the scale; many good steps in a row double it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LossScale {
    pub scale: f32,
    /// Steps since the scale last changed.
    pub good_steps: u32,
    /// All steps that were skipped.
    pub skipped: u32,
}

/// A sequence of passes that is repeated. Only the step's parameters and the batch change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sequence {
    /// A micro-batch, sent as `slot`, of a training step: its first, its last, or one between.
    Training { slot: usize, first: bool, last: bool },
    /// A batch of inference.
    Inference { slot: usize },
}

impl Sequence {
    /// The slot of the sequence's batch.
    pub fn slot(self) -> usize {
        match self {
            Sequence::Training { slot, .. } | Sequence::Inference { slot } => slot,
        }
    }
}

/// A batch to copy to the device: bytes and labels on the host, and their destination.
#[derive(Clone, Copy, Debug)]
pub struct BatchInput<'a> {
    /// Squares [N, R, R, 3], or a raw batch of N images if the device
    /// [takes raw batches](super::Device::prepares_images).
    pub pixels: BatchPixels<'a>,
    /// Of N images; empty in inference.
    pub labels: Labels<'a>,
    pub target: BatchTarget,
}

/// The destination of a batch: the network's input. A byte becomes the number (byte/255 − mean)/deviation.
#[derive(Clone, Copy, Debug)]
pub struct BatchTarget {
    pub image: Tensor,
    pub labels: Option<Tensor>,
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

/// The weights that the forward pass uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Raw,
    Ema,
}
