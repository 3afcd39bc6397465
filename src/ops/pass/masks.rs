//! Masks of stochastic depth and dropout, drawn anew for every batch.

use super::{About, Describe, Direction, Parts, Role};
use crate::ops::tensor::Tensor;

/// Stochastic-depth factors of one block, [N]: 0 with probability `rate`, else 1/(1−rate).
#[derive(Clone, Copy, Debug)]
pub struct DropPathMask {
    pub images: usize,
    pub block: u32,
    pub rate: f32,
    pub keep: Tensor,
}

impl Describe for DropPathMask {
    fn about(&self) -> About {
        About {
            name: "stochastic depth mask",
            operator: "stochastic depth mask",
            direction: Direction::Forward,
        }
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.writes(&mut self.keep, Role::Mask);
    }
}

/// Dropout factors of the pooled features, [N, C]: 0 with probability `rate`, else 1/(1−rate).
#[derive(Clone, Copy, Debug)]
pub struct DropoutMask {
    pub images: usize,
    pub channels: usize,
    pub rate: f32,
    pub mask: Tensor,
}

impl Describe for DropoutMask {
    fn about(&self) -> About {
        About { name: "dropout mask", operator: "dropout mask", direction: Direction::Forward }
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.writes(&mut self.mask, Role::Mask);
    }
}
