//! Inference: a block's outputs pass through batch norm and silu while they are in registers, and are added up for the
//! means over the image.
//!
//! So squeeze-excite needs no sweep of its own, and the projection finds its input activated. A sum covers few pixels
//! before it is added to the total, so that fp32 stays exact to a few units in the last place on large maps. The means
//! of an image depend neither on the number of images nor on how tasks are cut.

use std::ops::Range;

use super::forward::{Input, Job, Slice, scratch};
use super::{Shape, accumulate, get, put};
use crate::ops::DepthwiseInference;
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, silu_each};
use crate::ops::cpu::sweep::each_vector;

/// Pixels that are summed before the sum is added to the total, in whole rows.
const BLOCK: usize = 256;

/// What inference does to the output.
#[derive(Clone, Copy)]
pub struct Activated<'a> {
    /// [4, C].
    pub coefficients: &'a [f32],
    /// [images, C].
    pub means: Shared<'a>,
}

impl Activated<'_> {
    /// Where the means of an image and a slice are.
    pub fn place(&self, shape: &Shape, image: usize, slice: &Range<usize>) -> Range<usize> {
        image * shape.channels + slice.start..image * shape.channels + slice.end
    }
}

fn shape<E: Element>(pass: &DepthwiseInference) -> Shape {
    let DepthwiseInference { images, channels, window, .. } = pass;
    Shape::new::<E>(*images, *channels, window, |shape| scratch(shape).iter().sum())
}

impl OnCpu for DepthwiseInference {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let shape = shape::<E>(self);
        WorkspaceFloats {
            shared: workspace_floats(&[shape.packed_weights()]),
            per_thread: scratch(&shape).iter().sum::<usize>() * shape.slice_stride(),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let shape = shape::<E>(self);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([weights], a, means) = unsafe {
            (
                cx.workspace([shape.packed_weights()]),
                Shared::new(cx.write_activation::<E>(self.a)),
                Shared::new(cx.write(self.squeezed)),
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
            activated: Some(Activated { coefficients: cx.read(self.bn.coefficients), means }),
        };
        job.run(cx);
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

/// After output row `row`: moves the slice's sums to the totals, if they cover enough pixels or the image ends. Then
/// the totals become means.
/// # Safety
/// The instruction set of `V` is present, `memory.activated` has three rows.
#[inline(always)]
pub unsafe fn add_to_means<V: Vector>(shape: &Shape, memory: &Slice, row: usize, means: &mut [f32]) {
    let rows = (BLOCK / shape.output).max(1);
    let last = row + 1 == shape.output;
    if !last && !(row + 1).is_multiple_of(rows) {
        return;
    }
    assert_eq!(means.len(), memory.width);
    // SAFETY: the caller's promise, and there are `memory.width` means.
    unsafe {
        let pixels = V::splat((shape.output * shape.output) as f32);
        each_vector!(V, memory.width, |at, count| {
            let (sums, to) = (memory.activated.add(2 * memory.stride + at), means.as_mut_ptr().add(at));
            let mut total = V::load(sums);
            V::zero().store(sums);
            if row >= rows {
                total = total.add(get::<V, f32>(to, count));
            }
            put::<V, f32>(if last { total.div(pixels) } else { total }, to, count);
        });
    }
}
