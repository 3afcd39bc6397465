//! Head: the pooled mean of the last activation, the classifier, the loss.

use super::{About, BatchNorm, Describe, Direction, Parts, Role, Summed};
use crate::labels::LabelForm;
use crate::ops::tensor::{Param, Tensor};

/// A dense layer of squeeze-excite, or the classifier: weight [outputs, inputs], bias [outputs].
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    pub weight: Param,
    pub bias: Param,
    pub inputs: usize,
    pub outputs: usize,
}

/// pooled = mean of silu(BN(y)) over the pixels; logits = (pooled·dropout)·Wᵀ + b.
#[derive(Clone, Copy, Debug)]
pub struct HeadForward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub classes: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// [N, C].
    pub pooled: Tensor,
    /// Factors [N, C], 0 or 1/(1−rate); none means no dropout.
    pub dropout: Option<Tensor>,
    pub classifier: Dense,
    /// [N, classes].
    pub logits: Tensor,
}

impl Describe for HeadForward {
    fn about(&self) -> About {
        About { name: "head forward", operator: "head", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}×{}", self.pixels, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.y, Role::Activation);
        parts.applies(&mut self.bn);
        parts.may_read(&mut self.dropout, Role::Mask);
        parts.writes(&mut self.pooled, Role::Classifier);
        parts.writes(&mut self.logits, Role::Classifier);
    }
}

/// Cross-entropy −Σ w·target·ln softmax: losses [N], and dlogits = (softmax·Σ w·target − w·target)·scale.
///
/// The target is (1−ε)·(share·onehot(first) + (1−share)·onehot(second)) + ε/classes; the share is 1 unless images are
/// mixed. The weights w of the classes are 1 unless there are any.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub images: usize,
    pub classes: usize,
    pub logits: Tensor,
    /// Words of u32, as `form` says.
    pub labels: Tensor,
    pub form: LabelForm,
    pub smoothing: f32,
    /// One over the images of the whole step, so that micro-batches and ranks add up to the mean.
    pub scale: f32,
    pub losses: Tensor,
    pub dlogits: Tensor,
}

impl Describe for Loss {
    fn about(&self) -> About {
        About { name: "loss", operator: "loss", direction: Direction::Forward }
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.logits, Role::Classifier);
        parts.reads(&mut self.labels, Role::Label);
        parts.writes(&mut self.losses, Role::Classifier);
        parts.writes(&mut self.dlogits, Role::Classifier);
    }
}

/// Classifier gradients, then du = dpooled/pixels·silu'(z) [N·P, C] with the sums of the head's batch norm, where more than
/// the classifier is trained.
#[derive(Clone, Copy, Debug)]
pub struct HeadBackward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub classes: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    pub pooled: Tensor,
    pub dropout: Option<Tensor>,
    pub classifier: Dense,
    pub dlogits: Tensor,
    /// None where the classifier alone is trained: then y and its batch norm are not read.
    pub du: Option<Tensor>,
}

impl Describe for HeadBackward {
    fn about(&self) -> About {
        About { name: "head backward", operator: "head", direction: Direction::Backward }
    }
    fn shape(&self) -> String {
        format!("{}×{}", self.pixels, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.pooled, Role::Classifier);
        parts.reads(&mut self.dlogits, Role::Classifier);
        parts.may_read(&mut self.dropout, Role::Mask);
        parts.dense_gradients(&self.classifier);
        if let Some(du) = &mut self.du {
            parts.reads(&mut self.y, Role::Activation);
            parts.writes(du, Role::Gradient);
            let of = Summed { y: self.y, gradient: *du, keep: None, pixels: self.pixels };
            parts.sums(&mut self.bn, of);
        }
    }
}
