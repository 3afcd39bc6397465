//! Batch norm, the part between passes: from partial sums to coefficients.
//!
//! Batch norm in training has no pass. The pass that stores y takes, per task, a shift (any value near the
//! data: the task's first row) and the sums of y−shift and (y−shift)². The shift prevents cancellation in fp32 when
//! the mean is far larger than the deviation. This module merges the sums in double, in task order, into mean and
//! variance, and derives the scale and shift that the next pass applies while loading. Backward, the pass that
//! computes `du` stores Σdu and Σdu·ŷ per task, and this module adds them up.

use super::context::{Context, OnCpu};
use super::memory::Shared;
use super::simd::Element;
use crate::ops::{BatchNorm, BatchNormInference, Statistics};

/// Channels that are merged at once.
const BLOCK: usize = 32;

/// Floats of the per-task statistics: [tasks, 3, C] of shift, Σ(y−shift), Σ(y−shift)².
pub fn statistics_floats(tasks: usize, channels: usize) -> usize {
    tasks * 3 * channels
}

/// Floats of the per-task backward sums: [tasks, 2, C] of Σdu, Σdu·ŷ.
pub fn sums_floats(tasks: usize, channels: usize) -> usize {
    tasks * 2 * channels
}

/// The memory that a pass writes when it takes a batch norm's statistics.
pub struct NormStatistics<'a> {
    bn: &'a BatchNorm,
    coefficients: Shared<'a>,
    weight: &'a [f32],
    bias: &'a [f32],
    running_mean: Shared<'a>,
    running_var: Shared<'a>,
}

impl<'a> NormStatistics<'a> {
    /// None if the statistics are not the batch's.
    ///
    /// # Safety
    /// As for [`Context::write`]: the pass takes the coefficients and the running statistics of `bn` once.
    pub unsafe fn of(cx: &'a Context, bn: &'a BatchNorm) -> Option<NormStatistics<'a>> {
        if bn.statistics != Statistics::Batch {
            return None;
        }
        // SAFETY: the caller's promise.
        unsafe {
            Some(NormStatistics {
                bn,
                coefficients: Shared::new(cx.write(bn.coefficients)),
                weight: cx.weight(bn.weight),
                bias: cx.weight(bn.bias),
                running_mean: Shared::new(cx.parameter_mut(bn.running_mean)),
                running_var: Shared::new(cx.parameter_mut(bn.running_var)),
            })
        }
    }

    /// Merges the statistics of all tasks, sets the coefficients and moves the running statistics (whose variance
    /// is the unbiased one). `rows(task)` is the number of rows that the task summed; 0 is allowed.
    pub fn finish(self, cx: &Context, partials: &[f32], rows: impl Fn(usize) -> usize + Sync) {
        let bn = self.bn;
        let channels = bn.channels;
        let partials = Partials { partials, channels, rows: &rows };
        let exchange = match &cx.exchange {
            Some(exchange) if bn.ranks > 1 => exchange,
            _ => {
                assert_eq!(bn.ranks, 1, "batch norm over ranks that are not connected");
                return each_block(cx, channels, partials.partials.len(), |first, width| {
                    let Merged { mean, spread } = partials.merge(bn.rows as f64, first, width);
                    // SAFETY: each block sets its own channels.
                    unsafe { self.set(first, &mean[..width], &spread[..width]) };
                });
            }
        };
        // Each rank merges its own rows, then every rank merges all ranks' results in the same order.
        let fill = |own: &mut [f64]| {
            let own = Shared::new(own);
            each_block(cx, channels, partials.partials.len(), |first, width| {
                let Merged { mean, spread } = partials.merge(bn.rows as f64, first, width);
                // SAFETY: each block writes its own channels.
                unsafe {
                    own.part(first..first + width).copy_from_slice(&mean[..width]);
                    own.part(channels + first..channels + first + width).copy_from_slice(&spread[..width]);
                }
            });
        };
        let take = |all: &[f64]| {
            for channel in 0..channels {
                let ranks =
                    || all.chunks_exact(2 * channels).map(|rank| (rank[channel], rank[channels + channel]));
                let mean = ranks().map(|(mean, _)| mean).sum::<f64>() / bn.ranks as f64;
                let apart = |(own, spread)| spread + bn.rows as f64 * (own - mean) * (own - mean);
                // SAFETY: one thread sets all channels.
                unsafe { self.set(channel, &[mean], &[ranks().map(apart).sum()]) };
            }
        };
        exchange.gather(2 * channels, fill, take);
    }

    /// Sets the coefficients of the channels from `first` on, and moves their running statistics.
    ///
    /// # Safety
    /// Threads that call this at the same time set different channels.
    unsafe fn set(&self, first: usize, mean: &[f64], spread: &[f64]) {
        let BatchNorm { channels, momentum, eps, .. } = *self.bn;
        let (momentum, total) = (momentum as f64, (self.bn.rows * self.bn.ranks) as f64);
        let own = first..first + mean.len();
        // SAFETY: the caller's promise.
        let (running_mean, running_var) =
            unsafe { (self.running_mean.part(own.clone()), self.running_var.part(own)) };
        for i in 0..mean.len() {
            let unbiased = spread[i] / (total - 1.0).max(1.0);
            running_mean[i] = ((1.0 - momentum) * running_mean[i] as f64 + momentum * mean[i]) as f32;
            running_var[i] = ((1.0 - momentum) * running_var[i] as f64 + momentum * unbiased) as f32;
            let channel = first + i;
            let values = derive(mean[i], spread[i] / total, eps, self.weight[channel], self.bias[channel]);
            for (row, value) in values.into_iter().enumerate() {
                let at = row * channels + channel;
                // SAFETY: as above.
                unsafe { self.coefficients.part(at..at + 1)[0] = value };
            }
        }
    }
}

