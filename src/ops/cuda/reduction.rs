//! The second stage of weight gradients: per-block partials, added up in a fixed order.

use super::context::Context;
use super::gpu::{Address, Gpu};
use crate::ops::{OpsError, Param, Result};

/// Adds Σ over parts of `partials` [parts, elements] (fp32, in the parameter's own order) to the parameter's
/// gradient, and raises the step's flag where that is not finite.
pub fn add_gradient<G: Gpu>(
    _cx: &mut Context<G>,
    _partials: Address,
    _parts: usize,
    _param: Param,
) -> Result {
    Err(OpsError::Device("reduction add_gradient is not written yet".into()))
}
