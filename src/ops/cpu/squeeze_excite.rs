//! Squeeze-excite: the gate of each image and channel, and its backward pass.
//!
//! Only the pooling of the forward pass reads a wide tensor. The backward pass needs just the five sums that the
//! projection's backward pass has stored: S0 is the gradient at the gate, and the sums of the depthwise convolution's
//! batch norm follow from the rest. The dense layers are tiny but have many images, so tasks take several images (or a
//! block of weights and all images) and load each weight once from memory. A single image is cut by the weights' rows.

use super::batch_norm::{NormSums, sums_floats};
use super::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use super::dense::{
    Factor, Region, Start, WeightedRows, add_column_sums, dots, sigmoid_in_place, silu, weighted_rows,
};
use super::gemm::{Form, Packed};
use super::memory::Shared;
use super::pool;
use super::simd::{Element, Vector, dispatch};
use super::sweep::{each_vector, read, write};
use crate::ops::{Dense, SqueezeBackward, SqueezeForward, SqueezeInference};

/// Images of a task.
const GROUP: usize = 8;
/// Channels of a task.
const SLICE: usize = 64;
/// Rows of the reducing layer's weight in a task.
const HIDDEN_ROWS: usize = 8;

impl OnCpu for SqueezeForward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let layers = Layers { images: self.images, reduce: &self.reduce, expand: &self.expand };
        WorkspaceFloats {
            shared: workspace_floats(&layers.workspace()),
            per_thread: pool::scratch_floats(self.channels),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let layers = Layers { images: self.images, reduce: &self.reduce, expand: &self.expand };
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let (squeezed, out, workspace) = unsafe {
            let out = [cx.write(self.hidden), cx.write(self.gate)];
            (cx.write(self.squeezed), out, cx.workspace(layers.workspace()))
        };
        pool::means(cx, &self.bn, cx.activation::<E>(self.y), self.images, self.pixels, squeezed);
        layers.run(cx, squeezed, out, workspace);
    }
}

impl OnCpu for SqueezeInference {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let layers = Layers { images: self.images, reduce: &self.reduce, expand: &self.expand };
        WorkspaceFloats { shared: workspace_floats(&layers.workspace()), per_thread: 0 }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let layers = Layers { images: self.images, reduce: &self.reduce, expand: &self.expand };
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let (out, workspace) = unsafe {
            let out = [cx.write(self.hidden), cx.write(self.gate)];
            (out, cx.workspace(layers.workspace()))
        };
        layers.run(cx, cx.read(self.squeezed), out, workspace);
    }
}

/// The two dense layers.
struct Layers<'a> {
    images: usize,
    reduce: &'a Dense,
    expand: &'a Dense,
}

impl Layers<'_> {
    /// Floats of the shared workspace: silu(hidden) [images, S] and the expanding layer's packed weight.
    fn workspace(&self) -> [usize; 2] {
        let Dense { inputs: channels, outputs: width, .. } = self.reduce;
        [self.images * width, width * channels]
    }

    /// `squeezed` → `hidden` [images, S] → `gate` [images, C].
    fn run(
        &self,
        cx: &Context,
        squeezed: &[f32],
        [hidden, gate]: [&mut [f32]; 2],
        [active, packed]: [&mut [f32]; 2],
    ) {
        let (images, channels, width) = (self.images, self.reduce.inputs, self.reduce.outputs);
        self.reduce(cx, squeezed, hidden, active);
        let weight = cx.weight(self.expand.weight);
        let packed = Packed::new(cx, self.expand.weight, Form::Slices(SLICE), packed, |packed| {
            let packed = Shared::new(packed);
            cx.parallel(channels.div_ceil(SLICE), |task, _| {
                let own = task * SLICE * width..weight.len().min((task + 1) * SLICE * width);
                // SAFETY: each task has its own slice.
                transpose(&weight[own.clone()], width, unsafe { packed.part(own) });
            });
        });
        let (packed, bias) = (packed.numbers(), cx.weight(self.expand.bias));
        let active = Factor { data: active, row_stride: width, depth_stride: 1 };
        let gate = Shared::new(gate);
        cx.parallel(channels.div_ceil(SLICE), |task, _| {
            let own = task * SLICE..channels.min((task + 1) * SLICE);
            let packed = &packed[own.start * width..own.end * width];
            // SAFETY: each task has its own channels.
            let mut gate = unsafe { Region::of(gate, own.start, channels, images, own.len()) };
            let start = Start::Bias(&bias[own.clone()]);
            let product = WeightedRows { a: active, depth: width, b: packed, stride: own.len(), start };
            weighted_rows(product, &mut gate);
            sigmoid_in_place(&mut gate);
        });
    }

    /// `squeezed` → `hidden` and its silu.
    fn reduce(&self, cx: &Context, squeezed: &[f32], hidden: &mut [f32], active: &mut [f32]) {
        let (images, channels, width) = (self.images, self.reduce.inputs, self.reduce.outputs);
        let (weight, bias) = (cx.weight(self.reduce.weight), cx.weight(self.reduce.bias));
        let (hidden, active) = (Shared::new(hidden), Shared::new(active));
        let across = width.div_ceil(HIDDEN_ROWS);
        cx.parallel(images.div_ceil(GROUP) * across, |task, _| {
            let own = task / across * GROUP..images.min((task / across + 1) * GROUP);
            let rows = task % across * HIDDEN_ROWS..width.min((task % across + 1) * HIDDEN_ROWS);
            // SAFETY: each task has its own images and rows of the weight.
            let mut out =
                unsafe { Region::of(hidden, own.start * width + rows.start, width, own.len(), rows.len()) };
            let squeezed = &squeezed[own.start * channels..own.end * channels];
            let weight = &weight[rows.start * channels..rows.end * channels];
            dots(squeezed, weight, channels, &bias[rows.clone()], &mut out);
            for image in own {
                let place = image * width + rows.start..image * width + rows.end;
                // SAFETY: as above.
                let (hidden, active) = unsafe { (hidden.part(place.clone()), active.part(place)) };
                silu(hidden, active);
            }
        });
    }
}

