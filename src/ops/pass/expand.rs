//! Expand: a pointwise convolution from a narrow tensor to a wide one.

use super::{About, BatchNorm, Describe, Direction, NarrowGradient, Parts, Role};
use crate::ops::tensor::{Param, Tensor};

/// Pointwise convolution of a materialised input: x [M, K] → y [M, C] with statistics. Weight [C, K].
/// Serves the blocks' expansions and the head's convolution.
#[derive(Clone, Copy, Debug)]
pub struct ExpandForward {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

impl Describe for ExpandForward {
    fn about(&self) -> About {
        About { name: "expand forward", operator: "expand", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}×{}→{}", self.rows, self.inputs, self.outputs)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.x, Role::Activation);
        parts.product(self.weight);
        parts.output(&mut self.y, &mut self.bn);
    }
}

/// dW += dyᵀ·x, with dy from `du` and y by batch norm backward, and dx = dy·W where a layer below is trained.
#[derive(Clone, Copy, Debug)]
pub struct ExpandBackward {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
    pub du: Tensor,
    /// What becomes of dx; none where no layer below is trained.
    pub narrow: Option<NarrowGradient>,
}

impl Describe for ExpandBackward {
    fn about(&self) -> About {
        About { name: "expand backward", operator: "expand", direction: Direction::Backward }
    }
    fn shape(&self) -> String {
        format!("{}×{}→{}", self.rows, self.inputs, self.outputs)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.x, Role::Activation);
        parts.reads(&mut self.y, Role::Activation);
        parts.reads(&mut self.du, Role::Gradient);
        parts.applies_backward(&mut self.bn);
        parts.gradient(self.weight);
        if let Some(narrow) = &mut self.narrow {
            parts.product(self.weight);
            narrow.parts(parts);
        }
    }
}
