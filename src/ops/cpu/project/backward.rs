//! Backward: the unit of work is a tile's rows times one *panel* of wide channels, all in the first-level
//! cache: da = dy3·W, then one sweep over da and x that takes the five sums and forms A from one sigmoid,
//! then dW += dy3ᵀ·A.
//!
//! A task owns a group of images (or of parts of large images) and a slice of the wide channels: as many groups as
//! their partial weight gradients allow, and slices if these are too few tasks.

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::Input;
use crate::ops::ProjectBackward;
use crate::ops::cpu::batch_norm::backward_coefficients;
use crate::ops::cpu::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use crate::ops::cpu::expand::{BackwardTasks, PANEL, TASKS, row_factors};
use crate::ops::cpu::gemm::rows::{
    Operand, RowBlock, TILE, after, batch_norm_backward, floats_of, streams, tiles,
};
use crate::ops::cpu::gemm::{self, Ahead, Panels, Product, padded};
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, dispatch, fence, prefetch, silu_with_derivative_each};

/// How the rows of a backward pass are cut: images into parts, parts into groups.
#[derive(Clone, Copy)]
struct Units {
    images: usize,
    pixels: usize,
    /// Parts of an image: more than one if images are large and few.
    parts: usize,
    tasks: BackwardTasks,
}

impl Units {
    fn new(p: &ProjectBackward) -> Units {
        let rows = p.images * p.pixels;
        let parts = TASKS.div_ceil(p.images).min(p.pixels / (8 * TILE)).max(1);
        let tasks = BackwardTasks::new(rows, p.images * parts, p.outputs, p.inputs);
        Units { images: p.images, pixels: p.pixels, parts, tasks }
    }

    fn count(&self) -> usize {
        self.images * self.parts
    }

    #[inline(always)]
    fn image(&self, unit: usize) -> usize {
        if self.parts == 1 { unit } else { unit / self.parts }
    }

    #[inline(always)]
    fn rows(&self, unit: usize) -> Range<usize> {
        if self.parts == 1 {
            return unit * self.pixels..(unit + 1) * self.pixels;
        }
        let start = unit / self.parts * self.pixels;
        let part = part_of(self.pixels, self.parts, unit % self.parts);
        start + part.start..start + part.end
    }

    /// Units of a tile: several small images, or one unit (which may have several tiles).
    fn per_tile(&self) -> usize {
        if self.parts > 1 { 1 } else { (TILE / self.pixels).max(1) }
    }
}

fn backward_lengths<E: Element>(p: &ProjectBackward, units: &Units) -> [usize; 4] {
    let sums = if units.parts > 1 { 5 * units.count() * p.inputs } else { 0 };
    let packed = floats_of::<E>(gemm::depth::<E>(p.outputs) * padded(p.inputs));
    [packed, 4 * p.outputs, units.tasks.groups * p.outputs * padded(p.inputs), sums]
}

/// What all tasks of a backward pass share.
struct BackwardPass<'a, E> {
    p: &'a ProjectBackward,
    units: Units,
    wide: Panels,
    input: Input<'a, E>,
    y: &'a [E],
    dout: &'a [E],
    keep: Option<&'a [f32]>,
    packed: &'a [E],
    coefficients: &'a [f32],
    gradients: Shared<'a>,
    da: Shared<'a, E>,
    /// [5, units, K].
    sums: Shared<'a>,
}

