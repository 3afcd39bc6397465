//! Backward: dy exists only as a block of one tile's rows and about a hundred wide channels, which both
//! products read: dx += dy·W and dWᵀ += xᵀ·dy.
//!
//! With many rows, each group of rows computes its dx and its own sum of dW. With few rows and a large weight, the
//! partial sums of many groups would cost more than the products: then a first round of tasks over groups of rows
//! computes dx, and a second one over slices of the wide channels forms dy again and computes dW.

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::{BackwardTasks, GROUPS, TASKS, row_factors};
use crate::ops::cpu::batch_norm::{NormSums, backward_coefficients, sums_floats};
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use crate::ops::cpu::gemm::rows::{
    Operand, RowBlock, TILE, after, batch_norm_backward, floats_of, interleave, tiles,
};
use crate::ops::cpu::gemm::{self, Ahead, Panels, Product, padded};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, dispatch};
use crate::ops::{ExpandBackward, NarrowGradient};

/// Most wide channels of a block of dy.
const CHUNK: usize = 96;

struct Backward {
    weights: BackwardTasks,
    /// Groups of rows of dx: those of the weight gradient if one task computes both.
    data: usize,
}

impl Backward {
    fn new(p: &ExpandBackward) -> Backward {
        let tiles = p.rows.div_ceil(TILE);
        let weights = BackwardTasks::new(p.rows, tiles, p.inputs, p.outputs);
        let data = tiles.max((p.rows / 32).min(TASKS)).clamp(1, GROUPS);
        Backward { weights, data: if weights.slices == 1 { weights.groups } else { data } }
    }
}

/// What all tasks of a backward pass share.
struct BackwardPass<'a, E> {
    p: &'a ExpandBackward,
    wide: Panels,
    narrow: Panels,
    x: &'a [E],
    y: &'a [E],
    du: &'a [E],
    packed: &'a [E],
    coefficients: &'a [f32],
    gradients: Shared<'a>,
    dx: Shared<'a, E>,
    sums: Shared<'a>,
    /// None where there is no gradient at the input.
    previous: Option<Previous<'a, E>>,
}

/// What the epilogue of dx reads.
#[derive(Clone, Copy)]
struct Previous<'a, E> {
    y: &'a [E],
    /// μ, r, .. of the previous batch norm.
    coefficients: &'a [f32],
    shortcut: Option<&'a [E]>,
    /// The stochastic-depth factor of each image; none means one.
    keep: Option<&'a [f32]>,
    /// Rows of an image.
    pixels: usize,
}

impl<'a, E: Element> Previous<'a, E> {
    fn of(cx: &'a Context, NarrowGradient { shortcut, previous, .. }: &NarrowGradient) -> Previous<'a, E> {
        Previous {
            y: cx.activation(previous.y),
            coefficients: cx.read(previous.bn.coefficients),
            shortcut: shortcut.map(|t| cx.activation(t)),
            keep: previous.keep.map(|t| cx.read(t)),
            pixels: previous.pixels,
        }
    }
}

/// The packed weight, batch norm's coefficients, the weight's partial gradients, the partial sums, with inputs and outputs
/// `padded`. The first and the last serve the gradient at the input.
fn backward_lengths<E: Element>(p: &ExpandBackward, tasks: &Backward, padded: [usize; 2]) -> [usize; 4] {
    let data = |floats: usize| if p.narrow.is_some() { floats } else { 0 };
    let [inputs, outputs] = padded;
    [
        data(floats_of::<E>(gemm::depth::<E>(p.outputs) * inputs)),
        4 * p.outputs,
        tasks.weights.groups * p.inputs * outputs,
        data(sums_floats(tasks.data, p.inputs)),
    ]
}

impl OnCpu for ExpandBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let padded_sides = [self.inputs, self.outputs].map(padded);
        let lengths = backward_lengths::<E>(self, &Backward::new(self), padded_sides);
        let narrow = TILE * padded(self.inputs);
        let (dy, x) = (Operand::<E>::floats(TILE, CHUNK), Operand::<E>::floats(TILE, padded(self.inputs)));
        let per_thread = workspace_floats(&[dy, x, TILE, narrow]);
        WorkspaceFloats { shared: workspace_floats(&lengths), per_thread }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let tasks = Backward::new(self);
        let narrow = Panels::narrow(self.inputs);
        let wide = Panels::new(self.outputs);
        let gradient_floats = self.inputs * wide.padded();
        let lengths = backward_lengths::<E>(self, &tasks, [narrow.padded(), wide.padded()]);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed, coefficients, gradients, sums], dx, norm, weight) = unsafe {
            let norm = self.narrow.as_ref().map(|narrow| NormSums::of(cx, &narrow.previous.bn));
            let dx = self.narrow.as_ref().map_or(&mut [][..], |narrow| cx.write_activation::<E>(narrow.dx));
            (cx.workspace(lengths), dx, norm, cx.gradient_mut(self.weight))
        };
        let packed: &mut [E] = cast_slice_mut(packed);
        if self.narrow.is_some() {
            gemm::pack(cx, cx.weight(self.weight), narrow, packed);
        }
        backward_coefficients(cx, &self.bn, coefficients);
        let pass = BackwardPass::<E> {
            p: self,
            wide,
            narrow,
            x: cx.activation::<E>(self.x),
            y: cx.activation::<E>(self.y),
            du: cx.activation::<E>(self.du),
            packed,
            coefficients,
            gradients: Shared::new(&mut *gradients),
            dx: Shared::new(dx),
            sums: Shared::new(&mut *sums),
            previous: self.narrow.as_ref().map(|narrow| Previous::of(cx, narrow)),
        };
        let BackwardTasks { groups, slices } = tasks.weights;
        let all = 0..wide.count();
        let gradient = |group: usize| group * gradient_floats..(group + 1) * gradient_floats;
        if slices == 1 && pass.previous.is_some() {
            cx.parallel(groups, |group, scratch| {
                let rows = part_of(self.rows, groups, group);
                pass.run(rows, all.clone(), Some(group), Some(gradient(group)), scratch);
            });
        } else {
            // Without a gradient at the input, only the second round is left.
            let data = if pass.previous.is_some() { tasks.data } else { 0 };
            cx.parallel(data, |group, scratch| {
                let rows = part_of(self.rows, tasks.data, group);
                pass.run(rows, all.clone(), Some(group), None, scratch);
            });
            cx.parallel(groups * slices, |task, scratch| {
                let (group, slice) = (task / slices, task % slices);
                let panels = part_of(wide.count(), slices, slice);
                let rows = part_of(self.rows, groups, group);
                pass.run(rows, panels, None, Some(gradient(group)), scratch);
            });
        }
        if let Some(norm) = norm {
            norm.finish(cx, sums);
        }
        gemm::add_weight_gradient(cx, gradients, self.inputs, self.outputs, true, weight);
    }
}

