//! The pointwise expansion (and the head's convolution).

use super::context::Context;
use super::gpu::Gpu;
use super::precision::Precision;
use crate::ops::{ExpandBackward, ExpandForward, OpsError, Result};

pub fn forward_workspace(_p: &ExpandForward, _precision: Precision) -> usize {
    0
}

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &ExpandForward) -> Result {
    Err(OpsError::Device("expand forward is not written yet".into()))
}

pub fn backward_workspace(_p: &ExpandBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &ExpandBackward) -> Result {
    Err(OpsError::Device("expand backward is not written yet".into()))
}