/// [rows, columns] → [columns, rows].
fn transpose(from: &[f32], columns: usize, to: &mut [f32]) {
    let rows = from.len() / columns;
    for (column, to) in to.chunks_exact_mut(rows).enumerate() {
        for (row, to) in to.iter_mut().enumerate() {
            *to = from[row * columns + column];
        }
    }
}

impl OnCpu for SqueezeBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        WorkspaceFloats { shared: workspace_floats(&backward_lengths(self)), per_thread: 0 }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let (images, channels, width) = (self.images, self.channels, self.reduce.outputs);
        let tasks = images.div_ceil(GROUP);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([partials, dz, active, dhidden], squeeze_gradient, norm, layers) = unsafe {
            let layers = [self.expand.weight, self.expand.bias, self.reduce.weight, self.reduce.bias];
            (
                cx.workspace(backward_lengths(self)),
                Shared::new(cx.write(self.squeeze_gradient)),
                NormSums::of(cx, &self.bn),
                layers.map(|param| Shared::new(cx.gradient_mut(param))),
            )
        };
        {
            let partials = Shared::new(&mut *partials);
            let (dz, active, dhidden) =
                (Shared::new(&mut *dz), Shared::new(&mut *active), Shared::new(&mut *dhidden));
            cx.parallel(tasks, |task, _| {
                let own = task * GROUP..images.min((task + 1) * GROUP);
                let (wide, narrow) =
                    (own.start * channels..own.end * channels, own.start * width..own.end * width);
                // SAFETY: each task has its own images and its own partial sums.
                let out = unsafe {
                    Images {
                        dz: dz.part(wide.clone()),
                        active: active.part(narrow.clone()),
                        dhidden: dhidden.part(narrow),
                        squeeze_gradient: squeeze_gradient.part(wide),
                        sums: partials.part(task * 2 * channels..(task + 1) * 2 * channels),
                    }
                };
                backward_images(cx, self, own.start, out);
            });
        }
        weight_gradients(cx, self, [dz, active, dhidden].map(|values| &*values), layers);
        norm.finish(cx, partials);
    }
}

fn backward_lengths(p: &SqueezeBackward) -> [usize; 4] {
    let (images, channels, width) = (p.images, p.channels, p.reduce.outputs);
    let partials = sums_floats(images.div_ceil(GROUP), channels);
    [partials, images * channels, images * width, images * width]
}

/// What a task of the backward pass writes, for its own images.
struct Images<'a> {
    /// Gradient before the gate's sigmoid, [images, C].
    dz: &'a mut [f32],
    /// silu(hidden), [images, S].
    active: &'a mut [f32],
    /// Gradient at `hidden`, [images, S].
    dhidden: &'a mut [f32],
    squeeze_gradient: &'a mut [f32],
    /// [2, C].
    sums: &'a mut [f32],
}