impl<E: Element> BackwardPass<'_, E> {
    /// The rows of one task: dx and its sums (those of group `data`), the weight gradient, or both.
    fn run(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        data: Option<usize>,
        gradient: Option<Range<usize>>,
        scratch: &mut [f32],
    ) {
        let (inputs, outputs) = (self.p.inputs, self.p.outputs);
        let (dy, rest) = scratch.split_at_mut(Operand::<E>::floats(TILE, CHUNK));
        let (x, rest) = rest.split_at_mut(Operand::<E>::floats(TILE, padded(inputs)));
        let (factors, dx) = rest.split_at_mut(TILE);
        if let Some(group) = data {
            // SAFETY: each group has its own sums.
            unsafe { self.sums.part(group * 2 * inputs..(group + 1) * 2 * inputs) }.fill(0.0);
        }
        for tile in tiles(rows.clone()) {
            // If one task does all, the next tile's du and y are loaded while this tile's products run.
            let next = after(&tile, &rows);
            let next = if data.is_some() { next.start * outputs..next.end * outputs } else { 0..0 };
            let mut ahead = (Ahead::new(self.du, next.clone()), Ahead::new(self.y, next));
            let x = match gradient {
                Some(_) => self.rows_of_x(&tile, x),
                None => (&[][..], 0),
            };
            let mut number = panels.start;
            while number < panels.end {
                let (end, stride) = self.chunk(number, panels.end);
                let column = self.wide.panel(number).first;
                let block = RowBlock::new(&tile, column..outputs.min(column + stride), outputs);
                let mut dy = Operand::new(dy, TILE, stride);
                batch_norm_backward(self.du, self.y, block, &[], self.coefficients, &mut dy);
                if data.is_some() {
                    self.add_data(block, number > panels.start, dy.by_columns(), dx, &mut ahead.0);
                }
                if let Some(gradient) = &gradient {
                    let add = tile.start > rows.start;
                    let to = gradient.start;
                    self.add_gradient(block, number..end, add, (x, &dy), to, &mut ahead.1);
                }
                number = end;
            }
            if let (Some(group), Some(previous)) = (data, &self.previous) {
                row_factors(previous.keep, previous.pixels, &tile, factors);
                for panel in self.narrow.iter() {
                    let block = RowBlock::of(&tile, panel, inputs);
                    // SAFETY: each group of rows belongs to one task.
                    unsafe { finish(self, previous, group, block, &dx[panel.first..], factors) };
                }
            }
        }
    }

    /// The rows of a tile as the left-hand side of the weight gradient, and their stride.
    fn rows_of_x<'a>(&'a self, tile: &Range<usize>, scratch: &'a mut [f32]) -> (&'a [E], usize) {
        let inputs = self.p.inputs;
        let rows = &self.x[tile.start * inputs..tile.end * inputs];
        if E::DEPTH == 1 {
            return (rows, inputs);
        }
        let (out, stride) = (cast_slice_mut(scratch), padded(inputs));
        interleave(rows, inputs, out, stride);
        (out, stride)
    }

    /// As many panels from `number` on as fit a block of dy: the panel after the last, and the width of all.
    fn chunk(&self, number: usize, end: usize) -> (usize, usize) {
        let (mut next, mut width) = (number, 0);
        while next < end && width + self.wide.panel(next).width <= CHUNK {
            width += self.wide.panel(next).width;
            next += 1;
        }
        (next, width)
    }

    /// dx (+)= dy·W for a block of wide channels.
    fn add_data(&self, block: RowBlock, add: bool, dy: (&[E], usize), dx: &mut [f32], ahead: &mut Ahead) {
        let depth = gemm::depth::<E>(block.columns);
        for panel in self.narrow.iter() {
            let start = panel.first * gemm::depth::<E>(self.p.outputs) + block.column * panel.width;
            gemm::multiply(Product {
                rows: block.rows,
                depth: block.columns,
                width: panel.width,
                a: dy,
                b: (&self.packed[start..start + depth * panel.width], panel.width),
                c: (&mut dx[panel.first..], self.narrow.padded()),
                add,
                ahead,
            });
        }
    }

    /// dWᵀ (+)= xᵀ·dy for the panels of a block, into the gradient that starts at `start`.
    fn add_gradient(
        &self,
        block: RowBlock,
        panels: Range<usize>,
        add: bool,
        (x, dy): ((&[E], usize), &Operand<E>),
        start: usize,
        ahead: &mut Ahead,
    ) {
        let inputs = self.p.inputs;
        for panel in self.wide.range(panels) {
            let start = start + panel.first * inputs;
            gemm::multiply_transposed(Product {
                rows: inputs,
                depth: block.rows,
                width: panel.width,
                a: x,
                b: dy.by_rows(panel.first - block.column),
                // SAFETY: each task has its own panels of its group's gradient.
                c: (unsafe { self.gradients.part(start..start + panel.width * inputs) }, panel.width),
                add,
                ahead,
            });
        }
    }
}