impl OnCpu for ProjectBackward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let dy = Operand::<E>::floats(TILE, padded(self.outputs));
        let per_thread = workspace_floats(&[TILE, dy, TILE * PANEL, floats_of::<E>(TILE * PANEL)]);
        WorkspaceFloats {
            shared: workspace_floats(&backward_lengths::<E>(self, &Units::new(self))),
            per_thread,
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let units = Units::new(self);
        let wide = Panels::new(self.inputs);
        let BackwardTasks { groups, slices } = units.tasks;
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed, coefficients, gradients, parts], da, five_sums, weight) = unsafe {
            let (da, five_sums) = (cx.write_activation::<E>(self.da), cx.write(self.five_sums));
            (cx.workspace(backward_lengths::<E>(self, &units)), da, five_sums, cx.gradient_mut(self.weight))
        };
        let packed = &mut cast_slice_mut::<_, E>(packed)[..gemm::depth::<E>(self.outputs) * wide.padded()];
        let gradients = &mut gradients[..groups * self.outputs * wide.padded()];
        gemm::pack(cx, cx.weight(self.weight), wide, packed);
        backward_coefficients(cx, &self.bn, coefficients);
        let sums = if units.parts > 1 { &mut *parts } else { &mut *five_sums };
        let pass = BackwardPass::<E> {
            p: self,
            units,
            wide,
            input: Input {
                x: cx.activation::<E>(self.x),
                coefficients: cx.read(self.input_bn.coefficients),
                gate: cx.read(self.gate),
                pixels: self.pixels,
                channels: self.inputs,
            },
            y: cx.activation::<E>(self.y),
            dout: cx.activation::<E>(self.dout),
            keep: self.keep.map(|t| cx.read(t)),
            packed,
            coefficients,
            gradients: Shared::new(&mut *gradients),
            da: Shared::new(da),
            sums: Shared::new(sums),
        };
        cx.parallel(groups * slices, |task, scratch| {
            let (group, slice) = (task / slices, task % slices);
            let panels = part_of(wide.count(), slices, slice);
            pass.run(group, panels, scratch);
            fence();
        });
        if units.parts > 1 {
            add_parts(cx, &units, self.inputs, parts, five_sums);
        }
        gemm::add_weight_gradient(cx, gradients, self.outputs, self.inputs, false, weight);
    }
}

/// Asks for a block of x while a product runs: its rows are too far apart for the hardware's prefetching.
fn prefetch_block<E: Element>(x: &[E], block: RowBlock) {
    for row in 0..block.rows {
        x[block.range(row)].iter().step_by(64 / size_of::<E>()).for_each(|line| prefetch(line));
    }
}

/// Adds up the five sums of each image's parts, in order.
fn add_parts(cx: &Context, units: &Units, channels: usize, parts: &[f32], five_sums: &mut [f32]) {
    let five_sums = Shared::new(five_sums);
    cx.parallel(units.images, |image, _| {
        for sum in 0..5 {
            let at = (sum * units.images + image) * channels;
            // SAFETY: each task has its own image.
            let to = unsafe { five_sums.part(at..at + channels) };
            to.fill(0.0);
            let from = &parts[at * units.parts..(at + channels) * units.parts];
            for part in from.chunks_exact(channels) {
                to.iter_mut().zip(part).for_each(|(to, part)| *to += part);
            }
        }
    });
}

