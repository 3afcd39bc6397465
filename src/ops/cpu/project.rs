//! The pointwise convolution that narrows: y = (silu(BN(x))·gate)·Wᵀ with statistics; backward.
//!
//! Forward, a task owns a group of rows and goes through it tile by tile: A = silu(BN(x))·gate of a few
//! hundred wide channels is formed in scratch and multiplied at once, the narrow y stays in the cache until
//! all wide channels have passed, and is stored with its statistics.
//!
//! Backward, the unit of work is a tile's rows times one *panel* of wide channels, all in the first-level
//! cache: da = dy3·W, then one sweep over da and x that takes the five sums and forms A from one sigmoid,
//! then dW += dy3ᵀ·A. A task owns a group of images (or of parts of large images) and a slice of the wide
//! channels: as many groups as their partial weight gradients allow, and slices where that is too few tasks.

use std::ops::Range;

use super::batch_norm::{backward_coefficients, finish_statistics, statistics_floats};
use super::context::{Context, Shared, Workspace, part_of, workspace_floats};
use super::expand::{BackwardTasks, GROUPS, PANEL, TASKS, row_factors};
use super::gemm::rows::{Block, Statistics, TILE, batch_norm_backward, store, tiles};
use super::gemm::{self, Panel, Panels, padded};
use super::simd::Vector;
use crate::dispatch;
use crate::ops::{self, ProjectBackward, ProjectForward};

/// Most wide channels of a block of A.
const CHUNK: usize = 256;

/// Groups of rows of the forward pass: at least 32 rows each.
fn forward_groups(rows: usize) -> usize {
    rows.div_ceil(TILE).max((rows / 32).min(TASKS)).clamp(1, GROUPS)
}

pub fn forward_workspace(p: &ProjectForward) -> Workspace {
    let groups = forward_groups(p.images * p.pixels);
    let lengths = [p.inputs * padded(p.outputs), statistics_floats(groups, p.outputs)];
    let per_thread = workspace_floats(&[TILE * CHUNK, TILE * padded(p.outputs)]);
    Workspace { shared: workspace_floats(&lengths), per_thread }
}

pub fn forward(cx: &Context, p: &ProjectForward) {
    let (depth, panels, rows) = (p.inputs, Panels::new(p.outputs), p.images * p.pixels);
    let groups = forward_groups(rows);
    let [packed, partials] = cx.workspace([depth * panels.padded(), statistics_floats(groups, p.outputs)]);
    gemm::pack_transposed(cx, cx.weight(p.weight), p.outputs, packed);
    let packed = &*packed;
    let input = Input {
        x: cx.read(p.x),
        coefficients: cx.read(p.input_bn.coefficients),
        gate: cx.read(p.gate),
        pixels: p.pixels,
        channels: depth,
    };
    let y = Shared::new(cx.write(p.y));
    let batch = p.bn.statistics == ops::Statistics::Batch;
    let sums = Shared::new(partials);
    let stride = panels.padded();
    cx.parallel(groups, |group, scratch| {
        let (a, out) = scratch.split_at_mut(TILE * CHUNK);
        let own = part_of(rows, groups, group);
        for tile in tiles(own.clone()) {
            for first in (0..depth).step_by(CHUNK) {
                let columns = CHUNK.min(depth - first);
                let block =
                    Block { row: tile.start, rows: tile.len(), column: first, columns, channels: depth };
                activate(input, block, a, CHUNK);
                for panel in panels.iter() {
                    let start = panel.first * depth + first * panel.width;
                    let b = &packed[start..start + columns * panel.width];
                    let out = &mut out[panel.first..];
                    gemm::multiply(a, CHUNK, tile.len(), b, panel.width, out, stride, first > 0);
                }
            }
            let start = group * statistics_floats(1, p.outputs);
            let statistics =
                batch.then_some(Statistics { partials: sums, start, first: tile.start == own.start });
            for panel in panels.iter() {
                store(&out[panel.first..], stride, Block::of(&tile, panel, p.outputs), y, statistics);
            }
        }
    });
    if batch {
        finish_statistics(cx, &p.bn, partials, |group| part_of(rows, groups, group).len());
    }
}

