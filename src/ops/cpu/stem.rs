//! The stem: images from bytes, the 3×3 convolution from three channels, its weight gradient.
//!
//! With 27 taps per pixel, a direct convolution is faster than a matrix of patches: channels are the vector's
//! lanes, each input value is broadcast to a vector and multiplied by its tap's row of weights. The rows
//! under the window are first copied to scratch memory with the padding's zeros, so that the loops have no special
//! cases. A task owns a fixed number of output rows, which may belong to several images.

use std::ops::Range;

use super::batch_norm::{self, NormStatistics};
use super::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use super::memory::Shared;
use super::simd::{Element, Vector, dispatch};
use super::sweep::{each_vector, read, write};
use crate::model::Window;
use crate::ops::{StemBackward, StemForward, Tensor};

/// Output rows of a task.
const TASK_ROWS: usize = 64;
/// Side of the window, values under one of its rows, and values under all.
const SIDE: usize = 3;
const ROW_TAPS: usize = 3 * SIDE;
const TAPS: usize = ROW_TAPS * SIDE;
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
        assert_eq!(window.kernel, SIDE, "the stem's window is 3×3");
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
        let reached = (self.window.output - 1) * self.window.stride + SIDE;
        3 * reached.max(self.window.pad + self.window.input)
    }

    /// Copies the image rows under output row `row` to scratch, widened, zero outside the image.
    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn gather<V: Vector, E: Element>(&self, image: &[E], row: usize, rows: &mut [f32]) {
        let Window { stride, input, output, pad, .. } = self.window;
        let (image, row) = (&image[row / output * input * input * 3..], row % output);
        for (ky, to) in rows.chunks_exact_mut(self.row_values()).enumerate() {
            let (left, right) = (3 * pad, 3 * (pad + input));
            match (row * stride + ky).checked_sub(pad) {
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

struct Forward<'a, E> {
    shape: Shape,
    image: &'a [E],
    /// [27, C rounded up].
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
        let weight = cx.weight(self.weight);
        for (tap, row) in weights.chunks_exact_mut(shape.padded()).enumerate() {
            row.fill(0.0);
            row[..shape.channels]
                .iter_mut()
                .enumerate()
                .for_each(|(c, w)| *w = weight[place_in_weight(tap, c)]);
        }
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

struct Backward<'a, E> {
    shape: Shape,
    image: &'a [E],
    y: &'a [E],
    du: &'a [E],
    /// [4, C] of dy = a·du + b·(y−μ) + c.
    coefficients: &'a [f32],
    /// [tasks, 27, C].
    partials: Shared<'a>,
}

impl OnCpu for StemBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = Shape::new(self.images, self.window, self.channels);
        WorkspaceFloats {
            shared: workspace_floats(&[4 * shape.channels, shape.tasks() * TAPS * shape.channels]),
            per_thread: SIDE * shape.row_values() + (self.window.output + TAPS) * shape.padded(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = Shape::new(self.images, self.window, self.channels);
        let channels = shape.channels;
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([coefficients, partials], gradient) = unsafe {
            let lengths = [4 * channels, shape.tasks() * TAPS * channels];
            (cx.workspace(lengths), cx.gradient_mut(self.weight))
        };
        batch_norm::backward_coefficients(cx, &self.bn, coefficients);
        let job = Backward {
            shape,
            image: cx.activation::<E>(self.image),
            y: cx.activation::<E>(self.y),
            du: cx.activation::<E>(self.du),
            coefficients,
            partials: Shared::new(&mut *partials),
        };
        assert_eq!([job.y.len(), job.du.len()], [shape.rows * self.window.output * channels; 2]);
        // SAFETY: `parallel` runs each number once.
        cx.parallel(shape.tasks(), |number, scratch| unsafe { backward_task(&job, number, scratch) });
        for at in 0..TAPS * channels {
            let total: f64 = partials.chunks_exact(TAPS * channels).map(|part| part[at] as f64).sum();
            gradient[place_in_weight(at / channels, at % channels)] += total as f32;
        }
    }
}

dispatch! {
    /// # Safety
    /// Each number runs once.
    unsafe fn forward_task<E>(job: &Forward<E>, number: usize, scratch: &mut [f32]) => forward_body;
    /// # Safety
    /// Each number runs once.
    unsafe fn backward_task<E>(job: &Backward<E>, number: usize, scratch: &mut [f32]) => backward_body;
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
    let step = 3 * shape.window.stride;
    for c in (0..shape.channels).step_by(2 * V::LANES) {
        // SAFETY: rows and weights are as long as the shape says; padded channels are pairs of vectors; the rest is the
        // caller's promise.
        unsafe {
            let mut sums = [[V::zero(); 2]; B];
            for ky in 0..SIDE {
                let values = rows.as_ptr().add(ky * shape.row_values() + column * step);
                let weights = job.weights.as_ptr().add(ky * ROW_TAPS * shape.padded() + c);
                for tap in 0..ROW_TAPS {
                    let w = weights.add(tap * shape.padded());
                    let w = [V::load(w), V::load(w.add(V::LANES))];
                    for (j, sums) in sums.iter_mut().enumerate() {
                        let x = V::splat(*values.add(j * step + tap));
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
                let to = statistics.as_mut_ptr().add(c);
                if first {
                    E::rounded(sums[0][half]).store(to);
                }
                let shift = V::load(to);
                let (mut sum, mut square) = (V::zero(), V::zero());
                for (j, sums) in sums.iter().enumerate() {
                    let to = y.as_mut_ptr().add((column + j) * shape.channels + c);
                    E::store_part(sums[half], to, V::LANES.min(shape.channels - c));
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

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`backward_task`].
#[inline(always)]
unsafe fn backward_body<V: Vector, E: Element>(job: &Backward<E>, number: usize, scratch: &mut [f32]) {
    let shape = &job.shape;
    let (rows, rest) = scratch.split_at_mut(SIDE * shape.row_values());
    let (dy, rest) = rest.split_at_mut(shape.window.output * shape.padded());
    let gradient = &mut rest[..TAPS * shape.padded()];
    gradient.fill(0.0);
    for row in shape.rows_of(number) {
        // SAFETY: a row of the tensors; the scratch is as long as the shape says; the rest is the caller's promise.
        // Each tap and vector needs an accumulator: the registers have room for two vectors or one.
        unsafe {
            shape.gather::<V, E>(job.image, row, rows);
            form_gradient::<V, E>(job, row, dy);
            if V::REGISTERS >= 32 {
                add_row::<V, 2>(shape, rows, dy, gradient);
            } else {
                add_row::<V, 1>(shape, rows, dy, gradient);
            }
        }
    }
    for (tap, from) in gradient.chunks_exact(shape.padded()).enumerate() {
        let at = (number * TAPS + tap) * shape.channels;
        // SAFETY: each task writes its own part.
        unsafe { job.partials.part(at..at + shape.channels) }.copy_from_slice(&from[..shape.channels]);
    }
}

/// dy of one output row into scratch, zero in the padded channels.
/// # Safety
/// The instruction set of `V` is present, and `row` is a row of the tensors.
#[inline(always)]
unsafe fn form_gradient<V: Vector, E: Element>(job: &Backward<E>, row: usize, dy: &mut [f32]) {
    let shape = &job.shape;
    let (channels, columns) = (shape.channels, shape.window.output);
    let start = row * columns * channels;
    let (y, du) = (&job.y[start..start + columns * channels], &job.du[start..start + columns * channels]);
    for c in (0..shape.padded()).step_by(V::LANES) {
        let count = V::LANES.min(channels.saturating_sub(c));
        let at = c.min(channels);
        // SAFETY: every row has `count` more lanes; scratch rows are padded to whole vectors; the rest is the caller's
        // promise.
        unsafe {
            let row = |number: usize| job.coefficients.as_ptr().add(number * channels + at);
            let a = V::load_part(row(0), count);
            let b = V::load_part(row(1), count);
            let constant = V::load_part(row(2), count);
            let mean = V::load_part(row(3), count);
            for j in 0..columns {
                let y = E::load_part::<V>(y.as_ptr().add(j * channels + at), count);
                let du = E::load_part::<V>(du.as_ptr().add(j * channels + at), count);
                let value = du.mul_add(a, y.sub(mean).mul_add(b, constant));
                value.store(dy.as_mut_ptr().add(j * shape.padded() + c));
            }
        }
    }
}

/// Adds one row's products to the gradient, `N` vectors of channels at a time.
/// # Safety
/// The instruction set of `V` is present, and the slices are as long as the shape says.
#[inline(always)]
unsafe fn add_row<V: Vector, const N: usize>(shape: &Shape, rows: &[f32], dy: &[f32], gradient: &mut [f32]) {
    let step = 3 * shape.window.stride;
    for c in (0..shape.padded()).step_by(N * V::LANES) {
        for ky in 0..SIDE {
            // SAFETY: the caller's promise.
            unsafe {
                let mut sums = [[V::zero(); N]; ROW_TAPS];
                let values = rows.as_ptr().add(ky * shape.row_values());
                for j in 0..shape.window.output {
                    let mut d = [V::zero(); N];
                    for (n, d) in d.iter_mut().enumerate() {
                        *d = V::load(dy.as_ptr().add(j * shape.padded() + c + n * V::LANES));
                    }
                    for (tap, sums) in sums.iter_mut().enumerate() {
                        let x = V::splat(*values.add(j * step + tap));
                        for (sum, d) in sums.iter_mut().zip(&d) {
                            *sum = x.mul_add(*d, *sum);
                        }
                    }
                }
                for (tap, sums) in sums.iter().enumerate() {
                    let to = gradient.as_mut_ptr().add((ky * ROW_TAPS + tap) * shape.padded() + c);
                    for (n, sum) in sums.iter().enumerate() {
                        let to = to.add(n * V::LANES);
                        V::load(to).add(*sum).store(to);
                    }
                }
            }
        }
    }
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
