//! Inference: a block's outputs pass through batch norm and silu while they are in registers, and are added up for the
//! means over the image.
//!
//! So squeeze-excite needs no sweep of its own, and the projection finds its input activated. A sum covers a block of few
//! rows before it is added to the total, so that fp32 stays exact to a few units in the last place on large maps. The
//! blocks are a function of the map alone and are added in order, by the task itself, or, where tasks have bands of an
//! image, after all of them. So the means of an image depend neither on the number of images nor on how tasks are cut.

use super::forward::{Input, Job, Slice, scratch};
use super::{Shape, accumulate, dispatch, get, put};
use crate::ops::DepthwiseInference;
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, silu_each};
use crate::ops::cpu::sweep::{each_vector, read, write};

/// What inference does to the output.
#[derive(Clone, Copy)]
pub struct Activated<'a> {
    /// [4, C].
    coefficients: &'a [f32],
    /// [images, C], which become the means, or with bands those of blocks, [images, blocks, C].
    totals: Shared<'a>,
}

/// [`Activated::totals`] of one image, from the slice's first channel on.
pub struct ImageTotals<'a> {
    totals: Shared<'a>,
    start: usize,
}

impl<'a> Activated<'a> {
    pub fn coefficients(&self) -> &'a [f32] {
        self.coefficients
    }

    pub fn totals_of(&self, shape: &Shape, image: usize, channel: usize) -> ImageTotals<'a> {
        let rows = if shape.bands > 1 { shape.blocks() } else { 1 };
        ImageTotals { totals: self.totals, start: image * rows * shape.channels + channel }
    }
}

impl Shape {
    /// Floats of workspace for the totals of blocks.
    pub fn band_totals(&self) -> usize {
        if self.bands > 1 { self.images * self.blocks() * self.channels } else { 0 }
    }
}

/// Runs a job with an activated output, and takes the output's means [images, C]. `totals` has [`Shape::band_totals`].
pub fn run<E: Element>(
    cx: &Context,
    job: Job<E>,
    coefficients: &[f32],
    totals: &mut [f32],
    means: &mut [f32],
) {
    let shape = job.shape;
    let own = Shared::new(if shape.bands > 1 { &mut *totals } else { &mut *means });
    Job { activated: Some(Activated { coefficients, totals: own }), ..job }.run(cx);
    if shape.bands > 1 {
        let blocks = shape.blocks() * shape.channels;
        for (totals, means) in totals.chunks_exact(blocks).zip(means.chunks_exact_mut(shape.channels)) {
            add_blocks(totals, (shape.output * shape.output) as f32, means);
        }
    }
}

fn shape<E: Element>(pass: &DepthwiseInference) -> Shape {
    let DepthwiseInference { images, channels, window, .. } = pass;
    Shape::new::<E>(*images, *channels, window, |shape| scratch(shape).iter().sum()).in_bands()
}

impl OnCpu for DepthwiseInference {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = shape::<E>(self);
        WorkspaceFloats {
            shared: workspace_floats(&[shape.packed_weights(), shape.band_totals()]),
            per_thread: scratch(&shape).iter().sum::<usize>() * shape.slice_stride(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = shape::<E>(self);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([weights, totals], a, means) = unsafe {
            (
                cx.workspace([shape.packed_weights(), shape.band_totals()]),
                Shared::new(cx.write_activation::<E>(self.a)),
                cx.write(self.squeezed),
            )
        };
        let weights = shape.packed(cx, self.weight, weights);
        let job = Job {
            shape,
            input: Input::Stored(cx.activation::<E>(self.x)),
            input_bn: self.input_bn.map(|bn| cx.read(bn.coefficients)),
            weights: weights.numbers(),
            y: a,
            statistics: None,
            activated: None,
        };
        run(cx, job, cx.read(self.bn.coefficients), totals, means);
    }
}

/// Makes raw outputs of the channels from `c` on activated ones, and adds them to the slice's sums.
/// # Safety
/// `memory.activated` has three rows, and `c` is the place of a vector in them.
#[inline(always)]
pub unsafe fn activate_block<V: Vector, E: Element, const B: usize>(
    block: &mut [V; B],
    memory: &Slice,
    c: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let scale = V::load(memory.activated.add(c));
        let shift = V::load(memory.activated.add(memory.stride + c));
        for value in block.iter_mut() {
            *value = value.mul_add(scale, shift);
        }
        *block = silu_each::<E, V, B>(block);
        let mut sum = block[0];
        for value in &block[1..] {
            sum = sum.add(*value);
        }
        accumulate(sum, memory.activated.add(2 * memory.stride + c));
    }
}

/// After output row `row`: moves the slice's sums to the image's totals, if a block or the image ends. With bands they are
/// kept as they are; without, they are added up and become means.
/// # Safety
/// The instruction set of `V` is present, `memory.activated` has three rows, and these totals belong to the caller.
#[inline(always)]
pub unsafe fn add_to_totals<V: Vector>(shape: &Shape, memory: &Slice, row: usize, image: &ImageTotals) {
    let rows = shape.block_rows();
    let last = row + 1 == shape.output;
    if !last && !(row + 1).is_multiple_of(rows) {
        return;
    }
    let banded = shape.bands > 1;
    let start = image.start + if banded { row / rows * shape.channels } else { 0 };
    // SAFETY: the caller's promise.
    unsafe {
        let to = image.totals.part(start..start + memory.width).as_mut_ptr();
        let pixels = V::splat((shape.output * shape.output) as f32);
        each_vector!(V, memory.width, |at, count| {
            let (sums, to) = (memory.activated.add(2 * memory.stride + at), to.add(at));
            let mut total = V::load(sums);
            V::zero().store(sums);
            if !banded && row >= rows {
                total = total.add(get::<V, f32>(to, count));
            }
            put::<V, f32>(if last && !banded { total.div(pixels) } else { total }, to, count);
        });
    }
}

dispatch! {
    /// The means of an image [C] from the totals of its blocks [blocks, C].
    fn add_blocks(totals: &[f32], pixels: f32, means: &mut [f32]) => add_blocks_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn add_blocks_body<V: Vector>(totals: &[f32], pixels: f32, means: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let (channels, pixels) = (means.len(), V::splat(pixels));
        each_vector!(V, channels, |at, count| {
            let mut total = read::<V, _>(totals, at, count);
            for block in totals.chunks_exact(channels).skip(1) {
                total = total.add(read(block, at, count));
            }
            write(means, at, count, total.div(pixels));
        });
    }
}