/// What A is formed from.
#[derive(Clone, Copy)]
struct Input<'a> {
    x: &'a [f32],
    /// μ, r, scale, shift, [4, channels].
    coefficients: &'a [f32],
    /// [images, channels].
    gate: &'a [f32],
    pixels: usize,
    channels: usize,
}

impl Input<'_> {
    /// Panics where a block has elements that these slices lack.
    #[inline(always)]
    fn check(&self, block: Block) {
        block.check(self.x.len());
        assert!(block.channels == self.channels && self.coefficients.len() >= 4 * self.channels);
        let images = (block.row + block.rows).div_ceil(self.pixels);
        assert!(self.gate.len() >= images * self.channels);
    }
}

dispatch! {
    /// A = silu(scale·x + shift)·gate of a block into `out`, rows `stride` apart.
    fn activate(input: Input<'_>, block: Block, out: &mut [f32], stride: usize) => activate_body;

    /// da from `unit.da` to its place, A into `a`, and the five sums of one image's rows of a panel.
    fn backward_rows(input: Input<'_>, unit: &BackwardRows<'_>, a: &mut [f32]) => backward_rows_body;
}

#[inline(always)]
fn activate_body<V: Vector>(input: Input<'_>, block: Block, out: &mut [f32], stride: usize) {
    input.check(block);
    let padded = block.columns.next_multiple_of(V::LANES);
    assert!(block.rows == 0 || (padded <= stride && (block.rows - 1) * stride + padded <= out.len()));
    let channels = input.channels;
    let mut image = block.row / input.pixels;
    for row in 0..block.rows {
        if block.row + row >= (image + 1) * input.pixels {
            image += 1;
        }
        let start = block.range(row).start;
        for first in (0..block.columns).step_by(V::LANES) {
            let (count, channel) = (V::LANES.min(block.columns - first), block.column + first);
            // SAFETY: the block lies within the input, its padded rows within `out`, by the checks above.
            unsafe {
                let load = |from: *const f32| {
                    if count == V::LANES { V::load(from) } else { V::load_part(from, count) }
                };
                let coefficients = input.coefficients.as_ptr().add(channel);
                let (scale, shift) =
                    (load(coefficients.add(2 * channels)), load(coefficients.add(3 * channels)));
                let z = load(input.x.as_ptr().add(start + first)).mul_add(scale, shift);
                let gate = load(input.gate.as_ptr().add(image * channels + channel));
                z.silu().mul(gate).store(out.as_mut_ptr().add(row * stride + first));
            }
        }
    }
}

/// How the rows of a backward pass are cut: images into parts, parts into groups.
#[derive(Clone, Copy)]
struct Units {
    images: usize,
    pixels: usize,
    /// Parts an image: more than one where images are large and few.
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

    fn rows(&self, unit: usize) -> Range<usize> {
        let start = unit / self.parts * self.pixels;
        let part = part_of(self.pixels, self.parts, unit % self.parts);
        start + part.start..start + part.end
    }

    /// How many units a tile takes: several small images, or one unit (then perhaps several tiles).
    fn per_tile(&self) -> usize {
        if self.parts > 1 { 1 } else { (TILE / self.pixels).max(1) }
    }
}

fn backward_lengths(p: &ProjectBackward, units: &Units) -> [usize; 4] {
    let sums = if units.parts > 1 { 5 * units.count() * p.inputs } else { 0 };
    let packed = p.outputs * padded(p.inputs);
    [packed, 4 * p.outputs, units.tasks.groups * packed, sums]
}

pub fn backward_workspace(p: &ProjectBackward) -> Workspace {
    let per_thread = workspace_floats(&[TILE, TILE * padded(p.outputs), 2 * TILE * PANEL]);
    Workspace { shared: workspace_floats(&backward_lengths(p, &Units::new(p))), per_thread }
}

/// What all tasks of a backward pass share.
struct BackwardPass<'a> {
    p: &'a ProjectBackward,
    units: Units,
    wide: Panels,
    input: Input<'a>,
    y: &'a [f32],
    dout: &'a [f32],
    keep: Option<&'a [f32]>,
    packed: &'a [f32],
    coefficients: &'a [f32],
    gradients: Shared<'a>,
    da: Shared<'a>,
    /// [5, units, K].
    sums: Shared<'a>,
}

