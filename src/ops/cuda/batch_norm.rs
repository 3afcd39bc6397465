//! Batch norm between passes: from the partial sums of a pass's blocks to coefficients, in a fixed order.
//!
//! A pass that stores y leaves `counts` [parts] and `moments` [parts, 2, C] (see `kernels/numeric.cuh`), one that
//! makes `du` leaves [parts, 2, C] of Σdu and Σdu·ŷ, all fp32, in the workspace.
//!
//! Where ranks take their statistics together, each merges its own parts to one, and all merge all ranks' in rank order;
//! the two sums of the backward pass are added up over the ranks, while the gradients of γ and β stay each rank's own, as
//! all gradients do until their bucket is summed. The computation waits for both: they are small, but so many that they
//! are bound by latency, and wait behind buckets under way.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::context::Context;
use super::gpu::{Address, Gpu, Piece, Reduce};
use crate::ops::{BatchNorm, BatchNormInference, Result, Statistics};

/// Channels of a block, and groups of parts: `LANES` and `GROUPS` of the kernels.
const LANES: usize = 8;
const GROUPS: usize = 64;
const THREADS: usize = LANES * GROUPS;

arguments! {
    /// See `kernels/batch_norm.cu`.
    pub struct StatisticsArguments {
        counts: Address,
        moments: Address,
        weight: Address,
        bias: Address,
        running_mean: Address,
        running_var: Address,
        coefficients: Address,
        parts: i32,
        channels: i32,
        rows: i32,
        momentum: f32,
        eps: f32,
    }
}

arguments! {
    /// See `kernels/batch_norm.cu`.
    pub struct MergeArguments {
        counts: Address,
        moments: Address,
        merged: Address,
        rank_counts: Address,
        parts: i32,
        channels: i32,
        rows: i32,
        ranks: i32,
    }
}

arguments! {
    /// See `kernels/batch_norm.cu`.
    pub struct InferenceArguments {
        weight: Address,
        bias: Address,
        running_mean: Address,
        running_var: Address,
        coefficients: Address,
        channels: i32,
        eps: f32,
    }
}

arguments! {
    /// See `kernels/batch_norm.cu`.
    pub struct SumsArguments {
        partials: Address,
        sums: Address,
        bias_gradient: Address,
        weight_gradient: Address,
        block: Address,
        parts: i32,
        channels: i32,
    }
}

const STATISTICS: Kernel<StatisticsArguments> = Kernel::plain("batch_norm_statistics");
const MERGE: Kernel<MergeArguments> = Kernel::plain("batch_norm_merge");
const INFERENCE: Kernel<InferenceArguments> = Kernel::plain("batch_norm_inference");
const SUMS: Kernel<SumsArguments> = Kernel::plain("batch_norm_sums");

/// Bytes of the counts and of the moments of `parts` parts, and behind them those of the ranks: their counts; their own
/// part and all ranks'.
pub fn statistics_bytes(bn: &BatchNorm, parts: usize) -> [usize; 2] {
    let (counts, moments) = if bn.ranks > 1 { (bn.ranks, 1 + bn.ranks) } else { (0, 0) };
    [(parts + counts) * 4, (parts + moments) * moment_bytes(bn)]
}

/// Of one part.
fn moment_bytes(bn: &BatchNorm) -> usize {
    2 * bn.channels * 4
}

/// 1/M.
pub fn inverse_rows(bn: &BatchNorm) -> f32 {
    1.0 / (bn.rows * bn.ranks) as f32
}

/// Bytes of the sums of `parts` parts.
pub fn sums_bytes(parts: usize, channels: usize) -> usize {
    parts * 2 * channels * 4
}

