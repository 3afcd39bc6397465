//! Stochastic-depth and dropout factors.

use super::context::Context;
use super::gpu::Gpu;
use crate::ops::{DropPathMask, DropoutMask, OpsError, Result};

pub fn drop_path<G: Gpu>(_cx: &mut Context<G>, _p: &DropPathMask) -> Result {
    Err(OpsError::Device("masks drop_path is not written yet".into()))
}

pub fn dropout<G: Gpu>(_cx: &mut Context<G>, _p: &DropoutMask) -> Result {
    Err(OpsError::Device("masks dropout is not written yet".into()))
}
