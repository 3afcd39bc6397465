//! The stem: a convolution over the image. Its batch norm and silu are applied while its output is loaded.

use super::{About, BatchNorm, Describe, Direction, Parts, Role};
use crate::model::Window;
use crate::ops::tensor::{Param, Tensor};

/// Image [N, R, R, 3] → y [N, P, P, C] with batch statistics. Weight [C, 3, k, k].
#[derive(Clone, Copy, Debug)]
pub struct StemForward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub image: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

impl Describe for StemForward {
    fn about(&self) -> About {
        About { name: "stem forward", operator: "stem", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        format!("{}²→{}", self.window.input, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.image, Role::Activation);
        parts.output(&mut self.y, &mut self.bn);
    }
}

/// The stem's weight gradient: dy from `du` (batch norm backward while loading), no image gradient.
#[derive(Clone, Copy, Debug)]
pub struct StemBackward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub image: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
    pub du: Tensor,
}

impl Describe for StemBackward {
    fn about(&self) -> About {
        About { name: "stem backward", operator: "stem", direction: Direction::Backward }
    }
    fn shape(&self) -> String {
        format!("{}²→{}", self.window.input, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.image, Role::Activation);
        parts.reads(&mut self.y, Role::Activation);
        parts.reads(&mut self.du, Role::Gradient);
        parts.applies_backward(&mut self.bn);
        parts.gradient(self.weight);
    }
}
