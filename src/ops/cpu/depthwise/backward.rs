//! Backward, one sweep: the gradient at the convolution's output is formed row by row in the ring (backward
//! of batch norm and silu while loading). Then, for each row of the input, while its elements and their
//! gradients are in registers, every element of the ring is used for both the input's gradient and the weights'.
//!
//! In one dimension, with u = ix + pad, output o meets input u at tap k = u − s·o. At stride 2, a row or column of the
//! input meets only taps of its parity. The kernel selects the taps of a row at run time and those of a column at
//! compile time (`P` is the parity of a block's first u), so it computes no products with inserted zeros.

use super::input_sweep::*;
use super::*;
use crate::ops::cpu::batch_norm::{self, NormSums};
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::Element;
use crate::ops::{BatchNorm, DepthwiseBackward, DepthwiseInput, NarrowGradient};

/// Channels whose weight gradients are added up at once.
const BLOCK: usize = 64;

/// What all tasks of the pass share.
struct Job<'a, E> {
    shape: Shape,
    x: &'a [E],
    y: &'a [E],
    da: &'a [E],
    gate: &'a [f32],
    squeeze_gradient: &'a [f32],
    /// [4, C] of BN2, and its backward coefficients.
    bn: &'a [f32],
    bn_backward: &'a [f32],
    weights: &'a [f32],
    /// None where there is no gradient at the input; then there are no sums either.
    dx: Option<Shared<'a, E>>,
    input: Input<'a, E>,
    /// [groups, taps, C].
    weight_partials: Shared<'a>,
    /// [groups, 2, C].
    sum_partials: Shared<'a>,
}

/// The convolution's input, with the coefficients of the batch norm whose sums are taken.
#[derive(Clone, Copy)]
enum Input<'a, E> {
    Normalised { bn: &'a [f32] },
    Identity { shortcut: Option<&'a [E]>, previous_y: &'a [E], bn: &'a [f32], keep: Option<&'a [f32]> },
}

/// The packed weights, BN2's backward coefficients, the partial weight gradients and the partial sums.
fn shared(shape: &Shape) -> [usize; 4] {
    let partials = shape.groups() * shape.taps() * shape.channels;
    let sums = batch_norm::sums_floats(shape.groups(), shape.channels);
    [shape.packed_weights(), 4 * shape.channels, partials, sums]
}

/// A task's scratch, in floats a channel: the ring, one row of the activated input and its slopes, the coefficients,
/// the weights, their gradient, the two sums.
fn scratch(shape: &Shape) -> [usize; 6] {
    let ring = shape.gradient_rows() * shape.gradient_columns();
    [ring, 2 * shape.input, COEFFICIENTS, shape.taps(), shape.taps(), 2]
}

fn shape<E: Element>(pass: &DepthwiseBackward) -> Shape {
    let DepthwiseBackward { images, channels, window, .. } = pass;
    Shape::new::<E>(*images, *channels, window, |shape| scratch(shape).iter().sum())
}

impl OnCpu for DepthwiseBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = shape::<E>(self);
        WorkspaceFloats {
            shared: workspace_floats(&shared(&shape)),
            per_thread: scratch(&shape).iter().sum::<usize>() * shape.slice_stride(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = shape::<E>(self);
        let (input, input_bn) = input_of(cx, &self.input);
        let to = self.gradient();
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([weights, bn_backward, weight_partials, sum_partials], dx, norm, gradient) = unsafe {
            let dx = to.map(|to| Shared::new(cx.write_activation::<E>(to)));
            let norm = to.map(|_| NormSums::of(cx, input_bn));
            (cx.workspace(shared(&shape)), dx, norm, cx.gradient_mut(self.weight))
        };
        shape.pack_weights(cx.weight(self.weight), weights);
        batch_norm::backward_coefficients(cx, &self.bn, bn_backward);
        let job = Job {
            shape,
            x: cx.activation::<E>(self.x),
            y: cx.activation::<E>(self.y),
            da: cx.activation::<E>(self.da),
            gate: cx.read(self.gate),
            squeeze_gradient: cx.read(self.squeeze_gradient),
            bn: cx.read(self.bn.coefficients),
            bn_backward,
            weights,
            dx,
            input,
            weight_partials: Shared::new(&mut *weight_partials),
            sum_partials: Shared::new(&mut *sum_partials),
        };
        job.check();
        // SAFETY: `parallel` runs each number once.
        cx.parallel(shape.tasks(), |number, scratch| unsafe { task(&job, number, scratch) });
        add_weight_gradients(cx, &shape, gradient, weight_partials);
        if let Some(norm) = norm {
            norm.finish(cx, sum_partials);
        }
    }
}

