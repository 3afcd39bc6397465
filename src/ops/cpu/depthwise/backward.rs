//! Backward, one sweep: the gradient at the convolution's output is formed row by row into the ring (backward
//! of batch norm and silu while loading); then for each row of the input, while its elements and their
//! gradients are in registers, every element of the ring serves both the input's gradient and the weights'.
//!
//! In one dimension, with u = ix + pad, output o meets input u at tap k = u − s·o. At stride 2 a row or column
//! of the input meets only taps of its parity: rows choose theirs at run time, columns at compile time (`P`
//! is the parity of a block's first u), so no product with an inserted zero is ever formed.

use super::*;
use crate::dispatch;
use crate::ops::cpu::batch_norm;
use crate::ops::cpu::context::{Context, Shared, Workspace, workspace_floats};
use crate::ops::{BatchNorm, DepthwiseBackward, DepthwiseInput, Param};

/// Channels whose weight gradients are added up at once.
const BLOCK: usize = 64;

/// What all tasks of the pass share.
struct Job<'a> {
    shape: Shape,
    x: &'a [f32],
    y: &'a [f32],
    da: &'a [f32],
    gate: &'a [f32],
    squeeze_gradient: &'a [f32],
    /// [4, C] of BN2, and its backward coefficients.
    bn: &'a [f32],
    bn_backward: &'a [f32],
    weights: &'a [f32],
    dx: Shared<'a>,
    input: Input<'a>,
    /// [groups, taps, C].
    weight_partials: Shared<'a>,
    /// [groups, 2, C].
    sum_partials: Shared<'a>,
}

/// What the gradient at the convolution's input becomes, with the coefficients of the batch norm whose sums
/// are taken.
#[derive(Clone, Copy)]
enum Input<'a> {
    Normalised { bn: &'a [f32] },
    Identity { shortcut: Option<&'a [f32]>, previous_y: &'a [f32], bn: &'a [f32], keep: Option<&'a [f32]> },
}

pub fn backward_workspace(p: &DepthwiseBackward) -> Workspace {
    let shape = Shape::new(p.images, p.channels, &p.window);
    Workspace { shared: workspace_floats(&shared(&shape)), per_thread: scratch(&shape).iter().sum() }
}

/// The packed weights, BN2's backward coefficients, the partial weight gradients and the partial sums.
fn shared(shape: &Shape) -> [usize; 4] {
    let partials = shape.groups() * shape.taps() * shape.channels;
    let sums = batch_norm::sums_floats(shape.groups(), shape.channels);
    [shape.packed_weights(), 4 * shape.channels, partials, sums]
}

/// A task's scratch: the ring, one row of the activated input and its slopes, the coefficients, the weights,
/// their gradient, the two sums.
fn scratch(shape: &Shape) -> [usize; 6] {
    let stride = shape.slice_stride();
    let ring = shape.gradient_rows() * shape.gradient_columns();
    [ring, 2 * shape.input, COEFFICIENTS, shape.taps(), shape.taps(), 2].map(|rows| rows * stride)
}

pub fn backward(cx: &Context, p: &DepthwiseBackward) {
    let shape = Shape::new(p.images, p.channels, &p.window);
    let [weights, bn_backward, weight_partials, sum_partials] = cx.workspace(shared(&shape));
    shape.pack_weights(cx.weight(p.weight), weights);
    batch_norm::backward_coefficients(cx, &p.bn, bn_backward);
    let (input, input_bn) = input_of(cx, &p.input);
    let job = Job {
        shape,
        x: cx.read(p.x),
        y: cx.read(p.y),
        da: cx.read(p.da),
        gate: cx.read(p.gate),
        squeeze_gradient: cx.read(p.squeeze_gradient),
        bn: cx.read(p.bn.coefficients),
        bn_backward,
        weights,
        dx: Shared::new(cx.write(p.dx)),
        input,
        weight_partials: Shared::new(weight_partials),
        sum_partials: Shared::new(sum_partials),
    };
    job.check();
    cx.parallel(shape.tasks(), |number, scratch| task(&job, number, scratch));
    // SAFETY: all tasks are done, and nobody else holds a part.
    let (weights, sums) = unsafe {
        let (weights, sums) = (&job.weight_partials, &job.sum_partials);
        (weights.part(0..weights.len()), sums.part(0..sums.len()))
    };
    add_weight_gradients(cx, &shape, p.weight, weights);
    batch_norm::finish_sums(cx, &input_bn, sums);
}

