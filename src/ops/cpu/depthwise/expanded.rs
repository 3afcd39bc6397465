//! Inference with the expansion inside, depth first: a row of the expanded tensor is made when the convolution needs
//! it, in the ring, and is never in memory.
//!
//! A task's slice is a panel of the expansion's weight. For each row of its ring it multiplies a row of the block's
//! narrow input by this panel, and applies batch norm and silu in place. So the narrow input is read once for each
//! slice, out of the second-level cache but for the first, and the expanded tensor, six times as wide, is neither stored
//! nor loaded. Each element of it is computed once (twice in the few rows that two bands share), by the same chain of
//! multiply-adds as where it is stored.

use std::ops::Range;

use super::forward::{Input, Job, Slice, scratch};
use super::{Shape, inference};
use crate::ops::ExpandDepthwiseInference;
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, workspace_floats};
use crate::ops::cpu::expand::PANEL;
use crate::ops::cpu::gemm::rows::floats_of;
use crate::ops::cpu::gemm::{self, Ahead, Packed, Panel, Panels, Product, padded};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, silu_each};

/// The product that makes the expanded tensor.
#[derive(Clone, Copy)]
pub struct Expansion<'a, E> {
    /// The narrow input, [images·pixels, inputs].
    pub x: &'a [E],
    pub inputs: usize,
    pub panels: Panels,
    pub packed: &'a [E],
}

impl<'a, E: Element> Expansion<'a, E> {
    /// The channels of a task, and their number with the panel's padding.
    pub fn channels_of(&self, task: usize) -> (Range<usize>, usize) {
        let panel = self.panel(task);
        (panel.first..panel.first + panel.columns, panel.width)
    }

    fn panel(&self, task: usize) -> Panel {
        self.panels.panel(task % self.panels.count())
    }

    /// The rows of an image, for a task.
    pub fn image(&self, shape: &Shape, image: usize, task: usize) -> ExpandedRows<'a, E> {
        let pixels = shape.input * shape.input;
        let (depth, panel) = (gemm::depth::<E>(self.inputs), self.panel(task));
        ExpandedRows {
            x: &self.x[image * pixels * self.inputs..(image + 1) * pixels * self.inputs],
            inputs: self.inputs,
            packed: &self.packed[panel.first * depth..][..panel.width * depth],
            width: panel.width,
        }
    }
}

/// An image's rows and the panel that they are multiplied by.
pub struct ExpandedRows<'a, E> {
    x: &'a [E],
    inputs: usize,
    packed: &'a [E],
    width: usize,
}

impl<E: Element> ExpandedRows<'_, E> {
    /// Row `row` of the input, `columns` wide, expanded, normalised and activated.
    /// # Safety
    /// The instruction set of `V` is present. `ring` has so many columns, which nothing else uses.
    #[inline(always)]
    pub unsafe fn expand<V: Vector>(&self, row: usize, memory: &Slice, ring: *mut f32, columns: usize) {
        let start = row * columns * self.inputs;
        let stride = memory.stride;
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(ring, columns * stride) };
        gemm::multiply(Product {
            rows: columns,
            depth: self.inputs,
            width: self.width,
            a: (&self.x[start..start + columns * self.inputs], self.inputs),
            b: (self.packed, self.width),
            c: (to, stride),
            add: false,
            ahead: &mut Ahead::none(),
        });
        for c in (0..self.width).step_by(V::LANES) {
            // SAFETY: the caller's promise; `memory.input` has the coefficients of the whole panel.
            unsafe {
                let scale = V::load(memory.input.add(c));
                let shift = V::load(memory.input.add(stride + c));
                let mut column = 0;
                while column < columns {
                    let at = ring.add(column * stride + c);
                    if columns - column >= 4 {
                        activate::<V, E, 4>(at, stride, scale, shift);
                        column += 4;
                    } else {
                        activate::<V, E, 1>(at, stride, scale, shift);
                        column += 1;
                    }
                }
            }
        }
    }
}

/// Normalises and activates a vector of `B` columns in place.
/// # Safety
/// `at` has `B` columns, `stride` apart.
#[inline(always)]
unsafe fn activate<V: Vector, E: Element, const B: usize>(at: *mut f32, stride: usize, scale: V, shift: V) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut z = [scale; B];
        for (j, z) in z.iter_mut().enumerate() {
            *z = V::load(at.add(j * stride)).mul_add(scale, shift);
        }
        for (j, a) in silu_each::<E, V, B>(&z).iter().enumerate() {
            a.store(at.add(j * stride));
        }
    }
}

/// The partition into tasks: a slice is a panel.
fn shape<E: Element>(pass: &ExpandDepthwiseInference) -> (Shape, Panels) {
    let depthwise = &pass.depthwise;
    let panels = Panels::new(depthwise.channels);
    let floats = |shape: &Shape| scratch(shape).iter().sum();
    let shape = Shape::new::<E>(depthwise.images, depthwise.channels, &depthwise.window, floats);
    (Shape { slices: panels.count(), ..shape }.in_bands(), panels)
}

impl OnCpu for ExpandDepthwiseInference {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let (shape, _) = shape::<E>(self);
        let packed = floats_of::<E>(gemm::depth::<E>(self.expand.inputs) * padded(shape.channels));
        WorkspaceFloats {
            shared: workspace_floats(&[shape.packed_weights(), shape.band_totals(), packed]),
            per_thread: scratch(&shape).iter().sum::<usize>() * PANEL,
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let (shape, panels) = shape::<E>(self);
        let Self { expand, depthwise } = self;
        assert!(depthwise.input_bn.is_some(), "an expanded tensor is normalised");
        assert_eq!(expand.inputs % E::DEPTH, 0, "rows of the input are whole groups of an operand");
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([weights, totals, packed], a, means) = unsafe {
            let packed = floats_of::<E>(gemm::depth::<E>(expand.inputs) * panels.padded());
            (
                cx.workspace([shape.packed_weights(), shape.band_totals(), packed]),
                Shared::new(cx.write_activation::<E>(depthwise.a)),
                cx.write(depthwise.squeezed),
            )
        };
        let weights = shape.packed(cx, depthwise.weight, weights);
        let packed = Packed::transposed(cx, expand.weight, panels, packed);
        let job = Job {
            shape,
            input: Input::Expanded(Expansion {
                x: cx.activation::<E>(expand.x),
                inputs: expand.inputs,
                panels,
                packed: packed.numbers(),
            }),
            input_bn: depthwise.input_bn.map(|bn| cx.read(bn.coefficients)),
            weights: weights.numbers(),
            y: a,
            statistics: None,
            activated: None,
        };
        inference::run(cx, job, cx.read(depthwise.bn.coefficients), totals, means);
    }
}
