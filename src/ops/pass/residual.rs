//! Residual: a block's output from its last raw output, with stochastic depth and the shortcut.

use super::{About, BatchNorm, Describe, Direction, Parts, Role};
use crate::ops::tensor::Tensor;

/// out = BN(y)·keep (+ shortcut). A dropped image (keep 0) passes its shortcut only.
#[derive(Clone, Copy, Debug)]
pub struct ResidualForward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// [N]; none means all one.
    pub keep: Option<Tensor>,
    pub shortcut: Option<Tensor>,
    pub out: Tensor,
}

impl Describe for ResidualForward {
    fn about(&self) -> About {
        About { name: "residual forward", operator: "residual", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}×{}", self.images * self.pixels, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.y, Role::Activation);
        parts.applies(&mut self.bn);
        parts.may_read(&mut self.keep, Role::Mask);
        parts.may_read(&mut self.shortcut, Role::Activation);
        parts.writes(&mut self.out, Role::Activation);
    }
}