fn input_of<'a>(cx: &'a Context, input: &DepthwiseInput) -> (Input<'a>, BatchNorm) {
    match input {
        DepthwiseInput::Normalised(bn) => (Input::Normalised { bn: cx.read(bn.coefficients) }, *bn),
        DepthwiseInput::Identity { shortcut, previous } => {
            let input = Input::Identity {
                shortcut: shortcut.map(|t| cx.read(t)),
                previous_y: cx.read(previous.y),
                bn: cx.read(previous.bn.coefficients),
                keep: previous.keep.map(|t| cx.read(t)),
            };
            (input, previous.bn)
        }
    }
}

impl Job<'_> {
    /// The kernels work on pointers: the lengths that they rely on.
    fn check(&self) {
        let s = &self.shape;
        let (inputs, outputs) = (s.input * s.input * s.channels, s.output * s.output * s.channels);
        assert_eq!([self.x.len(), self.dx.len()], [s.images * inputs; 2]);
        assert_eq!([self.y.len(), self.da.len()], [s.images * outputs; 2]);
        assert_eq!([self.gate.len(), self.squeeze_gradient.len()], [s.images * s.channels; 2]);
        if let Input::Identity { shortcut, previous_y, keep, .. } = self.input {
            assert!(shortcut.is_none_or(|t| t.len() == s.images * inputs));
            assert_eq!(previous_y.len(), s.images * inputs);
            assert!(keep.is_none_or(|t| t.len() == s.images));
        }
    }
}

/// Adds the groups' weight gradients in order and in double to the parameter's, [taps, C] to [C, k, k].
fn add_weight_gradients(cx: &Context, shape: &Shape, weight: Param, partials: &[f32]) {
    let (taps, channels) = (shape.taps(), shape.channels);
    let gradient = Shared::new(cx.gradient_mut(weight));
    let whole = shape.whole * shape.whole;
    let block = |number: usize, _: &mut [f32]| {
        let first = number * BLOCK;
        let width = BLOCK.min(channels - first);
        // SAFETY: each block writes its own channels.
        let gradient = unsafe { gradient.part(first * whole..(first + width) * whole) };
        for tap in 0..taps {
            let mut sums = [0.0f64; BLOCK];
            for group in 0..shape.groups() {
                let at = (group * taps + tap) * channels + first;
                sums.iter_mut().zip(&partials[at..at + width]).for_each(|(sum, v)| *sum += *v as f64);
            }
            let place = shape.place_in_weight(tap);
            gradient.chunks_exact_mut(whole).zip(sums).for_each(|(g, sum)| g[place] += sum as f32);
        }
    };
    let blocks = channels.div_ceil(BLOCK);
    if partials.len() < 1 << 16 {
        return (0..blocks).for_each(|number| block(number, &mut []));
    }
    cx.parallel(blocks, block);
}

dispatch! {
    fn sweep_1(job: &Job, number: usize, scratch: &mut [f32]) => sweep<1, 1>;
    fn sweep_3(job: &Job, number: usize, scratch: &mut [f32]) => sweep<3, 1>;
    fn sweep_5(job: &Job, number: usize, scratch: &mut [f32]) => sweep<5, 1>;
    fn sweep_3_by_2(job: &Job, number: usize, scratch: &mut [f32]) => sweep<3, 2>;
    fn sweep_5_by_2(job: &Job, number: usize, scratch: &mut [f32]) => sweep<5, 2>;
}

/// One copy of the kernels for each window.
fn task(job: &Job, number: usize, scratch: &mut [f32]) {
    match (job.shape.kernel, job.shape.stride) {
        (1, 1) => sweep_1(job, number, scratch),
        (3, 1) => sweep_3(job, number, scratch),
        (5, 1) => sweep_5(job, number, scratch),
        (3, 2) => sweep_3_by_2(job, number, scratch),
        (5, 2) => sweep_5_by_2(job, number, scratch),
        (kernel, stride) => unreachable!("a {kernel}×{kernel} window of stride {stride}"),
    }
}

