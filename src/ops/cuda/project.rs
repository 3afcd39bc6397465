//! The pointwise projection.

use super::context::Context;
use super::gpu::Gpu;
use super::precision::Precision;
use crate::ops::{OpsError, ProjectBackward, ProjectForward, Result};

pub fn forward_workspace(_p: &ProjectForward, _precision: Precision) -> usize {
    0
}

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &ProjectForward) -> Result {
    Err(OpsError::Device("project forward is not written yet".into()))
}

pub fn backward_workspace(_p: &ProjectBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &ProjectBackward) -> Result {
    Err(OpsError::Device("project backward is not written yet".into()))
}
