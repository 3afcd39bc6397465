//! The depthwise convolution.

use super::context::Context;
use super::gpu::Gpu;
use super::precision::Precision;
use crate::ops::{DepthwiseBackward, DepthwiseForward, OpsError, Result};

pub fn forward_workspace(_p: &DepthwiseForward, _precision: Precision) -> usize {
    0
}

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &DepthwiseForward) -> Result {
    Err(OpsError::Device("depthwise forward is not written yet".into()))
}

pub fn backward_workspace(_p: &DepthwiseBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &DepthwiseBackward) -> Result {
    Err(OpsError::Device("depthwise backward is not written yet".into()))
}