/// Rows of a slice's coefficients: of BN2 forward, of its backward dy = a·du + b·(y−μ) + c, of the batch norm
/// that takes the sums, and the image's gate and squeeze gradient, both times a.
const COEFFICIENTS: usize = 10;
const SCALE: usize = 0;
const SHIFT: usize = 1;
const MEAN: usize = 2;
const B_ROW: usize = 3;
const C_ROW: usize = 4;
const INPUT_SCALE: usize = 5;
const INPUT_SHIFT: usize = 6;
const INPUT_MEAN: usize = 7;
const GATE: usize = 8;
const SQUEEZE: usize = 9;

/// A task's memory, as the kernels use it.
struct Slice {
    /// Channels.
    width: usize,
    /// Floats from a column of the ring, or a row of coefficients, to the next.
    stride: usize,
    /// Floats from a pixel of the tensors to the next.
    channels: usize,
    /// Floats from a row of the input's side and of the output's side to the next.
    input_row: usize,
    output_row: usize,
    ring: *mut f32,
    /// The current row of the activated input; the slopes are `slopes` floats on.
    inputs: *mut f32,
    slopes: usize,
    coefficients: *const f32,
    weights: *const f32,
    weight_gradient: *mut f32,
    /// Σdu, then Σdu·(y−μ).
    sums: *mut f32,
}

/// A pixel's place in the tensors of the input's side.
#[derive(Clone, Copy)]
struct Pixel {
    x: *const f32,
    dx: *mut f32,
    /// Of the identity only: null otherwise.
    previous_y: *const f32,
    /// Null where there is none.
    shortcut: *const f32,
    keep: f32,
}

impl Pixel {
    /// # Safety
    /// The pixel `floats` on is within the tensors.
    #[inline(always)]
    unsafe fn add(self, floats: usize) -> Pixel {
        let far = |p: *const f32| if p.is_null() { p } else { p.wrapping_add(floats) };
        // SAFETY: the caller's promise.
        unsafe {
            Pixel {
                x: self.x.add(floats),
                dx: self.dx.add(floats),
                previous_y: far(self.previous_y),
                shortcut: far(self.shortcut),
                keep: self.keep,
            }
        }
    }
}

#[inline(always)]
fn sweep<V: Vector, const K: usize, const S: usize>(job: &Job, number: usize, floats: &mut [f32]) {
    let shape = &job.shape;
    let (group, slice) = shape.task(number);
    let [ring, inputs, coefficients, weights, weight_gradient, sums] = carve(floats, scratch(shape));
    let stride = shape.slice_stride();
    ring.fill(0.0);
    weight_gradient.fill(0.0);
    sums.fill(0.0);
    fill_coefficients(job, &slice, coefficients);
    for (to, row) in weights.chunks_exact_mut(stride).zip(job.weights.chunks_exact(shape.padded_channels())) {
        copy_slice(to, row, &slice);
    }
    for image in shape.images_of(group) {
        fill_image_coefficients(job, &slice, coefficients, image);
        let memory = Slice {
            width: slice.len(),
            stride,
            channels: shape.channels,
            input_row: shape.input * shape.channels,
            output_row: shape.output * shape.channels,
            ring: ring.as_mut_ptr(),
            inputs: inputs.as_mut_ptr(),
            slopes: inputs.len() / 2,
            coefficients: coefficients.as_ptr(),
            weights: weights.as_ptr(),
            weight_gradient: weight_gradient.as_mut_ptr(),
            sums: sums.as_mut_ptr(),
        };
        let outputs = image * shape.output * shape.output * shape.channels + slice.start;
        // SAFETY: the tensors' lengths were checked against the shape; no two tasks share image and slice.
        unsafe {
            let (y, da) = (job.y.as_ptr().add(outputs), job.da.as_ptr().add(outputs));
            image_rows::<V, K, S>(shape, &memory, first_pixel(job, image, slice.start), y, da);
        }
    }
    finish_task(job, group, &slice, weight_gradient, sums);
}