fn input_of<'a, E: Element>(cx: &'a Context, input: &'a DepthwiseInput) -> (Input<'a, E>, &'a BatchNorm) {
    match input {
        DepthwiseInput::Normalised { bn, .. } => (Input::Normalised { bn: cx.read(bn.coefficients) }, bn),
        DepthwiseInput::Identity(NarrowGradient { shortcut, previous, .. }) => {
            let input = Input::Identity {
                shortcut: shortcut.map(|t| cx.activation::<E>(t)),
                previous_y: cx.activation::<E>(previous.y),
                bn: cx.read(previous.bn.coefficients),
                keep: previous.keep.map(|t| cx.read(t)),
            };
            (input, &previous.bn)
        }
    }
}

impl<E: Element> Job<'_, E> {
    /// Checks the lengths on which the kernels rely: they work on pointers.
    fn check(&self) {
        let s = &self.shape;
        let (inputs, outputs) = (s.input * s.input * s.channels, s.output * s.output * s.channels);
        assert_eq!(self.x.len(), s.images * inputs);
        assert!(self.dx.is_none_or(|dx| dx.len() == s.images * inputs));
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
fn add_weight_gradients(cx: &Context, shape: &Shape, gradient: &mut [f32], partials: &[f32]) {
    let (taps, channels) = (shape.taps(), shape.channels);
    let gradient = Shared::new(gradient);
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

for_each_window!(Job, sweep);

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`task`].
#[inline(always)]
unsafe fn sweep<V: Vector, E: Element, const K: usize, const S: usize>(
    job: &Job<E>,
    number: usize,
    floats: &mut [f32],
) {
    let shape = &job.shape;
    let (group, slice) = (shape.group_of(number), shape.channels_of(number));
    let stride = shape.slice_stride();
    let lengths = scratch(shape).map(|rows| rows * stride);
    let [ring, inputs, coefficients, weights, weight_gradient, sums] = carve(floats, lengths);
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
        // SAFETY: the tensors' lengths were checked against the shape; no two tasks share image and slice; the rest is
        // the caller's promise.
        unsafe {
            let (y, da) = (job.y.as_ptr().add(outputs), job.da.as_ptr().add(outputs));
            image_rows::<V, E, K, S>(shape, &memory, first_pixel(job, image, slice.start), y, da);
        }
    }
    finish_task(job, group, &slice, weight_gradient, sums);
}

/// The coefficients that all images share.
fn fill_coefficients<E: Element>(job: &Job<E>, slice: &Range<usize>, to: &mut [f32]) {
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
fn fill_image_coefficients<E: Element>(job: &Job<E>, slice: &Range<usize>, to: &mut [f32], image: usize) {
    let (stride, channels) = (job.shape.slice_stride(), job.shape.channels);
    for (row, from) in [(GATE, job.gate), (SQUEEZE, job.squeeze_gradient)] {
        let to = &mut to[row * stride..(row + 1) * stride];
        copy_slice(to, &from[image * channels..], slice);
        to.iter_mut().zip(&job.bn_backward[slice.clone()]).for_each(|(v, a)| *v *= a);
    }
}

/// The slice's first channel in an image's first pixel.
/// # Safety
/// `image` is the number of an image of the batch.
unsafe fn first_pixel<E: Element>(job: &Job<E>, image: usize, channel: usize) -> Pixel<E> {
    let at = image * job.shape.input * job.shape.input * job.shape.channels + channel;
    let null = std::ptr::null();
    // SAFETY: the lengths were checked against the shape.
    unsafe {
        let x = job.x.as_ptr().add(at);
        let dx = job.dx.map_or(std::ptr::null_mut(), |dx| dx.start().add(at));
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
fn finish_task<E: Element>(
    job: &Job<E>,
    group: usize,
    slice: &Range<usize>,
    weight_gradient: &[f32],
    sums: &mut [f32],
) {
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
    if job.dx.is_some() {
        write(&job.sum_partials, sums);
    }
}
