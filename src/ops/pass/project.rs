//! Project: batch norm, silu and gate while loading, then a pointwise convolution from a wide tensor to a narrow one.

use super::{About, BatchNorm, Describe, Direction, Parts, Role};
use crate::ops::tensor::{Param, Tensor};

/// y = (silu(BN(x))·gate)·Wᵀ with statistics: x = y2 [N·P, K] → y = y3 [N·P, C]. Weight [C, K].
#[derive(Clone, Copy, Debug)]
pub struct ProjectForward {
    pub images: usize,
    pub pixels: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub input_bn: BatchNorm,
    /// [N, K].
    pub gate: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

impl Describe for ProjectForward {
    fn about(&self) -> About {
        About { name: "project forward", operator: "project", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}×{}→{}", self.images * self.pixels, self.inputs, self.outputs)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.x, Role::Activation);
        parts.applies(&mut self.input_bn);
        parts.reads(&mut self.gate, Role::Gate);
        parts.product(self.weight);
        parts.output(&mut self.y, &mut self.bn);
    }
}

/// The end of a block where the batch norm's coefficients are known before: out = BN((a·gate)·Wᵀ) (+ shortcut), with the
/// a2 [N·P, K] that [`DepthwiseInference`](super::DepthwiseInference) has stored. Weight [C, K], out [N·P, C].
#[derive(Clone, Copy, Debug)]
pub struct ProjectInference {
    pub images: usize,
    pub pixels: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub a: Tensor,
    /// [N, K].
    pub gate: Tensor,
    pub weight: Param,
    pub bn: BatchNorm,
    pub shortcut: Option<Tensor>,
    pub out: Tensor,
}

impl Describe for ProjectInference {
    fn about(&self) -> About {
        About { name: "project inference", operator: "project", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}×{}→{}", self.images * self.pixels, self.inputs, self.outputs)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.a, Role::Activation);
        parts.reads(&mut self.gate, Role::Gate);
        parts.product(self.weight);
        parts.applies(&mut self.bn);
        parts.may_read(&mut self.shortcut, Role::Activation);
        parts.writes(&mut self.out, Role::Activation);
    }
}

/// With dy3 from `dout`·keep by BN3's backward while loading and A = silu(BN2(x))·gate recomputed:
/// da = dy3·W, dW += dy3ᵀ·A, and per image and channel, summed over the pixels,
/// S0 = Σ da·a2, S1 = Σ da·silu'(z2), S2 = Σ silu'(z2), S3 = Σ da·silu'(z2)·ŷ2, S4 = Σ silu'(z2)·ŷ2.
#[derive(Clone, Copy, Debug)]
pub struct ProjectBackward {
    pub images: usize,
    pub pixels: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub input_bn: BatchNorm,
    pub gate: Tensor,
    pub weight: Param,
    pub y: Tensor,
    /// BN3, its `sums` already filled by the pass that made `dout`.
    pub bn: BatchNorm,
    /// Gradient at the block's output, [N·P, C].
    pub dout: Tensor,
    /// [N]; none means all one.
    pub keep: Option<Tensor>,
    pub da: Tensor,
    /// [5, N, K].
    pub five_sums: Tensor,
}

impl Describe for ProjectBackward {
    fn about(&self) -> About {
        About { name: "project backward", operator: "project", direction: Direction::Backward }
    }
    fn shape(&self) -> String {
        format!("{}×{}→{}", self.images * self.pixels, self.inputs, self.outputs)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.y, Role::Activation);
        parts.reads(&mut self.dout, Role::Gradient);
        parts.may_read(&mut self.keep, Role::Mask);
        parts.applies_backward(&mut self.bn);
        parts.reads(&mut self.x, Role::Activation);
        parts.applies(&mut self.input_bn);
        parts.reads(&mut self.gate, Role::Gate);
        parts.product(self.weight);
        parts.gradient(self.weight);
        parts.writes(&mut self.da, Role::Gradient);
        parts.writes(&mut self.five_sums, Role::Statistic);
    }
}