/// The coefficients that all images share.
fn fill_coefficients(job: &Job, slice: &Range<usize>, to: &mut [f32]) {
    let (stride, channels) = (job.shape.slice_stride(), job.shape.channels);
    let of = match job.input {
        Input::Normalised { bn } | Input::Identity { bn, .. } => bn,
    };
    let rows = [
        (SCALE, job.bn, 2),
        (SHIFT, job.bn, 3),
        (MEAN, job.bn_backward, 3),
        (B_ROW, job.bn_backward, 1),
        (C_ROW, job.bn_backward, 2),
        (INPUT_SCALE, of, 2),
        (INPUT_SHIFT, of, 3),
        (INPUT_MEAN, of, 0),
    ];
    for (row, from, from_row) in rows {
        copy_slice(&mut to[row * stride..(row + 1) * stride], &from[from_row * channels..], slice);
    }
}

/// The coefficients of one image.
fn fill_image_coefficients(job: &Job, slice: &Range<usize>, to: &mut [f32], image: usize) {
    let (stride, channels) = (job.shape.slice_stride(), job.shape.channels);
    for (row, from) in [(GATE, job.gate), (SQUEEZE, job.squeeze_gradient)] {
        let to = &mut to[row * stride..(row + 1) * stride];
        copy_slice(to, &from[image * channels..], slice);
        to.iter_mut().zip(&job.bn_backward[slice.clone()]).for_each(|(v, a)| *v *= a);
    }
}

/// The slice's first channel in an image's first pixel.
/// # Safety
/// `image` is one of the batch.
unsafe fn first_pixel(job: &Job, image: usize, channel: usize) -> Pixel {
    let at = image * job.shape.input * job.shape.input * job.shape.channels + channel;
    let null = std::ptr::null();
    // SAFETY: the lengths were checked against the shape.
    unsafe {
        let (x, dx) = (job.x.as_ptr().add(at), job.dx.start().add(at));
        match job.input {
            Input::Normalised { .. } => Pixel { x, dx, previous_y: null, shortcut: null, keep: 1.0 },
            Input::Identity { shortcut, previous_y, keep, .. } => Pixel {
                x,
                dx,
                previous_y: previous_y.as_ptr().add(at),
                shortcut: shortcut.map_or(null, |t| t.as_ptr().add(at)),
                keep: keep.map_or(1.0, |t| t[image]),
            },
        }
    }
}

/// Writes the task's partial sums.
fn finish_task(job: &Job, group: usize, slice: &Range<usize>, weight_gradient: &[f32], sums: &mut [f32]) {
    let shape = &job.shape;
    let stride = shape.slice_stride();
    let (Input::Normalised { bn } | Input::Identity { bn, .. }) = job.input;
    // The kernels sum du·(y−μ); ŷ has the factor r.
    let r = &bn[shape.channels + slice.start..];
    sums[stride..].iter_mut().zip(&r[..slice.len()]).for_each(|(sum, r)| *sum *= r);
    let write = |to: &Shared, rows: &[f32]| {
        for (row, from) in rows.chunks_exact(stride).enumerate() {
            let at = (group * (rows.len() / stride) + row) * shape.channels + slice.start;
            // SAFETY: each task writes its own group and channels.
            unsafe { to.part(at..at + slice.len()) }.copy_from_slice(&from[..slice.len()]);
        }
    };
    write(&job.weight_partials, weight_gradient);
    write(&job.sum_partials, sums);
}

/// Columns of a register block: an input and an accumulator each, beside the weights of a row and theirs.
const fn widest<V: Vector>() -> usize {
    match V::REGISTERS {
        32.. => 8,
        16.. => 4,
        _ => 2,
    }
}

