//! The stem: images from bytes, the 3×3 convolution from three channels, its weight gradient.
//!
//! With 27 taps per pixel, a direct convolution is faster than a matrix of patches: channels are the vector's
//! lanes, each input value is broadcast to a vector and multiplied by its tap's row of weights. The rows
//! under the window are first copied to scratch memory with the padding's zeros, so that the loops have no special
//! cases. A task owns a fixed number of output rows, which may belong to several images.
//!
//! In the inner loops every address is a base and a constant: the stride is 2, and the weights of [`UNIT`] channels are
//! packed without gaps. With strides from memory the compiler keeps a pointer for each tap, more than there are
//! registers, and the loop takes twice the time. The sums go through memory on their way from the products to the
//! statistics, by an index that is no constant: else the compiler mixes both, and runs out of registers.

mod backward;

use std::ops::Range;

use super::batch_norm::{self, NormStatistics};
use super::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use super::gemm::rows::streams;
use super::memory::Shared;
use super::simd::{Element, Vector, dispatch, fence, prefetch_far};
use super::sweep::{each_vector, read, write};
use crate::model::Window;
use crate::ops::{StemForward, Tensor};

/// Output rows of a task.
const TASK_ROWS: usize = 64;
/// Side of the window, its stride, values under one of its rows, and values under all.
const SIDE: usize = 3;
const STRIDE: usize = 2;
const ROW_TAPS: usize = 3 * SIDE;
const TAPS: usize = ROW_TAPS * SIDE;
/// Values from a window's column to the next.
const STEP: usize = 3 * STRIDE;
/// Channels are rounded up to pairs of the widest vector in scratch and packed weights.
const UNIT: usize = 32;
/// Bytes that one task of [`prepare`] converts.
const CHUNK: usize = 3 << 14;

/// The convolution's geometry and its partition into tasks.
#[derive(Clone, Copy)]
struct Shape {
    window: Window,
    channels: usize,
    /// Output rows of all images.
    rows: usize,
}

impl Shape {
    fn new(images: usize, window: Window, channels: usize) -> Shape {
        assert_eq!([window.kernel, window.stride], [SIDE, STRIDE], "the stem's window is 3×3, its stride 2");
        Shape { window, channels, rows: images * window.output }
    }

    fn tasks(&self) -> usize {
        self.rows.div_ceil(TASK_ROWS)
    }

    fn rows_of(&self, task: usize) -> Range<usize> {
        task * TASK_ROWS..self.rows.min((task + 1) * TASK_ROWS)
    }

    fn padded(&self) -> usize {
        self.channels.next_multiple_of(UNIT)
    }

    /// Values of an image row in scratch memory.
    fn row_values(&self) -> usize {
        let reached = (self.window.output - 1) * STRIDE + SIDE;
        3 * reached.max(self.window.pad + self.window.input)
    }

    /// Copies the image rows under output row `row` to scratch, widened, zero outside the image.
    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn gather<V: Vector, E: Element>(&self, image: &[E], row: usize, rows: &mut [f32]) {
        let Window { input, output, pad, .. } = self.window;
        let (image, row) = (&image[row / output * input * input * 3..], row % output);
        for (ky, to) in rows.chunks_exact_mut(self.row_values()).enumerate() {
            let (left, right) = (3 * pad, 3 * (pad + input));
            match (row * STRIDE + ky).checked_sub(pad) {
                Some(y) if y < input => {
                    to[..left].fill(0.0);
                    // SAFETY: the caller's promise.
                    unsafe {
                        widen::<V, E>(&image[y * input * 3..(y + 1) * input * 3], &mut to[left..right])
                    };
                    to[right..].fill(0.0);
                }
                _ => to.fill(0.0),
            }
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn widen<V: Vector, E: Element>(from: &[E], to: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, to.len(), |at, count| {
            write(to, at, count, read::<V, _>(from, at, count));
        });
    }
}

/// The index of tap (ky, kx, ci) of channel c in PyTorch's [C, 3, 3, 3].
fn place_in_weight(tap: usize, channel: usize) -> usize {
    let (ky, kx, ci) = (tap / ROW_TAPS, tap % ROW_TAPS / 3, tap % 3);
    ((channel * 3 + ci) * SIDE + ky) * SIDE + kx
}

/// PyTorch's [C, 3, 3, 3] as [C rounded up / 32, 27, 32], zero beyond the last channel.
fn pack(weight: &[f32], channels: usize, to: &mut [f32]) {
    for (row, to) in to.chunks_exact_mut(UNIT).enumerate() {
        for (lane, to) in to.iter_mut().enumerate() {
            let (tap, channel) = (row % TAPS, row / TAPS * UNIT + lane);
            *to = if channel < channels { weight[place_in_weight(tap, channel)] } else { 0.0 };
        }
    }
}

struct Forward<'a, E> {
    shape: Shape,
    image: &'a [E],
    /// [C rounded up / 32, 27, 32].
    weights: &'a [f32],
    y: Shared<'a, E>,
    /// [tasks, 3, C], if the batch's are taken.
    statistics: Option<Shared<'a>>,
}

