//! Depthwise: one convolution a channel.

use super::{About, BatchNorm, Describe, Direction, NarrowGradient, Parts, Role, Summed};
use crate::model::Window;
use crate::ops::tensor::{Param, Tensor};

/// Depthwise convolution: y [N, P, P, C] from a = silu(BN(x)), or from x itself where `input_bn` is none
/// (a first-stage block after the first). Padding is zero *after* the activation. Weight [C, 1, k, k].
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseForward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub x: Tensor,
    pub input_bn: Option<BatchNorm>,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

impl Describe for DepthwiseForward {
    fn about(&self) -> About {
        About { name: "depthwise forward", operator: "depthwise", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        shape(self.window, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.x, Role::Activation);
        if let Some(bn) = &mut self.input_bn {
            parts.applies(bn);
        }
        parts.output(&mut self.y, &mut self.bn);
    }
}

/// Depthwise convolution of which the batch norm's coefficients are known before: a [N, P, P, C] = silu(BN(y)), where y
/// is what [`DepthwiseForward`] stores, and s [N, C], the mean of a over the pixels.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseInference {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub x: Tensor,
    pub input_bn: Option<BatchNorm>,
    pub weight: Param,
    pub bn: BatchNorm,
    pub a: Tensor,
    pub squeezed: Tensor,
}

impl Describe for DepthwiseInference {
    fn about(&self) -> About {
        About { name: "depthwise inference", operator: "depthwise", direction: Direction::Forward }
    }
    fn shape(&self) -> String {
        shape(self.window, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.x, Role::Activation);
        if let Some(bn) = &mut self.input_bn {
            parts.applies(bn);
        }
        parts.applies(&mut self.bn);
        parts.writes(&mut self.a, Role::Activation);
        parts.writes(&mut self.squeezed, Role::Gate);
    }
}

/// What the gradient at the depthwise convolution's input becomes.
#[derive(Clone, Copy, Debug)]
pub enum DepthwiseInput {
    /// a = silu(BN(x)): writes du = da·silu'(z) and fills the sums of this batch norm; not where it is not trained.
    Normalised { bn: BatchNorm, du: Option<Tensor> },
    /// a = x, the block's own input: writes dx = da (+ the shortcut's gradient).
    Identity(NarrowGradient),
}

/// Backward of BN2 and silu while loading (du2 = (da·gate + squeeze gradient)·silu'(z2)), then of the depthwise
/// convolution: data and weights in one sweep.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseBackward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub x: Tensor,
    pub input: DepthwiseInput,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// Gradient at a2·gate, [N, P, P, C].
    pub da: Tensor,
    /// [N, C].
    pub gate: Tensor,
    /// [N, C], ∂L/∂s divided by the pixels.
    pub squeeze_gradient: Tensor,
}

impl DepthwiseBackward {
    /// The gradient that it writes at the convolution's input, [N, R, R, C].
    pub fn gradient(&self) -> Option<Tensor> {
        match self.input {
            DepthwiseInput::Normalised { du, .. } => du,
            DepthwiseInput::Identity(narrow) => Some(narrow.dx),
        }
    }
}

impl Describe for DepthwiseBackward {
    fn about(&self) -> About {
        About { name: "depthwise backward", operator: "depthwise", direction: Direction::Backward }
    }
    fn shape(&self) -> String {
        shape(self.window, self.channels)
    }
    fn parts(&mut self, parts: &mut Parts) {
        parts.reads(&mut self.y, Role::Activation);
        parts.reads(&mut self.da, Role::Gradient);
        parts.reads(&mut self.gate, Role::Gate);
        parts.reads(&mut self.squeeze_gradient, Role::Gate);
        parts.applies_backward(&mut self.bn);
        parts.reads(&mut self.x, Role::Activation);
        parts.gradient(self.weight);
        match &mut self.input {
            DepthwiseInput::Normalised { bn, du: Some(du) } => {
                parts.writes(du, Role::Gradient);
                let pixels = self.window.input_pixels();
                parts.sums(bn, Summed { y: self.x, gradient: *du, keep: None, pixels });
            }
            DepthwiseInput::Normalised { bn, du: None } => parts.applies(bn),
            DepthwiseInput::Identity(narrow) => narrow.parts(parts),
        }
    }
}

fn shape(window: Window, channels: usize) -> String {
    format!("{}² k{} s{} {channels}", window.input, window.kernel, window.stride)
}