/// Slides down one image.
/// # Safety
/// `pixel`, `y` and `da` point to the slice's first channel in the image's first pixel; `memory` fits the
/// shape.
#[inline(always)]
unsafe fn image_rows<V: Vector, const K: usize, const S: usize>(
    shape: &Shape,
    memory: &Slice,
    pixel: Pixel,
    y: *const f32,
    da: *const f32,
) {
    let rows = (K - 1) / S + 1;
    let row_floats = shape.gradient_columns() * memory.stride;
    let mut ready = 0;
    for row in 0..shape.input {
        let end = ((row + shape.pad) / S + 1).min(shape.output);
        while ready < end {
            // SAFETY: row `ready` of the image and a row of the ring, right of its zero columns.
            unsafe {
                let from = ready * shape.output * memory.channels;
                let to = memory.ring.add(ready % rows * row_floats + shape.gradient_pad() * memory.stride);
                form_gradient::<V>(memory, y.add(from), da.add(from), to, shape.output);
            }
            ready += 1;
        }
        let mut taps = [(0, 0); K];
        let mut count = 0;
        for tap in 0..K.min(row + shape.pad + 1) {
            let at = row + shape.pad - tap;
            if at.is_multiple_of(S) && at / S < shape.output {
                taps[count] = (at / S % rows * row_floats, tap);
                count += 1;
            }
        }
        // SAFETY: a row of the image.
        unsafe {
            let pixel = pixel.add(row * shape.input * memory.channels);
            activate::<V>(memory, pixel, shape.input);
            input_row::<V, K, S>(shape, memory, &taps[..count], pixel);
        }
    }
}

/// One row of the input, in register blocks.
/// # Safety
/// `pixel` is the row's first; the ring holds the rows that `taps` name.
#[inline(always)]
unsafe fn input_row<V: Vector, const K: usize, const S: usize>(
    shape: &Shape,
    memory: &Slice,
    taps: &[(usize, usize)],
    pixel: Pixel,
) {
    let mut column = 0;
    while column < shape.input {
        let width = block_of(shape.input - column, widest::<V>());
        let (start, parity) = ((column + shape.pad) / S, (column + shape.pad) % S);
        let at = (start + shape.gradient_pad() - (K - 1) / S) * memory.stride;
        // SAFETY: the block lies within the input row, the outputs it meets within the ring's columns.
        unsafe {
            let pixel = pixel.add(column * memory.channels);
            if const { S == 2 } {
                if parity == 1 {
                    block_of_width::<V, K, 2, 1>(memory, taps, at, (pixel, column), width);
                } else {
                    block_of_width::<V, K, 2, 0>(memory, taps, at, (pixel, column), width);
                }
            } else {
                block_of_width::<V, K, 1, 0>(memory, taps, at, (pixel, column), width);
            }
        }
        column += width;
    }
}

/// [`block`] with a width known at run time.
/// # Safety
/// As for [`block`].
#[inline(always)]
unsafe fn block_of_width<V: Vector, const K: usize, const S: usize, const P: usize>(
    memory: &Slice,
    taps: &[(usize, usize)],
    at: usize,
    (pixel, column): (Pixel, usize),
    width: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match width {
            8 if const { widest::<V>() >= 8 } => block::<V, K, S, P, 8>(memory, taps, at, (pixel, column)),
            7 if const { widest::<V>() >= 7 } => block::<V, K, S, P, 7>(memory, taps, at, (pixel, column)),
            4 if const { widest::<V>() >= 4 } => block::<V, K, S, P, 4>(memory, taps, at, (pixel, column)),
            2 => block::<V, K, S, P, 2>(memory, taps, at, (pixel, column)),
            _ => block::<V, K, S, P, 1>(memory, taps, at, (pixel, column)),
        }
    }
}

/// One row of the gradient at the convolution's output, into the ring.
/// # Safety
/// `y` and `da` point to a row of pixels, `ring` to as many columns.
#[inline(always)]
unsafe fn form_gradient<V: Vector>(
    memory: &Slice,
    y: *const f32,
    da: *const f32,
    ring: *mut f32,
    columns: usize,
) {
    let mut column = 0;
    while column < columns {
        // SAFETY: the columns are within the row.
        unsafe {
            let (from, to) = (column * memory.channels, ring.add(column * memory.stride));
            if columns - column >= 4 {
                form_columns::<V, 4>(memory, y.add(from), da.add(from), to);
                column += 4;
            } else {
                form_columns::<V, 1>(memory, y.add(from), da.add(from), to);
                column += 1;
            }
        }
    }
}

