//! Batch norm between passes: from the partial statistics of a pass's blocks to coefficients, in a fixed order.
//!
//! A pass of one rank alone finishes its statistics itself, see `kernels/batch_norm.cuh`; the kernels here are for several
//! ranks.
//!
//! A pass that stores y leaves `counts` [parts] and `moments` [parts, 2, C] in the workspace (see
//! `kernels/numeric.cuh`), a pass that makes `du` leaves Σdu and Σdu·ŷ as [parts, 2, C], all in fp32; these are added in
//! [`reduction`](super::reduction).
//!
//! With synchronised batch norm, each rank merges its own parts to one, and every rank merges the parts of all ranks
//! in rank order. The two sums of the backward pass are added over the ranks. The gradients of γ and β stay local
//! until their bucket is summed, as all gradients do. The computation waits for these two exchanges: they are small,
//! but there are many of them, so their cost is latency, and they wait behind buckets that are being summed.

use super::OnCuda;
use super::arguments::Kernel;
use super::context::Context;
use super::gpu::{Address, Gpu, Piece, Reduce};
use super::sources::batch_norm::{
    BATCH_NORM_THREADS, BatchNormInferenceArguments, BatchNormMergeArguments, BatchNormStatisticsArguments,
    FAN, LANES,
};
use crate::ops::{BatchNorm, BatchNormInference, OpsError, Result, Statistics};

/// Counts of arrivals for which there is memory: the squeeze-excite of 65,535 images of 3840 channels needs most.
pub const MOST_ARRIVALS: usize = 1 << 17;
pub const ARRIVALS_BYTES: usize = 4 * MOST_ARRIVALS;

const STATISTICS: Kernel<BatchNormStatisticsArguments> = Kernel::plain("batch_norm_statistics");
const MERGE: Kernel<BatchNormMergeArguments> = Kernel::plain("batch_norm_merge");
const INFERENCE: Kernel<BatchNormInferenceArguments> = Kernel::plain("batch_norm_inference");

/// Bytes of the counts and of the moments of `parts` parts. With several ranks the counts of all ranks follow the
/// first, this rank's merged part and all ranks' parts follow the second.
pub fn statistics_bytes(bn: &BatchNorm, parts: usize) -> [usize; 2] {
    let (counts, moments) = if bn.ranks > 1 { (bn.ranks, 1 + bn.ranks) } else { (0, 0) };
    [(parts + counts) * 4, (parts + moments) * moment_bytes(bn)]
}

/// The same for a pass, which may finish its statistics itself: the moments of groups of parts follow those of the parts.
pub fn parts_bytes(bn: &BatchNorm, parts: usize) -> [usize; 2] {
    match (bn.ranks, parts.div_ceil(FAN)) {
        (1, groups @ 2..) => [parts * 4, (parts + groups) * moment_bytes(bn)],
        _ => statistics_bytes(bn, parts),
    }
}

/// Bytes of the moments of one part.
fn moment_bytes(bn: &BatchNorm) -> usize {
    2 * bn.channels * 4
}

/// 1/M, with M the number of values of a channel over all ranks; 0 with running statistics, whose batch norms pass no sums
/// back.
pub fn inverse_rows(bn: &BatchNorm) -> f32 {
    1.0 / bn.values() as f32
}

/// Bytes of the sums of `parts` parts.
pub fn sums_bytes(parts: usize, channels: usize) -> usize {
    parts * 2 * channels * 4
}

/// The same where the pass adds its sums itself: those of groups of parts, with their errors, follow those of the parts.
pub fn added_sums_bytes(parts: usize, channels: usize) -> usize {
    match parts.div_ceil(FAN) {
        0..=1 => sums_bytes(parts, channels),
        groups => sums_bytes(parts + 2 * groups, channels),
    }
}

/// The counts by which the blocks of a pass know which of them is the last to arrive.
pub fn arrivals<G: Gpu>(cx: &Context<G>, parts: usize, slices: usize) -> Address {
    assert!(slices * (parts.div_ceil(FAN) + 1) <= MOST_ARRIVALS, "{slices} slices of {parts} parts");
    cx.state.arrivals
}

/// The partial statistics of a pass, in the workspace. Both addresses are null in inference, which takes no
/// statistics.
pub struct Parts {
    pub counts: Address,
    pub moments: Address,
    pub finish: Finish,
    number: usize,
}

/// What a pass needs to finish its statistics itself; all null if others do.
pub struct Finish {
    pub arrivals: Address,
    pub weight: Address,
    pub bias: Address,
    pub running_mean: Address,
    pub running_var: Address,
    pub coefficients: Address,
}

impl Finish {
    const NONE: Finish = Finish {
        arrivals: Address::NULL,
        weight: Address::NULL,
        bias: Address::NULL,
        running_mean: Address::NULL,
        running_var: Address::NULL,
        coefficients: Address::NULL,
    };