/// The sums of a pass's tasks.
struct Partials<'a, R> {
    /// [tasks, 3, C], see [`statistics_floats`].
    partials: &'a [f32],
    channels: usize,
    rows: &'a R,
}

/// Mean and Σ(y − mean)² of some channels.
struct Merged {
    mean: [f64; BLOCK],
    spread: [f64; BLOCK],
}

impl<R: Fn(usize) -> usize> Partials<'_, R> {
    /// Merges channels `first..first + width`, at most [`BLOCK`], of all tasks: `total` rows.
    fn merge(&self, total: f64, first: usize, width: usize) -> Merged {
        let Partials { channels, rows, .. } = *self;
        let (mut mean, mut spread) = ([0.0f64; BLOCK], [0.0f64; BLOCK]);
        let tasks = || self.partials.chunks_exact(3 * channels).enumerate().filter(|(t, _)| rows(*t) > 0);
        for (task, part) in tasks() {
            let n = rows(task) as f64;
            for i in 0..width {
                mean[i] += part[first + i] as f64 * n + part[channels + first + i] as f64;
            }
        }
        mean.iter_mut().for_each(|m| *m /= total);
        for (task, part) in tasks() {
            let n = rows(task) as f64;
            for i in 0..width {
                let sum = part[channels + first + i] as f64;
                let own = part[first + i] as f64 + sum / n;
                let apart = part[2 * channels + first + i] as f64 - sum * sum / n;
                spread[i] += apart.max(0.0) + n * (own - mean[i]) * (own - mean[i]);
            }
        }
        Merged { mean, spread }
    }
}

/// The coefficients of one channel: mean, r, scale, shift.
fn derive(mean: f64, variance: f64, eps: f32, weight: f32, bias: f32) -> [f32; 4] {
    let r = 1.0 / (variance + eps as f64).sqrt();
    let scale = weight as f64 * r;
    [mean as f32, r as f32, scale as f32, (bias as f64 - mean * scale) as f32]
}

impl OnCpu for BatchNormInference {
    unsafe fn run<E: Element>(&self, cx: &Context) {
        let bn = &self.bn;
        // SAFETY: the caller's promise, and the pass takes them once.
        let out = unsafe { cx.write(bn.coefficients) };
        let (weight, bias) = (cx.weight(bn.weight), cx.weight(bn.bias));
        let (mean, variance) = (cx.weight(bn.running_mean), cx.weight(bn.running_var));
        for c in 0..bn.channels {
            let values = derive(mean[c] as f64, variance[c] as f64, bn.eps, weight[c], bias[c]);
            for (row, value) in values.into_iter().enumerate() {
                out[row * bn.channels + c] = value;
            }
        }
    }
}