/// # Safety
/// As for [`form_gradient`], with `B` columns.
#[inline(always)]
unsafe fn form_columns<V: Vector, const B: usize>(
    memory: &Slice,
    y: *const f32,
    da: *const f32,
    ring: *mut f32,
) {
    // SAFETY: the caller's promise, and `count` lanes are left of the slice.
    unsafe {
        for c in (0..memory.width).step_by(V::LANES) {
            let count = memory.width - c;
            let row = memory.coefficients.add(c);
            let (scale, shift) = (V::load(row), V::load(row.add(SHIFT * memory.stride)));
            let mean = V::load(row.add(MEAN * memory.stride));
            let b = V::load(row.add(B_ROW * memory.stride));
            let constant = V::load(row.add(C_ROW * memory.stride));
            let gate = V::load(row.add(GATE * memory.stride));
            let squeeze = V::load(row.add(SQUEEZE * memory.stride));
            for j in 0..B {
                let (y, da) = (y.add(j * memory.channels + c), da.add(j * memory.channels + c));
                prefetch(y, memory.output_row);
                prefetch(da, memory.output_row);
                let (y, da) = (get::<V>(y, count), get::<V>(da, count));
                let (_, slope) = y.mul_add(scale, shift).silu_with_derivative();
                let du = da.mul_add(gate, squeeze);
                let rest = y.sub(mean).mul_add(b, constant);
                du.mul_add(slope, rest).store(ring.add(j * memory.stride + c));
            }
        }
    }
}

/// `B` input pixels from `column` of a row, all channels of the slice: their gradient and their share of the
/// weights'.
/// `taps` are the ring's rows that meet this row, with the window's row; `at` is the place in a ring row of
/// the first output that may meet the block. `P` is the parity of the block's first column plus pad.
/// # Safety
/// The ring has all columns that meet the block; `pixel` is the first of `B`.
#[inline(always)]
unsafe fn block<V: Vector, const K: usize, const S: usize, const P: usize, const B: usize>(
    memory: &Slice,
    taps: &[(usize, usize)],
    at: usize,
    (pixel, column): (Pixel, usize),
) {
    let stride = memory.stride;
    for c in (0..memory.width).step_by(V::LANES) {
        // SAFETY: within the tensors, the ring and the coefficients by the caller's promise.
        unsafe {
            let inputs = memory.inputs.add(column * stride + c);
            let mut a = [V::zero(); B];
            for (j, a) in a.iter_mut().enumerate() {
                *a = V::load(inputs.add(j * stride));
            }
            let mut da = [V::zero(); B];
            for &(row, tap) in taps {
                let ring = memory.ring.add(row + at + c);
                let tap = tap * K * stride + c;
                let mut w = [V::zero(); K];
                for (k, w) in w.iter_mut().enumerate() {
                    *w = V::load(memory.weights.add(tap + k * stride));
                }
                let mut dw = [V::zero(); K];
                // Each gradient is loaded once and meets all inputs that its window covers.
                unroll!(COLUMN in [0 1 2 3 4 5 6 7 8 9 10 11] {
                    if const { COLUMN < (K - 1) / S + (B - 1 + P) / S + 1 } {
                        let dy = V::load(ring.add(COLUMN * stride));
                        for k in 0..K {
                            // Column of the block, shifted to stay positive.
                            let shifted = COLUMN * S + k;
                            let shift = (K - 1) / S * S + P;
                            if shifted >= shift && shifted - shift < B {
                                let j = shifted - shift;
                                da[j] = dy.mul_add(w[k], da[j]);
                                dw[k] = dy.mul_add(a[j], dw[k]);
                            }
                        }
                    }
                });
                for (k, dw) in dw.iter().enumerate() {
                    accumulate(*dw, memory.weight_gradient.add(tap + k * stride));
                }
            }
            if pixel.previous_y.is_null() {
                store_normalised(memory, pixel, c, &da, inputs.add(memory.slopes));
            } else {
                store_identity(memory, pixel, c, &da);
            }
        }
    }
}