impl<E: Element> BackwardPass<'_, E> {
    fn run(&self, group: usize, panels: Range<usize>, scratch: &mut [f32]) {
        let own = part_of(self.units.count(), self.units.tasks.groups, group);
        let mut unit = own.start;
        while unit < own.end {
            let end = (unit + self.units.per_tile()).min(own.end);
            let rows = self.units.rows(unit).start..self.units.rows(end - 1).end;
            // Tiles of one unit, or one tile of several units.
            for tile in tiles(rows) {
                self.tile(group, &own, unit..end, &tile, panels.clone(), scratch);
            }
            unit = end;
        }
    }

    /// One tile: the rows of `units`, which are some of the task's `own`.
    fn tile(
        &self,
        group: usize,
        own: &Range<usize>,
        units: Range<usize>,
        tile: &Range<usize>,
        panels: Range<usize>,
        scratch: &mut [f32],
    ) {
        let outputs = self.p.outputs;
        let stride = padded(outputs);
        let (factors, rest) = scratch.split_at_mut(TILE);
        let (dy, rest) = rest.split_at_mut(Operand::<E>::floats(TILE, stride));
        let (da, a) = rest.split_at_mut(TILE * PANEL);
        let (mut dy, a) = (Operand::<E>::new(dy, TILE, stride), cast_slice_mut::<_, E>(a));
        row_factors(self.keep, self.p.pixels, tile, factors);
        let narrow = RowBlock::new(tile, 0..outputs, outputs);
        batch_norm_backward(self.dout, self.y, narrow, factors, self.coefficients, &mut dy);
        let size = outputs * self.wide.padded();
        let sequential = panels.len() == self.wide.count();
        let mut ahead = Ahead::none();
        if sequential {
            let next = after(tile, &(tile.start..self.units.rows(own.end - 1).end));
            ahead = Ahead::new(self.input.x, next.start * self.p.inputs..next.end * self.p.inputs);
        }
        for panel in self.wide.range(panels) {
            let part = panel.first * outputs..(panel.first + panel.width) * outputs;
            let depth = gemm::depth::<E>(outputs);
            let packed = panel.first * depth..(panel.first + panel.width) * depth;
            let block = RowBlock::of(tile, panel, self.p.inputs);
            if !sequential {
                prefetch_block(self.input.x, block);
            }
            gemm::multiply(Product {
                rows: tile.len(),
                depth: outputs,
                width: panel.width,
                a: dy.by_columns(),
                b: (&self.packed[packed], panel.width),
                c: (&mut *da, panel.width),
                add: false,
                ahead: &mut ahead,
            });
            let (units, cut) = (units.clone(), self.units);
            let rows = BackwardTile { block, units, cut, from: da, da: self.da, sums: self.sums };
            // SAFETY: each task has its own units and panels.
            unsafe { backward_tile(self.input, &rows, a) };
            let part = group * size + part.start..group * size + part.end;
            // SAFETY: each task has its own panels of its group's gradient.
            let gradient = unsafe { self.gradients.part(part) };
            gemm::multiply_transposed(Product {
                rows: outputs,
                depth: tile.len(),
                width: panel.width,
                a: dy.by_rows(0),
                b: (&*a, panel.width),
                c: (gradient, panel.width),
                add: tile.start > self.units.rows(own.start).start,
                ahead: &mut ahead,
            });
        }
    }
}

/// The rows of a tile and the columns of a panel, after the product.
struct BackwardTile<'a, E> {
    block: RowBlock,
    /// The units of these rows.
    units: Range<usize>,
    cut: Units,
    /// da, rows of whole vectors.
    from: &'a [f32],
    da: Shared<'a, E>,
    /// [5, units, channels].
    sums: Shared<'a>,
}

dispatch! {
    /// da from `tile.from` to its place, A, interleaved, into `a`, and the five sums.
    /// # Safety
    /// The block of da and its columns of the units' sums belong to the calling task.
    unsafe fn backward_tile<E>(input: Input<'_, E>, tile: &BackwardTile<'_, E>, a: &mut [E]) => backward_tile_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`backward_tile`].
