//! The head: pooling, classifier, loss.

use super::context::Context;
use super::gpu::Gpu;
use super::precision::Precision;
use crate::ops::{HeadBackward, HeadForward, Loss, OpsError, Result};

pub fn forward_workspace(_p: &HeadForward, _precision: Precision) -> usize {
    0
}

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &HeadForward) -> Result {
    Err(OpsError::Device("head forward is not written yet".into()))
}

pub fn loss<G: Gpu>(_cx: &mut Context<G>, _p: &Loss) -> Result {
    Err(OpsError::Device("head loss is not written yet".into()))
}

pub fn backward_workspace(_p: &HeadBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &HeadBackward) -> Result {
    Err(OpsError::Device("head backward is not written yet".into()))
}