/// One row of the convolution's input, activated, and the slopes of the activation.
/// # Safety
/// `pixel` is the first of `columns`.
#[inline(always)]
unsafe fn activate<V: Vector>(memory: &Slice, pixel: Pixel, columns: usize) {
    let normalised = pixel.previous_y.is_null();
    let mut column = 0;
    while column < columns {
        // SAFETY: the columns are within the row.
        unsafe {
            let x = pixel.x.add(column * memory.channels);
            let to = memory.inputs.add(column * memory.stride);
            if columns - column >= 4 {
                activate_columns::<V, 4>(memory, x, to, normalised);
                column += 4;
            } else {
                activate_columns::<V, 1>(memory, x, to, normalised);
                column += 1;
            }
        }
    }
}

/// # Safety
/// As for [`activate`], with `B` columns.
#[inline(always)]
unsafe fn activate_columns<V: Vector, const B: usize>(
    memory: &Slice,
    x: *const f32,
    to: *mut f32,
    normalised: bool,
) {
    // SAFETY: the caller's promise, and `count` lanes are left of the slice.
    unsafe {
        for c in (0..memory.width).step_by(V::LANES) {
            let count = memory.width - c;
            let scale = V::load(memory.coefficients.add(INPUT_SCALE * memory.stride + c));
            let shift = V::load(memory.coefficients.add(INPUT_SHIFT * memory.stride + c));
            for j in 0..B {
                let x = x.add(j * memory.channels + c);
                prefetch(x, memory.input_row);
                let x = get::<V>(x, count);
                let to = to.add(j * memory.stride + c);
                if normalised {
                    let (a, slope) = x.mul_add(scale, shift).silu_with_derivative();
                    a.store(to);
                    slope.store(to.add(memory.slopes));
                } else {
                    x.store(to);
                }
            }
        }
    }
}

/// du = da·silu'(z), with its sums.
/// # Safety
/// `pixel` is the first of `B`, `c` a channel of the slice, `slopes` the slope of both.
#[inline(always)]
unsafe fn store_normalised<V: Vector, const B: usize>(
    memory: &Slice,
    pixel: Pixel,
    c: usize,
    da: &[V; B],
    slopes: *const f32,
) {
    let count = memory.width - c;
    // SAFETY: the caller's promise.
    unsafe {
        let mean = V::load(memory.coefficients.add(INPUT_MEAN * memory.stride + c));
        let (mut sum, mut dot) = (V::zero(), V::zero());
        for (j, da) in da.iter().enumerate() {
            let at = j * memory.channels + c;
            let du = da.mul(V::load(slopes.add(j * memory.stride)));
            prefetch(pixel.dx.add(at), memory.input_row);
            put(du, pixel.dx.add(at), count);
            sum = sum.add(du);
            dot = du.mul_add(get::<V>(pixel.x.add(at), count).sub(mean), dot);
        }
        accumulate(sum, memory.sums.add(c));
        accumulate(dot, memory.sums.add(memory.stride + c));
    }
}

/// dx = da (+ the shortcut's gradient), with the sums of keep·dx for the previous block's batch norm.
/// # Safety
/// `pixel` is the first of `B`, and `c` a channel of the slice.
#[inline(always)]
unsafe fn store_identity<V: Vector, const B: usize>(memory: &Slice, pixel: Pixel, c: usize, da: &[V; B]) {
    let count = memory.width - c;
    // SAFETY: the caller's promise.
    unsafe {
        let mean = V::load(memory.coefficients.add(INPUT_MEAN * memory.stride + c));
        let keep = V::splat(pixel.keep);
        let (mut sum, mut dot) = (V::zero(), V::zero());
        for (j, da) in da.iter().enumerate() {
            let at = j * memory.channels + c;
            let shortcut = pixel.shortcut;
            let dx = if shortcut.is_null() { *da } else { da.add(get(shortcut.add(at), count)) };
            put(dx, pixel.dx.add(at), count);
            let du = dx.mul(keep);
            sum = sum.add(du);
            dot = du.mul_add(get::<V>(pixel.previous_y.add(at), count).sub(mean), dot);
        }
        accumulate(sum, memory.sums.add(c));
        accumulate(dot, memory.sums.add(memory.stride + c));
    }
}