/// From the gate's gradient back to the pooled features, for the images from `first` on.
fn backward_images(cx: &Context, p: &SqueezeBackward, first: usize, out: Images) {
    let (channels, width) = (p.channels, p.reduce.outputs);
    let wide = first * channels..first * channels + out.dz.len();
    let five = cx.read(p.five_sums);
    let sum = |number: usize| {
        let start = number * p.images * channels;
        &five[start + wide.start..start + wide.end]
    };
    let gate = &cx.read(p.gate)[wide.clone()];
    let hidden = &cx.read(p.hidden)[first * width..][..out.active.len()];
    gate_gradient(sum(0), gate, out.dz);
    let a = Factor { data: out.dz, row_stride: channels, depth_stride: 1 };
    let b = cx.weight(p.expand.weight);
    let product = WeightedRows { a, depth: channels, b, stride: width, start: Start::Zero };
    weighted_rows(product, &mut Region::whole(out.dhidden, width));
    hidden_gradient(hidden, out.active, out.dhidden);
    let a = Factor { data: out.dhidden, row_stride: width, depth_stride: 1 };
    let b = cx.weight(p.reduce.weight);
    let product = WeightedRows { a, depth: width, b, stride: channels, start: Start::Zero };
    weighted_rows(product, &mut Region::whole(out.squeeze_gradient, channels));
    let sums = [sum(1), sum(2), sum(3), sum(4)];
    batch_norm_sums(p.pixels as f32, gate, out.squeeze_gradient, sums, out.sums);
}

/// Adds the gradients of both dense layers. A task has a block of rows of one weight and adds the images in
/// order.
fn weight_gradients(
    cx: &Context,
    p: &SqueezeBackward,
    [dz, active, dhidden]: [&[f32]; 3],
    [expand_weight, expand_bias, reduce_weight, reduce_bias]: [Shared; 4],
) {
    let (images, channels, width) = (p.images, p.channels, p.reduce.outputs);
    let squeezed = cx.read(p.squeezed);
    let expand = channels.div_ceil(SLICE);
    let reduce = width.div_ceil(HIDDEN_ROWS);
    cx.parallel(expand + reduce, |task, _| {
        // [rows, columns] += Σ over images of d[image, row]·x[image, column].
        let (weight, bias, d, rows, x, columns, own) = if task < expand {
            let own = task * SLICE..channels.min((task + 1) * SLICE);
            (expand_weight, expand_bias, dz, channels, active, width, own)
        } else {
            let first = (task - expand) * HIDDEN_ROWS;
            let own = first..width.min(first + HIDDEN_ROWS);
            (reduce_weight, reduce_bias, dhidden, width, squeezed, channels, own)
        };
        // SAFETY: each task has its own rows.
        let (weight, bias) =
            unsafe { (weight.part(own.start * columns..own.end * columns), bias.part(own.clone())) };
        let a = Factor { data: &d[own.start..], row_stride: 1, depth_stride: rows };
        let product = WeightedRows { a, depth: images, b: x, stride: columns, start: Start::Add };
        weighted_rows(product, &mut Region::whole(weight, columns));
        add_column_sums(&d[own.start..], rows, images, bias);
    });
}

dispatch! {
    /// dz = S0·gate·(1−gate).
    fn gate_gradient(s0: &[f32], gate: &[f32], dz: &mut [f32]) => gate_gradient_body;
    /// active = silu(hidden), gradient *= silu'(hidden).
    fn hidden_gradient(hidden: &[f32], active: &mut [f32], gradient: &mut [f32]) => hidden_gradient_body;
    /// Divides the squeeze gradient by the pixels and sums gate·S1 + d·S2 and gate·S3 + d·S4 over the images.
    fn batch_norm_sums(pixels: f32, gate: &[f32], d: &mut [f32], sums: [&[f32]; 4], out: &mut [f32])
        => batch_norm_sums_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn gate_gradient_body<V: Vector>(s0: &[f32], gate: &[f32], dz: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, dz.len(), |at, count| {
            let gate = read::<V, _>(gate, at, count);
            let slope = gate.mul(V::splat(1.0).sub(gate));
            write(dz, at, count, read::<V, _>(s0, at, count).mul(slope));
        });
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn hidden_gradient_body<V: Vector>(hidden: &[f32], active: &mut [f32], gradient: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, hidden.len(), |at, count| {
            let (value, derivative) = read::<V, _>(hidden, at, count).silu_with_derivative();
            write(active, at, count, value);
            write(gradient, at, count, read::<V, _>(gradient, at, count).mul(derivative));
        });
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn batch_norm_sums_body<V: Vector>(
    pixels: f32,
    gate: &[f32],
    d: &mut [f32],
    sums: [&[f32]; 4],
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (first, second) = out.split_at_mut(out.len() / 2);
        let channels = first.len();
        let pixels = V::splat(pixels);
        each_vector!(V, channels, |at, count| {
            let (mut du, mut du_y) = (V::zero(), V::zero());
            for image in 0..gate.len() / channels {
                let at = image * channels + at;
                let gate = read::<V, _>(gate, at, count);
                let own = read::<V, _>(d, at, count).div(pixels);
                write(d, at, count, own);
                du = own.mul_add(read(sums[1], at, count), gate.mul_add(read(sums[0], at, count), du));
                du_y = own.mul_add(read(sums[3], at, count), gate.mul_add(read(sums[2], at, count), du_y));
            }
            write(first, at, count, du);
            write(second, at, count, du_y);
        });
    }
}