    fn of<G: Gpu>(cx: &Context<G>, bn: &BatchNorm, arrivals: Address) -> Finish {
        Finish {
            arrivals,
            weight: cx.weight(bn.weight),
            bias: cx.weight(bn.bias),
            running_mean: cx.running(bn.running_mean),
            running_var: cx.running(bn.running_var),
            coefficients: cx.tensor(bn.coefficients),
        }
    }
}

impl Parts {
    /// Takes workspace for `number` parts that others finish.
    fn left<G: Gpu>(cx: &Context<G>, bn: &BatchNorm, number: usize) -> Parts {
        let [counts, moments] = match bn.statistics {
            Statistics::Batch => cx.workspace(statistics_bytes(bn, number)),
            Statistics::Running => [Address::NULL; 2],
        };
        Parts { counts, moments, finish: Finish::NONE, number }
    }

    /// Takes workspace for `number` parts. `slices` of the channels have blocks of their own.
    pub fn of<G: Gpu>(cx: &Context<G>, bn: &BatchNorm, number: usize, slices: usize) -> Parts {
        if (bn.statistics, bn.ranks) != (Statistics::Batch, 1) {
            return Parts::left(cx, bn, number);
        }
        assert!(i32::try_from(bn.rows).is_ok(), "a pass has fewer rows");
        let [counts, moments] = cx.workspace(parts_bytes(bn, number));
        Parts { counts, moments, finish: Finish::of(cx, bn, arrivals(cx, number, slices)), number }
    }

    /// After the pass: computes the batch norm's coefficients from the parts.
    pub fn finish<G: Gpu>(self, cx: &mut Context<G>, bn: &BatchNorm) -> Result {
        match bn.statistics {
            Statistics::Batch if self.finish.arrivals == Address::NULL => {
                finish_statistics(cx, bn, self.counts, self.moments, self.number)
            }
            Statistics::Batch | Statistics::Running => Ok(()),
        }
    }
}

/// Merges the moments of all parts and of all synchronised ranks, computes the coefficients and updates the running
/// statistics (with the unbiased variance). A part may have no rows.
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
    let values = bn.rows * bn.ranks;
    let rows = i32::try_from(values).map_err(|_| {
        OpsError::Device(format!("batch norm over {values} values, 2³¹ at most; use a smaller --batch-size"))
    })?;
    let arguments = BatchNormStatisticsArguments {
        counts,
        moments,
        norm_weight: cx.weight(bn.weight),
        norm_bias: cx.weight(bn.bias),
        running_mean: cx.running(bn.running_mean),
        running_var: cx.running(bn.running_var),
        norm_coefficients: cx.tensor(bn.coefficients),
        momentum: bn.momentum,
        eps: bn.eps,
        parts: parts as i32,
        channels: bn.channels as i32,
        rows,
    };
    cx.launch(
        &STATISTICS,
        [bn.channels / LANES, 1, 1],
        BATCH_NORM_THREADS,
        2 * BATCH_NORM_THREADS * 8,
        arguments,
    )
}

/// Merges this rank's parts to one and gathers those of all ranks: their counts, moments and number.
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

/// Merges this rank's parts to one, stored behind them. Returns the address of the counts of all ranks, which are
/// equal, and that of this rank's moments.
pub fn merge<G: Gpu>(
    cx: &mut Context<G>,
    bn: &BatchNorm,
    counts: Address,
    moments: Address,
    parts: usize,
) -> Result<[Address; 2]> {
    let rank_counts = counts.offset(parts * 4);
    let merged = moments.offset(parts * moment_bytes(bn));
    let arguments = BatchNormMergeArguments {
        counts,
        moments,
        merged,
        rank_counts,
        parts: parts as i32,
        channels: bn.channels as i32,
        rows: bn.rows as i32,
        ranks: bn.ranks as i32,
    };
    cx.launch(
        &MERGE,
        [bn.channels / LANES, 1, 1],
        BATCH_NORM_THREADS,
        2 * BATCH_NORM_THREADS * 8,
        arguments,
    )?;
    Ok([rank_counts, merged])
}

/// With synchronised batch norm, sums `bn.sums` over the ranks.
pub fn exchange_sums<G: Gpu>(cx: &mut Context<G>, bn: &BatchNorm) -> Result {
    if !bn.is_shared() {
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
        // The running buffer has the statistics of all forward passes so far; an update copies them to the parameters.
        let statistic = |param| if cx.ema_weights { cx.weight(param) } else { cx.running(param) };
        let arguments = BatchNormInferenceArguments {
            norm_weight: cx.weight(bn.weight),
            norm_bias: cx.weight(bn.bias),
            running_mean: statistic(bn.running_mean),
            running_var: statistic(bn.running_var),
            norm_coefficients: cx.tensor(bn.coefficients),
            channels: bn.channels as i32,
            eps: bn.eps,
        };
        cx.launch(&INFERENCE, [bn.channels.div_ceil(256), 1, 1], 256, 0, arguments)
    }
}
