//! The optimiser step.

use super::context::Context;
use super::gpu::Gpu;
use crate::ops::{OpsError, Result, Update};

pub fn update<G: Gpu>(_cx: &mut Context<G>, _p: &Update) -> Result {
    Err(OpsError::Device("optimiser update is not written yet".into()))
}

/// Makes the storage copy of the forward weights anew. Nothing to do in fp32.
pub fn store_weights<G: Gpu>(_cx: &mut Context<G>) -> Result {
    Err(OpsError::Device("optimiser store_weights is not written yet".into()))
}