#[inline(always)]
unsafe fn backward_tile_body<V: Vector, E: Element>(
    input: Input<'_, E>,
    tile: &BackwardTile<'_, E>,
    a: &mut [E],
) {
    let (block, cut, channels) = (tile.block, tile.cut, input.channels);
    let width = block.columns.next_multiple_of(V::LANES);
    input.check(block);
    block.check(tile.da.len());
    assert!(block.rows * width <= tile.from.len());
    assert!(gemm::depth::<E>(block.rows) * width <= a.len());
    let streams = streams::<E>(tile.da.len());
    for first in (0..block.columns).step_by(V::LANES) {
        let (count, channel) = (V::LANES.min(block.columns - first), block.column + first);
        // SAFETY: the block lies within all tensors by the checks above; the rest is the caller's promise.
        unsafe {
            let of = input.coefficients.as_ptr().add(channel);
            let (mean, r) = (V::load_some(of, count), V::load_some(of.add(channels), count));
            let scale = V::load_some(of.add(2 * channels), count);
            let shift = V::load_some(of.add(3 * channels), count);
            for unit in tile.units.clone() {
                let rows = cut.rows(unit);
                let gate = input.gate.as_ptr().add(cut.image(unit) * channels + channel);
                let gate = V::load_some(gate, count);
                let mut sums = [V::zero(); 5];
                if rows.start < block.row {
                    for (number, sum) in sums.iter_mut().enumerate() {
                        let at = (number * cut.count() + unit) * channels + channel;
                        *sum = V::load_some(tile.sums.part(at..at + count).as_ptr(), count);
                    }
                }
                let start = rows.start.max(block.row) - block.row;
                let end = rows.end.min(block.row + block.rows) - block.row;
                let columns = Columns { mean, r, scale, shift, gate, first, count, streams };
                let mut row = start;
                while row < end {
                    // A group's rows are stored together where both belong to the unit.
                    row += match end - row {
                        4.. if row % 2 == 0 && V::REGISTERS >= 32 => {
                            columns.rows::<E, 4>(input, tile, row, width, a, &mut sums)
                        }
                        2.. if row % 2 == 0 => columns.rows::<E, 2>(input, tile, row, width, a, &mut sums),
                        _ => columns.rows::<E, 1>(input, tile, row, width, a, &mut sums),
                    };
                }
                for (number, sum) in sums.iter().enumerate() {
                    let at = (number * cut.count() + unit) * channels + channel;
                    sum.store_some(tile.sums.part(at..at + count).as_mut_ptr(), count, false);
                }
            }
        }
    }
}

/// A vector of channels of one image.
#[derive(Clone, Copy)]
struct Columns<V> {
    mean: V,
    r: V,
    scale: V,
    shift: V,
    gate: V,
    /// The first channel, from the block's, and how many there are.
    first: usize,
    count: usize,
    streams: bool,
}

impl<V: Vector> Columns<V> {
    /// Stores da and A of `R` rows and adds to the five sums, row by row. Returns `R`; the first row is even if that is
    /// more than one.
    ///
    /// # Safety
    /// The rows and columns lie within all tensors, and belong to the caller.
    #[inline(always)]
    unsafe fn rows<E: Element, const R: usize>(
        &self,
        input: Input<'_, E>,
        tile: &BackwardTile<'_, E>,
        first_row: usize,
        width: usize,
        a: &mut [E],
        sums: &mut [V; 5],
    ) -> usize {
        let Columns { mean, r, scale, shift, gate, first, count, streams } = *self;
        let place = |i: usize| tile.block.range(first_row + i).start + first;
        // SAFETY: the caller's promise.
        unsafe {
            let mut x = [mean; R];
            let mut z = [mean; R];
            for i in 0..R {
                x[i] = E::load_some::<V>(input.x.as_ptr().add(place(i)), count);
                z[i] = x[i].mul_add(scale, shift);
            }
            let (silu, slope) = silu_with_derivative_each::<E, V, R>(&z);
            for i in 0..R {
                // The passes that follow read da as stored, so the sums are taken of that.
                let da = E::rounded(V::load(tile.from.as_ptr().add((first_row + i) * width + first)));
                E::store_some(da, tile.da.part(place(i)..place(i) + count).as_mut_ptr(), count, streams);
                let yhat = x[i].sub(mean).mul(r);
                let product = da.mul(slope[i]);
                sums[0] = da.mul_add(silu[i], sums[0]);
                sums[1] = sums[1].add(product);
                sums[2] = sums[2].add(slope[i]);
                sums[3] = product.mul_add(yhat, sums[3]);
                sums[4] = slope[i].mul_add(yhat, sums[4]);
            }
            let group = |i: usize| ((first_row + i) / E::DEPTH * width + first) * E::DEPTH;
            let a = a.as_mut_ptr();
            for i in (0..R / 2).map(|pair| 2 * pair) {
                let rows = [silu[i].mul(gate), silu[i + 1].mul(gate)];
                E::store_two_interleaved(rows, a.add(group(i)), a.wrapping_add(group(i + 1)));
            }
            if R == 1 {
                E::store_interleaved(silu[0].mul(gate), a.add(group(0)), first_row % E::DEPTH);
            }
        }
        R
    }
}