/// The memory that a pass writes when it takes the sums of a batch norm's backward formula.
pub struct NormSums<'a> {
    bn: &'a BatchNorm,
    sums: &'a mut [f32],
    bias: Shared<'a>,
    weight: Shared<'a>,
}

impl<'a> NormSums<'a> {
    /// # Safety
    /// As for [`Context::write`]: the pass takes the sums of `bn` and the gradients of β and γ once.
    pub unsafe fn of(cx: &'a Context, bn: &'a BatchNorm) -> NormSums<'a> {
        // SAFETY: the caller's promise.
        unsafe {
            NormSums {
                bn,
                sums: cx.write(bn.sums),
                bias: Shared::new(cx.gradient_mut(bn.bias)),
                weight: Shared::new(cx.gradient_mut(bn.weight)),
            }
        }
    }

    /// Adds up the tasks' Σdu and Σdu·ŷ ([tasks, 2, C]) into `bn.sums` and the gradients of β and γ. If the ranks take
    /// their statistics together, `bn.sums` become the sums of all ranks. The gradients stay this rank's, like all
    /// gradients.
    pub fn finish(self, cx: &Context, partials: &[f32]) {
        let NormSums { bn, sums, bias, weight } = self;
        let channels = bn.channels;
        let shared = Shared::new(&mut *sums);
        each_block(cx, channels, partials.len(), |first, width| {
            for (row, gradient) in [(0, bias), (1, weight)] {
                let mut total = [0.0f64; BLOCK];
                for part in partials.chunks_exact(2 * channels) {
                    for i in 0..width {
                        total[i] += part[row * channels + first + i] as f64;
                    }
                }
                // SAFETY: each block writes its own channels.
                let (sums, gradient) = unsafe {
                    let at = row * channels + first;
                    (shared.part(at..at + width), gradient.part(first..first + width))
                };
                for i in 0..width {
                    sums[i] = total[i] as f32;
                    gradient[i] += total[i] as f32;
                }
            }
        });
        let exchange = match &cx.exchange {
            Some(exchange) if bn.is_shared() => exchange,
            _ => return,
        };
        let own = sums.to_vec();
        exchange.gather(
            own.len(),
            |numbers| numbers.iter_mut().zip(&own).for_each(|(number, own)| *number = f64::from(*own)),
            |all| {
                for (at, sum) in sums.iter_mut().enumerate() {
                    *sum = all.chunks_exact(own.len()).map(|rank| rank[at]).sum::<f64>() as f32;
                }
            },
        );
    }
}

/// Coefficients [4, C] of dy = a·du + b·(y − μ) + c, that is γ·r·(du − Σdu/M − ŷ·Σ(du·ŷ)/M): rows a, b, c, μ. With running
/// statistics b and c are 0.
pub fn backward_coefficients(cx: &Context, bn: &BatchNorm, out: &mut [f32]) {
    let channels = bn.channels;
    let (coefficients, sums) = (cx.read(bn.coefficients), cx.read(bn.sums));
    for c in 0..channels {
        let [mean, r, scale] = [0, 1, 2].map(|row| coefficients[row * channels + c] as f64);
        let m = bn.values();
        out[c] = scale as f32;
        out[channels + c] = (-scale * r * sums[channels + c] as f64 / m) as f32;
        out[2 * channels + c] = (-scale * sums[c] as f64 / m) as f32;
        out[3 * channels + c] = mean as f32;
    }
}

/// Runs `task(first channel, width)` over blocks of channels, on all threads if there is enough work.
fn each_block(cx: &Context, channels: usize, work: usize, task: impl Fn(usize, usize) + Sync) {
    let blocks = channels.div_ceil(BLOCK);
    let run = |number: usize| task(number * BLOCK, BLOCK.min(channels - number * BLOCK));
    if work < 1 << 16 {
        return (0..blocks).for_each(run);
    }
    cx.parallel(blocks, |number, _| run(number));
}