impl OnCpu for StemForward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = Shape::new(self.images, self.window, self.channels);
        let statistics = batch_norm::statistics_floats(shape.tasks(), shape.channels);
        WorkspaceFloats {
            shared: workspace_floats(&[TAPS * shape.padded(), statistics]),
            per_thread: SIDE * shape.row_values() + 3 * shape.padded(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = Shape::new(self.images, self.window, self.channels);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([weights, statistics], y, norm) = unsafe {
            let floats = batch_norm::statistics_floats(shape.tasks(), shape.channels);
            let lengths = [TAPS * shape.padded(), floats];
            (
                cx.workspace(lengths),
                Shared::new(cx.write_activation::<E>(self.y)),
                NormStatistics::of(cx, &self.bn),
            )
        };
        pack(cx.weight(self.weight), shape.channels, weights);
        let job = Forward {
            shape,
            image: cx.activation::<E>(self.image),
            weights,
            y,
            statistics: norm.is_some().then_some(Shared::new(&mut *statistics)),
        };
        assert_eq!(job.y.len(), shape.rows * self.window.output * self.channels);
        // SAFETY: `parallel` runs each number once.
        cx.parallel(shape.tasks(), |number, scratch| unsafe { forward_task(&job, number, scratch) });
        if let Some(norm) = norm {
            norm.finish(cx, statistics, |task| shape.rows_of(task).len() * shape.window.output);
        }
    }
}

dispatch! {
    /// # Safety
    /// Each number runs once.
    unsafe fn forward_task<E>(job: &Forward<E>, number: usize, scratch: &mut [f32]) => forward_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`forward_task`].
#[inline(always)]
unsafe fn forward_body<V: Vector, E: Element>(job: &Forward<E>, number: usize, scratch: &mut [f32]) {
    let shape = &job.shape;
    let (rows, rest) = scratch.split_at_mut(SIDE * shape.row_values());
    let statistics = &mut rest[..3 * shape.padded()];
    statistics.fill(0.0);
    let mut first = true;
    for row in shape.rows_of(number) {
        // SAFETY: the caller's promise.
        unsafe { shape.gather::<V, E>(job.image, row, rows) };
        let floats = shape.window.output * shape.channels;
        // SAFETY: each task writes its own rows.
        let y = unsafe { job.y.part(row * floats..(row + 1) * floats) };
        let mut column = 0;
        while column < shape.window.output {
            let width = shape.window.output - column;
            // SAFETY: the block's columns lie within the row; the rest is the caller's promise.
            unsafe {
                column += match width {
                    6.. => block::<V, E, 6>(job, rows, column, y, statistics, first),
                    4.. => block::<V, E, 4>(job, rows, column, y, statistics, first),
                    2.. => block::<V, E, 2>(job, rows, column, y, statistics, first),
                    _ => block::<V, E, 1>(job, rows, column, y, statistics, first),
                };
            }
            first = false;
        }
    }
    if streams::<E>(job.y.len()) {
        fence();
    }
    if let Some(partials) = job.statistics {
        for (row, from) in statistics.chunks_exact(shape.padded()).enumerate() {
            let at = (number * 3 + row) * shape.channels;
            // SAFETY: each task writes its own part.
            unsafe { partials.part(at..at + shape.channels) }.copy_from_slice(&from[..shape.channels]);
        }
    }
}