pub fn backward(cx: &Context, p: &ProjectBackward) {
    let (units, wide) = (Units::new(p), Panels::new(p.inputs));
    let BackwardTasks { groups, slices } = units.tasks;
    let [packed, coefficients, gradients, parts] = cx.workspace(backward_lengths(p, &units));
    let size = p.outputs * wide.padded();
    let (packed, gradients) = (&mut packed[..size], &mut gradients[..groups * size]);
    gemm::pack(cx, cx.weight(p.weight), p.inputs, packed);
    backward_coefficients(cx, &p.bn, coefficients);
    let five_sums = cx.write(p.five_sums);
    let pass = BackwardPass {
        p,
        units,
        wide,
        input: Input {
            x: cx.read(p.x),
            coefficients: cx.read(p.input_bn.coefficients),
            gate: cx.read(p.gate),
            pixels: p.pixels,
            channels: p.inputs,
        },
        y: cx.read(p.y),
        dout: cx.read(p.dout),
        keep: p.keep.map(|t| cx.read(t)),
        packed,
        coefficients,
        gradients: Shared::new(gradients),
        da: Shared::new(cx.write(p.da)),
        sums: if units.parts > 1 { Shared::new(parts) } else { Shared::new(five_sums) },
    };
    cx.parallel(groups * slices, |task, scratch| {
        let (group, slice) = (task / slices, task % slices);
        let panels = part_of(wide.count(), slices, slice);
        pass.run(group, panels, scratch);
    });
    if units.parts > 1 {
        add_parts(cx, &units, p.inputs, parts, five_sums);
    }
    gemm::add_weight_gradient(cx, gradients, p.outputs, p.inputs, false, cx.gradient_mut(p.weight));
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

impl BackwardPass<'_> {
    fn run(&self, group: usize, panels: Range<usize>, scratch: &mut [f32]) {
        let own = part_of(self.units.count(), self.units.tasks.groups, group);
        let mut unit = own.start;
        while unit < own.end {
            let end = (unit + self.units.per_tile()).min(own.end);
            let rows = self.units.rows(unit).start..self.units.rows(end - 1).end;
            // Tiles of one unit, or one tile of several units.
            for tile in tiles(rows) {
                let add = tile.start > self.units.rows(own.start).start;
                self.tile(group, unit..end, &tile, add, panels.clone(), scratch);
            }
            unit = end;
        }
    }

    /// One tile; `add` where the task's weight gradient has begun.
    fn tile(
        &self,
        group: usize,
        units: Range<usize>,
        tile: &Range<usize>,
        add: bool,
        panels: Range<usize>,
        scratch: &mut [f32],
    ) {
        let outputs = self.p.outputs;
        let stride = padded(outputs);
        let (factors, rest) = scratch.split_at_mut(TILE);
        let (dy, rest) = rest.split_at_mut(TILE * stride);
        let (da, a) = rest.split_at_mut(TILE * PANEL);
        row_factors(self.keep, self.p.pixels, tile, factors);
        let block =
            Block { row: tile.start, rows: tile.len(), column: 0, columns: outputs, channels: outputs };
        batch_norm_backward(self.dout, self.y, block, factors, self.coefficients, dy, stride);
        let size = outputs * self.wide.padded();
        for panel in self.wide.range(panels) {
            let (start, width) = (panel.first * outputs, panel.width);
            let b = &self.packed[start..start + outputs * width];
            gemm::multiply(dy, stride, tile.len(), b, width, da, width, false);
            for unit in units.clone() {
                self.unit(unit, tile, panel, da, a);
            }
            let start = group * size + start;
            // SAFETY: each task has its own panels of its group's gradient.
            let to = unsafe { self.gradients.part(start..start + outputs * width) };
            gemm::multiply_transposed(dy, stride, outputs, tile.len(), a, width, width, to, width, add);
        }
    }

    /// The epilogue of one unit's rows within a tile.
    fn unit(&self, unit: usize, tile: &Range<usize>, panel: Panel, da: &[f32], a: &mut [f32]) {
        let own = self.units.rows(unit);
        let own = own.start.max(tile.start)..own.end.min(tile.end);
        let offset = (own.start - tile.start) * panel.width;
        let rows = BackwardRows {
            block: Block::of(&own, panel, self.p.inputs),
            from: &da[offset..],
            da: self.da,
            sums: self.sums,
            start: unit * self.p.inputs,
            step: self.units.count() * self.p.inputs,
            add: own.start > self.units.rows(unit).start,
        };
        backward_rows(self.input, &rows, &mut a[offset..]);
    }
}

