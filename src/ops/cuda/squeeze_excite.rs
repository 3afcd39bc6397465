//! Squeeze-excite: the mean over each image, two small dense layers, and their gradients.

use super::context::Context;
use super::gpu::Gpu;
use super::precision::Precision;
use crate::ops::{OpsError, Result, SqueezeBackward, SqueezeForward};

pub fn forward_workspace(_p: &SqueezeForward, _precision: Precision) -> usize {
    0
}

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &SqueezeForward) -> Result {
    Err(OpsError::Device("squeeze_excite forward is not written yet".into()))
}

pub fn backward_workspace(_p: &SqueezeBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &SqueezeBackward) -> Result {
    Err(OpsError::Device("squeeze_excite backward is not written yet".into()))
}