/// `B` pixels of an output row, two vectors of channels at a time. Returns `B`.
/// # Safety
/// The instruction set of `V` is present, and columns `column..column + B` exist.
#[inline(always)]
unsafe fn block<V: Vector, E: Element, const B: usize>(
    job: &Forward<E>,
    rows: &[f32],
    column: usize,
    y: &mut [E],
    statistics: &mut [f32],
    first: bool,
) -> usize {
    let shape = &job.shape;
    let streams = streams::<E>(job.y.len());
    for c in (0..shape.channels).step_by(2 * V::LANES) {
        // SAFETY: rows and weights are as long as the shape says; padded channels are pairs of vectors; the rest is the
        // caller's promise.
        unsafe {
            let mut sums = [[V::zero(); 2]; B];
            for ky in 0..SIDE {
                let values = rows.as_ptr().add(ky * shape.row_values() + column * STEP);
                let weights = job.weights.as_ptr().add((c / UNIT * TAPS + ky * ROW_TAPS) * UNIT + c % UNIT);
                for tap in 0..ROW_TAPS {
                    let w = weights.add(tap * UNIT);
                    let w = [V::load(w), V::load(w.add(V::LANES))];
                    for (j, sums) in sums.iter_mut().enumerate() {
                        let x = V::splat(*values.add(j * STEP + tap));
                        sums[0] = x.mul_add(w[0], sums[0]);
                        sums[1] = x.mul_add(w[1], sums[1]);
                    }
                }
            }
            for half in 0..2 {
                let c = c + half * V::LANES;
                if c >= shape.channels {
                    break;
                }
                for (j, sums) in sums.iter().enumerate() {
                    let to = y.as_mut_ptr().add((column + j) * shape.channels + c);
                    E::store_some(sums[half], to, V::LANES.min(shape.channels - c), streams);
                }
                if job.statistics.is_none() {
                    continue;
                }
                let to = statistics.as_mut_ptr().add(c);
                if first {
                    E::rounded(sums[0][half]).store(to);
                }
                let shift = V::load(to);
                let (mut sum, mut square) = (V::zero(), V::zero());
                for sums in &sums {
                    // Of the number as stored: it is what the statistics are applied to.
                    let d = E::rounded(sums[half]).sub(shift);
                    sum = sum.add(d);
                    square = d.mul_add(d, square);
                }
                let (to_sum, to_square) = (to.add(shape.padded()), to.add(2 * shape.padded()));
                V::load(to_sum).add(sum).store(to_sum);
                V::load(to_square).add(square).store(to_square);
            }
        }
    }
    B
}

/// image = (pixels/255 − mean)/deviation per channel, NHWC.
///
/// Only 3·256 results are possible, so a table has them, computed in double.
pub fn prepare<E: Element>(
    cx: &mut Context,
    image: Tensor,
    pixels: &[u8],
    mean: [f32; 3],
    deviation: [f32; 3],
) {
    let mut table = [[E::from_f32(0.0); 256]; 3];
    for (channel, row) in table.iter_mut().enumerate() {
        let (mean, deviation) = (mean[channel] as f64, deviation[channel] as f64);
        row.iter_mut().enumerate().for_each(|(byte, value)| {
            *value = E::from_f32(((byte as f64 / 255.0 - mean) / deviation) as f32)
        });
    }
    // SAFETY: `cx` is borrowed mutably, so nothing else uses the image.
    let image = Shared::new(unsafe { cx.write_activation::<E>(image) });
    assert_eq!(image.len(), pixels.len(), "one number for each byte");
    cx.parallel(pixels.len().div_ceil(CHUNK), |number, _| {
        let range = number * CHUNK..pixels.len().min((number + 1) * CHUNK);
        // SAFETY: each task writes its own chunk.
        let out = unsafe { image.part(range.clone()) };
        for (out, pixel) in out.chunks_exact_mut(3).zip(pixels[range].chunks_exact(3)) {
            for channel in 0..3 {
                out[channel] = table[channel][pixel[channel] as usize];
            }
        }
    });
}