dispatch! {
    /// Adds the shortcut to a block of dx, stores it, and adds Σ f·dx and Σ f·dx·ŷ to the group's sums [2, channels].
    /// # Safety
    /// The block of dx and the group's sums belong to the calling task.
    unsafe fn finish<E>(
        pass: &BackwardPass<'_, E>,
        previous: &Previous<'_, E>,
        group: usize,
        block: RowBlock,
        from: &[f32],
        factors: &[f32]
    ) => finish_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`finish`].
#[inline(always)]
unsafe fn finish_body<V: Vector, E: Element>(
    pass: &BackwardPass<'_, E>,
    previous: &Previous<'_, E>,
    group: usize,
    block: RowBlock,
    from: &[f32],
    factors: &[f32],
) {
    let BackwardPass { dx, sums, .. } = *pass;
    let stride = pass.narrow.padded();
    let start = group * 2 * block.channels;
    let padded = block.columns.next_multiple_of(V::LANES);
    assert!(block.rows == 0 || (block.rows - 1) * stride + padded <= from.len());
    assert!(factors.len() >= block.rows && previous.coefficients.len() >= 2 * block.channels);
    block.check(dx.len().min(previous.y.len()));
    if let Some(shortcut) = previous.shortcut {
        block.check(shortcut.len());
    }
    for first in (0..block.columns).step_by(V::LANES) {
        let count = V::LANES.min(block.columns - first);
        // SAFETY: the block lies within all tensors by the checks above; the rest is the caller's promise.
        unsafe {
            let channel = block.column + first;
            let mean = V::load_some(previous.coefficients.as_ptr().add(channel), count);
            let r = V::load_some(previous.coefficients.as_ptr().add(block.channels + channel), count);
            let at = start + channel;
            let plain_sum = sums.part(at..at + count).as_mut_ptr();
            let at = at + block.channels;
            let normalised_sum = sums.part(at..at + count).as_mut_ptr();
            let mut plain = V::load_some(plain_sum, count);
            let mut normalised = V::load_some(normalised_sum, count);
            for (row, &factor) in factors[..block.rows].iter().enumerate() {
                let at = block.range(row).start + first;
                let mut value = V::load(from.as_ptr().add(row * stride + first));
                if let Some(shortcut) = previous.shortcut {
                    value = value.add(E::load_some(shortcut.as_ptr().add(at), count));
                }
                // The passes that follow read dx as stored, so the sums are taken of that.
                let value = E::rounded(value);
                let to = dx.part(at..at + count).as_mut_ptr();
                E::store_some(value, to, count, false);
                let du = value.mul(V::splat(factor));
                let yhat = E::load_some::<V>(previous.y.as_ptr().add(at), count).sub(mean).mul(r);
                plain = plain.add(du);
                normalised = du.mul_add(yhat, normalised);
            }
            plain.store_part(plain_sum, count);
            normalised.store_part(normalised_sum, count);
        }
    }
}
