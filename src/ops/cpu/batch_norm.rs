//! Batch norm, the part between passes: from partial sums to coefficients.
//!
//! No pass exists for batch norm itself. The pass that stores y takes, per task, a shift (any value near the
//! data: the task's first row) and the sums of y−shift and (y−shift)², which keeps fp32 from cancelling where
//! the mean is far larger than the deviation. Here they are merged in double, in task order, into mean and
//! variance, and into the scale and shift that the next pass applies while loading. Backward likewise: the
//! pass that makes `du` leaves Σdu and Σdu·ŷ per task, here they are added up.

use super::context::{Context, Shared};
use crate::ops::{BatchNorm, Statistics};

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

/// Merges the statistics of all tasks, sets the coefficients and moves the running statistics (whose variance
/// is the unbiased one). `rows(task)` is how many rows the task summed; 0 is allowed.
pub fn finish_statistics(
    cx: &Context,
    bn: &BatchNorm,
    partials: &[f32],
    rows: impl Fn(usize) -> usize + Sync,
) {
    debug_assert_eq!(bn.statistics, Statistics::Batch);
    let channels = bn.channels;
    let coefficients = Shared::new(cx.write(bn.coefficients));
    let (weight, bias) = (cx.weight(bn.weight), cx.weight(bn.bias));
    let running_mean = Shared::new(cx.parameter_mut(bn.running_mean));
    let running_var = Shared::new(cx.parameter_mut(bn.running_var));
    each_block(cx, channels, partials.len(), |first, width| {
        let mut mean = [0.0f64; BLOCK];
        let mut square = [0.0f64; BLOCK];
        let tasks = || partials.chunks_exact(3 * channels).enumerate().filter(|(t, _)| rows(*t) > 0);
        for (task, part) in tasks() {
            let n = rows(task) as f64;
            for i in 0..width {
                mean[i] += part[first + i] as f64 * n + part[channels + first + i] as f64;
            }
        }
        let total = bn.rows as f64;
        mean.iter_mut().for_each(|m| *m /= total);
        for (task, part) in tasks() {
            let n = rows(task) as f64;
            for i in 0..width {
                let sum = part[channels + first + i] as f64;
                let own = part[first + i] as f64 + sum / n;
                let spread = part[2 * channels + first + i] as f64 - sum * sum / n;
                square[i] += spread.max(0.0) + n * (own - mean[i]) * (own - mean[i]);
            }
        }
        let momentum = bn.momentum as f64;
        // SAFETY: each block writes its own channels.
        let (running_mean, running_var) =
            unsafe { (running_mean.part(first..first + width), running_var.part(first..first + width)) };
        for i in 0..width {
            let variance = square[i] / total;
            let unbiased = square[i] / (total - 1.0).max(1.0);
            running_mean[i] = ((1.0 - momentum) * running_mean[i] as f64 + momentum * mean[i]) as f32;
            running_var[i] = ((1.0 - momentum) * running_var[i] as f64 + momentum * unbiased) as f32;
            let channel = first + i;
            let values = derive(mean[i], variance, bn.eps, weight[channel], bias[channel]);
            for (row, value) in values.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    coefficients.part(row * channels + channel..row * channels + channel + 1)[0] = value
                };
            }
        }
    });
}

/// The coefficients of one channel: mean, r, scale, shift.
fn derive(mean: f64, variance: f64, eps: f32, weight: f32, bias: f32) -> [f32; 4] {
    let r = 1.0 / (variance + eps as f64).sqrt();
    let scale = weight as f64 * r;
    [mean as f32, r as f32, scale as f32, (bias as f64 - mean * scale) as f32]
}

/// Coefficients from the running statistics.
pub fn inference(cx: &Context, bn: &BatchNorm) {
    let out = cx.write(bn.coefficients);
    let (weight, bias) = (cx.weight(bn.weight), cx.weight(bn.bias));
    let (mean, variance) = (cx.weight(bn.running_mean), cx.weight(bn.running_var));
    for c in 0..bn.channels {
        let values = derive(mean[c] as f64, variance[c] as f64, bn.eps, weight[c], bias[c]);
        for (row, value) in values.into_iter().enumerate() {
            out[row * bn.channels + c] = value;
        }
    }
}

/// Adds up the tasks' Σdu and Σdu·ŷ ([tasks, 2, C]) into `bn.sums` and the gradients of β and γ.
pub fn finish_sums(cx: &Context, bn: &BatchNorm, partials: &[f32]) {
    let channels = bn.channels;
    let sums = Shared::new(cx.write(bn.sums));
    let bias = Shared::new(cx.gradient_mut(bn.bias));
    let weight = Shared::new(cx.gradient_mut(bn.weight));
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
                (sums.part(at..at + width), gradient.part(first..first + width))
            };
            for i in 0..width {
                sums[i] = total[i] as f32;
                gradient[i] += total[i] as f32;
            }
        }
    });
}

/// Coefficients [4, C] of dy = a·du + b·(y − μ) + c, that is γ·r·(du − Σdu/M − ŷ·Σ(du·ŷ)/M): rows a, b, c, μ.
pub fn backward_coefficients(cx: &Context, bn: &BatchNorm, out: &mut [f32]) {
    let channels = bn.channels;
    let (coefficients, sums) = (cx.read(bn.coefficients), cx.read(bn.sums));
    for c in 0..channels {
        let [mean, r, scale] = [0, 1, 2].map(|row| coefficients[row * channels + c] as f64);
        let m = bn.rows as f64;
        out[c] = scale as f32;
        out[channels + c] = (-scale * r * sums[channels + c] as f64 / m) as f32;
        out[2 * channels + c] = (-scale * sums[c] as f64 / m) as f32;
        out[3 * channels + c] = mean as f32;
    }
}

/// Runs `task(first channel, width)` over blocks of channels, on all threads where that pays.
fn each_block(cx: &Context, channels: usize, work: usize, task: impl Fn(usize, usize) + Sync) {
    let blocks = channels.div_ceil(BLOCK);
    let run = |number: usize| task(number * BLOCK, BLOCK.min(channels - number * BLOCK));
    if work < 1 << 16 {
        return (0..blocks).for_each(run);
    }
    cx.parallel(blocks, |number, _| run(number));
}
