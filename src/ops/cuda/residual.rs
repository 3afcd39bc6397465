//! The end of a block.

use super::context::Context;
use super::gpu::Gpu;
use crate::ops::{OpsError, ResidualForward, Result};

pub fn forward<G: Gpu>(_cx: &mut Context<G>, _p: &ResidualForward) -> Result {
    Err(OpsError::Device("residual forward is not written yet".into()))
}
