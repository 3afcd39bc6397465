//! Batch norm: what other passes take its statistics of, apply and pass back; by itself it is a pass in inference only.

use super::{About, Describe, Direction, Parts, Role, Summed};
use crate::ops::tensor::{Param, Tensor};

/// Where a batch norm's mean and variance come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch, taken in the epilogue of the pass that stores y; running statistics move with it.
    Batch,
    /// From the running statistics, by [`BatchNormInference`] before the forward pass. They do not move.
    Running,
}

/// A batch norm over `rows` values of each channel, or over those of all `ranks` together.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    pub channels: usize,
    /// M: images × pixels, on this rank.
    pub rows: usize,
    /// Ranks whose rows, equally many on each, have their statistics taken together, and the sums of the backward pass
    /// too: then M is `rows`·`ranks`. 1 keeps to this rank's own.
    pub ranks: usize,
    pub weight: Param,
    pub bias: Param,
    pub running_mean: Param,
    pub running_var: Param,
    /// Share of the new batch in the running statistics.
    pub momentum: f32,
    pub eps: f32,
    pub statistics: Statistics,
    /// [4, C]: mean μ, r = 1/√(variance + eps) (biased variance), scale = γ·r, shift = β − μ·scale.
    pub coefficients: Tensor,
    /// [2, C]: Σdu and Σ(du·ŷ). The pass that fills it adds both to the gradients of β and γ.
    pub sums: Tensor,
}

impl BatchNorm {
    /// M in the backward formula dy = γ·r·(du − Σdu/M − ŷ·Σ(du·ŷ)/M): the values that mean and variance are taken of.
    /// Infinite with running statistics, which do not depend on the batch: dy = γ·r·du is left. The two sums are then
    /// the gradients of β and γ alone.
    pub fn values(&self) -> f64 {
        match self.statistics {
            Statistics::Batch => (self.rows * self.ranks) as f64,
            Statistics::Running => f64::INFINITY,
        }
    }

    /// Whether ranks take the statistics, and the sums of the backward formula, together.
    pub fn is_shared(&self) -> bool {
        self.ranks > 1 && self.statistics == Statistics::Batch
    }
}

/// Coefficients of the running statistics.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormInference {
    pub bn: BatchNorm,
}

impl Describe for BatchNormInference {
    fn about(&self) -> About {
        About { name: "batch norm inference", operator: "batch norm", direction: Direction::Forward }
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.norm_inference(&mut self.bn);
    }
}

/// Fused extra work of a pass that completes a narrow gradient: the backward sums of the previous block's last batch
/// norm. With du = keep·dx it fills `bn.sums` (and the gradients of γ and β).
#[derive(Clone, Copy, Debug)]
pub struct PreviousBlock {
    /// y3 of the previous block, [M, C].
    pub y: Tensor,
    pub bn: BatchNorm,
    /// [N], the previous block's stochastic-depth factors; none means all one.
    pub keep: Option<Tensor>,
    /// Rows per image, to find a row's factor.
    pub pixels: usize,
}

/// The gradient at a block's input, the narrow tensor between two blocks, as the block's last backward pass stores it.
#[derive(Clone, Copy, Debug)]
pub struct NarrowGradient {
    pub dx: Tensor,
    /// Gradient at the block's output, where the block has a shortcut: added to dx unscaled.
    pub shortcut: Option<Tensor>,
    pub previous: PreviousBlock,
}

impl NarrowGradient {
    pub fn parts(&mut self, parts: &mut Parts) {
        let PreviousBlock { y, bn, keep, pixels } = &mut self.previous;
        parts.may_read(&mut self.shortcut, Role::Gradient);
        parts.writes(&mut self.dx, Role::Gradient);
        parts.reads(y, Role::Activation);
        parts.may_read(keep, Role::Mask);
        parts.sums(bn, Summed { y: *y, gradient: self.dx, keep: *keep, pixels: *pixels });
    }
}