/// Rows of one image, columns of one panel.
struct BackwardRows<'a> {
    block: Block,
    /// da, whole vectors a row.
    from: &'a [f32],
    da: Shared<'a>,
    sums: Shared<'a>,
    /// Where the first of the five sums of this unit's channel 0 lies, and how far the next one is.
    start: usize,
    step: usize,
    add: bool,
}

#[inline(always)]
fn backward_rows_body<V: Vector>(input: Input<'_>, unit: &BackwardRows<'_>, a: &mut [f32]) {
    let block = unit.block;
    let width = block.columns.next_multiple_of(V::LANES);
    input.check(block);
    block.check(unit.da.len());
    assert!(block.rows * width <= unit.from.len().min(a.len()));
    assert!(unit.start + 4 * unit.step + block.channels <= unit.sums.len());
    let image = block.row / input.pixels;
    for first in (0..block.columns).step_by(V::LANES) {
        let (count, channel) = (V::LANES.min(block.columns - first), block.column + first);
        // SAFETY: the block lies within all tensors by the checks above; its part of da and of the sums
        // belongs to this task.
        unsafe {
            let load = |from: *const f32| {
                if count == V::LANES { V::load(from) } else { V::load_part(from, count) }
            };
            let of = |row: usize| load(input.coefficients.as_ptr().add(row * block.channels + channel));
            let [mean, r, scale, shift] = [of(0), of(1), of(2), of(3)];
            let gate = load(input.gate.as_ptr().add(image * block.channels + channel));
            let slot = |number: usize| {
                let at = unit.start + number * unit.step + channel;
                unit.sums.part(at..at + count).as_mut_ptr()
            };
            let mut sums = [V::zero(); 5];
            if unit.add {
                for number in 0..5 {
                    sums[number] = load(slot(number));
                }
            }
            for row in 0..block.rows {
                let at = block.range(row).start + first;
                let x = load(input.x.as_ptr().add(at));
                let da = V::load(unit.from.as_ptr().add(row * width + first));
                let to = unit.da.part(at..at + count).as_mut_ptr();
                if count == V::LANES {
                    da.store(to)
                } else {
                    da.store_part(to, count)
                }
                let (silu, slope) = x.mul_add(scale, shift).silu_with_derivative();
                silu.mul(gate).store(a.as_mut_ptr().add(row * width + first));
                let yhat = x.sub(mean).mul(r);
                let product = da.mul(slope);
                sums[0] = da.mul_add(silu, sums[0]);
                sums[1] = sums[1].add(product);
                sums[2] = sums[2].add(slope);
                sums[3] = product.mul_add(yhat, sums[3]);
                sums[4] = slope.mul_add(yhat, sums[4]);
            }
            for (number, sum) in sums.into_iter().enumerate() {
                sum.store_part(slot(number), count);
            }
        }
    }
}
