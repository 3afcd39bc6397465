//! The stem: the 3×3 convolution from three channels and its weight gradient.

use super::context::Context;
use super::gpu::Gpu;
use super::precision::Precision;
use crate::ops::{OpsError, Result, StemBackward, StemForward};

pub fn forward_workspace(_p: &StemForward, _precision: Precision) -> usize {
    0
}

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &StemForward) -> Result {
    Err(OpsError::Device("stem forward is not written yet".into()))
}

pub fn backward_workspace(_p: &StemBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &StemBackward) -> Result {
    Err(OpsError::Device("stem backward is not written yet".into()))
}