/// Merges the moments of all parts, and of all ranks that take their statistics together, sets the coefficients and moves
/// the running statistics (whose variance is the unbiased one). Parts of no rows are allowed.
pub fn finish_statistics<G: Gpu>(
    cx: &mut Context<G>,
    bn: &BatchNorm,
    counts: Address,
    moments: Address,
    parts: usize,
) -> Result {
    debug_assert_eq!(bn.statistics, Statistics::Batch);
    assert_eq!(bn.channels % LANES, 0, "channels come in vectors");
    let (counts, moments, parts) = match bn.ranks {
        1 => (counts, moments, parts),
        _ => gather(cx, bn, counts, moments, parts)?,
    };
    let arguments = StatisticsArguments {
        counts,
        moments,
        weight: cx.weight(bn.weight),
        bias: cx.weight(bn.bias),
        running_mean: cx.running(bn.running_mean),
        running_var: cx.running(bn.running_var),
        coefficients: cx.tensor(bn.coefficients),
        parts: parts as i32,
        channels: bn.channels as i32,
        rows: (bn.rows * bn.ranks) as i32,
        momentum: bn.momentum,
        eps: bn.eps,
    };
    cx.launch(&STATISTICS, [bn.channels / LANES, 1, 1], THREADS, 2 * THREADS * 8, arguments)
}

/// Makes one part of this rank's parts and gathers those of all ranks: their counts, moments and number.
fn gather<G: Gpu>(
    cx: &mut Context<G>,
    bn: &BatchNorm,
    counts: Address,
    moments: Address,
    parts: usize,
) -> Result<(Address, Address, usize)> {
    let [rank_counts, merged] = merge(cx, bn, counts, moments, parts)?;
    let all = merged.offset(moment_bytes(bn));
    cx.gpu.collective_begin()?;
    cx.gpu.all_gather(merged, all, moment_bytes(bn))?;
    cx.gpu.collective_end()?;
    Ok((rank_counts, all, bn.ranks))
}

/// Makes one part of this rank's parts, behind them: where the counts of all ranks lie, which are alike, and this rank's
/// moments.
pub fn merge<G: Gpu>(
    cx: &mut Context<G>,
    bn: &BatchNorm,
    counts: Address,
    moments: Address,
    parts: usize,
) -> Result<[Address; 2]> {
    let rank_counts = counts.offset(parts * 4);
    let merged = moments.offset(parts * moment_bytes(bn));
    let arguments = MergeArguments {
        counts,
        moments,
        merged,
        rank_counts,
        parts: parts as i32,
        channels: bn.channels as i32,
        rows: bn.rows as i32,
        ranks: bn.ranks as i32,
    };
    cx.launch(&MERGE, [bn.channels / LANES, 1, 1], THREADS, 2 * THREADS * 8, arguments)?;
    Ok([rank_counts, merged])
}

/// Adds up the parts' Σdu and Σdu·ŷ into `bn.sums`, and adds them to the gradients of β and γ, raising the step's
/// flag where those are not finite. Then `bn.sums` become those of all ranks that take their statistics together.
pub fn finish_sums<G: Gpu>(cx: &mut Context<G>, bn: &BatchNorm, partials: Address, parts: usize) -> Result {
    assert_eq!(bn.channels % LANES, 0, "channels come in vectors");
    let arguments = SumsArguments {
        partials,
        sums: cx.tensor(bn.sums),
        bias_gradient: cx.gradient(bn.bias),
        weight_gradient: cx.gradient(bn.weight),
        block: cx.state.block,
        parts: parts as i32,
        channels: bn.channels as i32,
    };
    cx.launch(&SUMS, [2 * bn.channels / LANES, 1, 1], THREADS, THREADS * 8, arguments)?;
    if bn.ranks == 1 {
        return Ok(());
    }
    let sums = Piece { at: cx.tensor(bn.sums), elements: 2 * bn.channels, how: Reduce::SumF32 };
    cx.gpu.collective_begin()?;
    cx.gpu.all_reduce(&[sums])?;
    cx.gpu.collective_end()
}

impl OnCuda for BatchNormInference {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let bn = &self.bn;
        // Those of the forward passes so far: after an update they are the parameters' own.
        let statistic = |param| if cx.ema_weights { cx.weight(param) } else { cx.running(param) };
        let arguments = InferenceArguments {
            weight: cx.weight(bn.weight),
            bias: cx.weight(bn.bias),
            running_mean: statistic(bn.running_mean),
            running_var: statistic(bn.running_var),
            coefficients: cx.tensor(bn.coefficients),
            channels: bn.channels as i32,
            eps: bn.eps,
        };
        cx.launch(&INFERENCE, [bn.channels.div_ceil(256), 1, 1], 256, 0, arguments)
    }
}
