//! Squeeze-excite: the mean of a block's wide activation over each image, two tiny dense layers, a gate for every
//! channel.

use super::{About, BatchNorm, Dense, Describe, Direction, Parts, Role};
use crate::ops::tensor::Tensor;

/// s = mean of silu(BN(y)) over the pixels, then the two dense layers: gate [N, C].
#[derive(Clone, Copy, Debug)]
pub struct SqueezeForward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// s, [N, C].
    pub squeezed: Tensor,
    pub reduce: Dense,
    /// Wr·s + br before its silu, [N, S].
    pub hidden: Tensor,
    pub expand: Dense,
    /// [N, C].
    pub gate: Tensor,
}

impl Describe for SqueezeForward {
    fn about(&self) -> About {
        About { name: "squeeze forward", operator: "squeeze", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}×{}", self.pixels, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.y, Role::Activation);
        parts.applies(&mut self.bn);
        parts.writes(&mut self.squeezed, Role::Gate);
        parts.writes(&mut self.hidden, Role::Gate);
        parts.writes(&mut self.gate, Role::Gate);
    }
}

/// The two dense layers of squeeze-excite, where [`DepthwiseInference`](super::DepthwiseInference) has taken the means:
/// s → gate [N, C].
#[derive(Clone, Copy, Debug)]
pub struct SqueezeInference {
    pub images: usize,
    pub channels: usize,
    /// s, [N, C].
    pub squeezed: Tensor,
    pub reduce: Dense,
    /// Wr·s + br before its silu, [N, S].
    pub hidden: Tensor,
    pub expand: Dense,
    /// [N, C].
    pub gate: Tensor,
}

impl Describe for SqueezeInference {
    fn about(&self) -> About {
        About { name: "squeeze inference", operator: "squeeze", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        self.channels.to_string()
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.squeezed, Role::Gate);
        parts.writes(&mut self.hidden, Role::Gate);
        parts.writes(&mut self.gate, Role::Gate);
    }
}

/// From the five sums of [`ProjectBackward`](super::ProjectBackward): gradients of both dense layers, the squeeze gradient d, and the
/// sums of BN2: Σdu2 = Σₙ(gate·S1 + d·S2), Σdu2·ŷ2 = Σₙ(gate·S3 + d·S4). No pass over wide tensors.
#[derive(Clone, Copy, Debug)]
pub struct SqueezeBackward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    /// BN2, whose `sums` this fills.
    pub bn: BatchNorm,
    pub squeezed: Tensor,
    pub reduce: Dense,
    pub hidden: Tensor,
    pub expand: Dense,
    pub gate: Tensor,
    /// [5, N, C], see [`ProjectBackward`](super::ProjectBackward).
    pub five_sums: Tensor,
    /// Written: d = ∂L/∂s / pixels, [N, C].
    pub squeeze_gradient: Tensor,
}

impl Describe for SqueezeBackward {
    fn about(&self) -> About {
        About { name: "squeeze backward", operator: "squeeze", direction: Direction::Backward }
    }
    fn shape(&self) -> String {
        format!("{}×{}", self.pixels, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.squeezed, Role::Gate);
        parts.reads(&mut self.hidden, Role::Gate);
        parts.reads(&mut self.gate, Role::Gate);
        parts.reads(&mut self.five_sums, Role::Statistic);
        parts.dense_gradients(&self.reduce);
        parts.dense_gradients(&self.expand);
        parts.writes(&mut self.squeeze_gradient, Role::Gate);
        parts.sums_of_sums(&mut self.bn);
    }
}
