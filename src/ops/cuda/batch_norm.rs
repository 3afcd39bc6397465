//! Batch norm between passes: from the partial sums of a pass's blocks to coefficients, in double and in order.
//!
//! A pass that stores y leaves `counts` [parts] and `moments` [parts, 2, C] (see `kernels/numeric.cuh`), one that
//! makes `du` leaves [parts, 2, C] of Σdu and Σdu·ŷ, all fp32, in the workspace.

use super::context::Context;
use super::gpu::{Address, Gpu};
use crate::ops::{BatchNorm, OpsError, Result};

/// Bytes of the counts and of the moments of `parts` parts.
pub fn statistics_bytes(parts: usize, channels: usize) -> [usize; 2] {
    [parts * 4, parts * 2 * channels * 4]
}

/// Bytes of the sums of `parts` parts.
pub fn sums_bytes(parts: usize, channels: usize) -> usize {
    parts * 2 * channels * 4
}

/// Merges the moments of all parts, sets the coefficients and moves the running statistics (whose variance is the
/// unbiased one). Parts of no rows are allowed.
pub fn finish_statistics<G: Gpu>(
    _cx: &mut Context<G>,
    _bn: &BatchNorm,
    _counts: Address,
    _moments: Address,
    _parts: usize,
) -> Result {
    Err(OpsError::Device("batch_norm finish_statistics is not written yet".into()))
}

/// Adds up the parts' Σdu and Σdu·ŷ into `bn.sums`, and adds them to the gradients of β and γ.
pub fn finish_sums<G: Gpu>(
    _cx: &mut Context<G>,
    _bn: &BatchNorm,
    _partials: Address,
    _parts: usize,
) -> Result {
    Err(OpsError::Device("batch_norm finish_sums is not written yet".into()))
}

/// Coefficients from the running statistics.
pub fn inference<G: Gpu>(_cx: &mut Context<G>, _bn: &BatchNorm) -> Result {
    Err(OpsError::Device("batch_norm inference is not written yet".into()))
}
