//! The pointwise convolution that widens, and the head's: y = x·Wᵀ with statistics; backward.
//!
//! Forward, a task owns a group of rows (and, where rows are few, a slice of the wide channels) and goes
//! through it tile by tile: the product of a panel of channels lies in the first-level cache when it is
//! stored and its statistics are taken.
//!
//! Backward, dy exists only as a block of one tile's rows and some hundred wide channels, from which both
//! products are fed: dx += dy·W and dWᵀ += xᵀ·dy. Where a layer has many rows, groups of rows make dx and each
//! its own sum of dW. Where rows are few and the weight is large, the partial sums of many groups would cost
//! more than the products: then one round of tasks over groups of rows makes dx, and a second one over slices
//! of the wide channels makes dW, with dy formed again.

use super::OnCpu;
use std::ops::Range;

use super::batch_norm::{
    backward_coefficients, finish_statistics, finish_sums, statistics_floats, sums_floats,
};
use super::context::{Context, Shared, Workspace, part_of, workspace_floats};
use super::gemm::rows::{Block, Statistics, TILE, after, batch_norm_backward, store, tiles};
use super::gemm::{self, Ahead, Panels, padded};
use super::simd::{Vector, fence};
use crate::dispatch;
use crate::ops::{self, ExpandBackward, ExpandForward};

/// How many tasks are enough for any machine: two for each of sixteen threads.
pub(super) const TASKS: usize = 32;
/// Most groups of rows: each has partial sums of its own.
pub(super) const GROUPS: usize = 256;
/// Floats of the widest panel.
pub(super) const PANEL: usize = 48;
/// Most wide channels of a block of dy.
const CHUNK: usize = 96;

struct ForwardTasks {
    groups: usize,
    slices: usize,
}

impl ForwardTasks {
    fn new(rows: usize, outputs: usize) -> ForwardTasks {
        let groups = rows.div_ceil(TILE).clamp(1, GROUPS);
        ForwardTasks { groups, slices: TASKS.div_ceil(groups).min(outputs.div_ceil(PANEL)).max(1) }
    }
}

impl OnCpu for ExpandForward {
    fn workspace(&self) -> Workspace {
        let tasks = ForwardTasks::new(self.rows, self.outputs);
        let lengths = [self.inputs * padded(self.outputs), statistics_floats(tasks.groups, self.outputs)];
        Workspace { shared: workspace_floats(&lengths), per_thread: TILE * PANEL }
    }

    fn run(&self, cx: &Context) {
        let (depth, panels) = (self.inputs, Panels::new(self.outputs));
        let tasks = ForwardTasks::new(self.rows, self.outputs);
        let [packed, partials] =
            cx.workspace([depth * panels.padded(), statistics_floats(tasks.groups, self.outputs)]);
        gemm::pack_transposed(cx, cx.weight(self.weight), panels, packed);
        let (x, packed) = (cx.read(self.x), &*packed);
        let y = Shared::new(cx.write(self.y));
        let batch = self.bn.statistics == ops::Statistics::Batch;
        let sums = Shared::new(partials);
        cx.parallel(tasks.groups * tasks.slices, |task, scratch| {
            let (group, slice) = (task / tasks.slices, task % tasks.slices);
            let own = part_of(self.rows, tasks.groups, group);
            for tile in tiles(own.clone()) {
                let start = group * statistics_floats(1, self.outputs);
                let statistics =
                    batch.then_some(Statistics { partials: sums, start, first: tile.start == own.start });
                for panel in panels.range(part_of(panels.count(), tasks.slices, slice)) {
                    let b = &packed[panel.first * depth..][..panel.width * depth];
                    let x = &x[tile.start * depth..tile.end * depth];
                    gemm::multiply(
                        x,
                        depth,
                        tile.len(),
                        b,
                        panel.width,
                        scratch,
                        panel.width,
                        false,
                        &mut Ahead::none(),
                    );
                    store(scratch, panel.width, Block::of(&tile, panel, self.outputs), y, statistics);
                }
            }
            fence();
        });
        if batch {
            finish_statistics(cx, &self.bn, partials, |group| part_of(self.rows, tasks.groups, group).len());
        }
    }
}

/// How a backward pass with a weight gradient is cut. `slices` divide the panels of the wide channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BackwardTasks {
    pub groups: usize,
    pub slices: usize,
}

impl BackwardTasks {
    /// Groups of rows so large that adding up their weight gradients costs little beside the products: eight
    /// rows for each narrow channel. `units` is the most groups there can be.
    pub fn new(rows: usize, units: usize, narrow: usize, wide: usize) -> BackwardTasks {
        let groups = (rows / (8 * narrow)).clamp(1, 64).min(units);
        let slices = if groups < 16 { TASKS.div_ceil(groups).min(wide.div_ceil(PANEL)) } else { 1 };
        BackwardTasks { groups, slices }
    }
}

struct Backward {
    weights: BackwardTasks,
    /// Groups of rows that make dx. Those of the weight gradient where one task does both.
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
struct BackwardPass<'a> {
    p: &'a ExpandBackward,
    wide: Panels,
    narrow: Panels,
    x: &'a [f32],
    y: &'a [f32],
    du: &'a [f32],
    packed: &'a [f32],
    coefficients: &'a [f32],
    gradients: Shared<'a>,
    dx: Shared<'a>,
    sums: Shared<'a>,
    previous: Previous<'a>,
}

impl OnCpu for ExpandBackward {
    fn workspace(&self) -> Workspace {
        let tasks = Backward::new(self);
        let lengths = [
            self.outputs * padded(self.inputs),
            4 * self.outputs,
            tasks.weights.groups * self.inputs * padded(self.outputs),
            sums_floats(tasks.data, self.inputs),
        ];
        let per_thread = workspace_floats(&[TILE * CHUNK, TILE, TILE * padded(self.inputs)]);
        Workspace { shared: workspace_floats(&lengths), per_thread }
    }

    fn run(&self, cx: &Context) {
        let tasks = Backward::new(self);
        let (narrow, wide) = (Panels::narrow(self.inputs), Panels::new(self.outputs));
        let gradient_floats = self.inputs * wide.padded();
        let [packed, coefficients, gradients, sums] = cx.workspace([
            self.outputs * narrow.padded(),
            4 * self.outputs,
            tasks.weights.groups * gradient_floats,
            sums_floats(tasks.data, self.inputs),
        ]);
        gemm::pack(cx, cx.weight(self.weight), narrow, packed);
        backward_coefficients(cx, &self.bn, coefficients);
        let pass = BackwardPass {
            p: self,
            wide,
            narrow,
            x: cx.read(self.x),
            y: cx.read(self.y),
            du: cx.read(self.du),
            packed,
            coefficients,
            gradients: Shared::new(gradients),
            dx: Shared::new(cx.write(self.dx)),
            sums: Shared::new(sums),
            previous: Previous {
                y: cx.read(self.previous.y),
                coefficients: cx.read(self.previous.bn.coefficients),
                shortcut: self.shortcut.map(|t| cx.read(t)),
            },
        };
        let keep = self.previous.keep.map(|t| cx.read(t));
        let BackwardTasks { groups, slices } = tasks.weights;
        let all = 0..wide.count();
        let gradient = |group: usize| group * gradient_floats..(group + 1) * gradient_floats;
        if slices == 1 {
            cx.parallel(groups, |group, scratch| {
                let rows = part_of(self.rows, groups, group);
                pass.run(rows, all.clone(), Some(group), keep, Some(gradient(group)), scratch);
            });
        } else {
            cx.parallel(tasks.data, |group, scratch| {
                let rows = part_of(self.rows, tasks.data, group);
                pass.run(rows, all.clone(), Some(group), keep, None, scratch);
            });
            cx.parallel(groups * slices, |task, scratch| {
                let (group, slice) = (task / slices, task % slices);
                let panels = part_of(wide.count(), slices, slice);
                let rows = part_of(self.rows, groups, group);
                pass.run(rows, panels, None, keep, Some(gradient(group)), scratch);
            });
        }
        finish_sums(cx, &self.previous.bn, sums);
        let weight = cx.gradient_mut(self.weight);
        gemm::add_weight_gradient(cx, gradients, self.inputs, self.outputs, true, weight);
    }
}

impl BackwardPass<'_> {
    /// The rows of one task: dx and its sums (as group `data` of them), the weight gradient, or both.
    fn run(
        &self,
        rows: Range<usize>,
        panels: Range<usize>,
        data: Option<usize>,
        keep: Option<&[f32]>,
        gradient: Option<Range<usize>>,
        scratch: &mut [f32],
    ) {
        let (inputs, outputs) = (self.p.inputs, self.p.outputs);
        let (dy, rest) = scratch.split_at_mut(TILE * CHUNK);
        let (factors, dx) = rest.split_at_mut(TILE);
        if let Some(group) = data {
            // SAFETY: each group has its own sums.
            unsafe { self.sums.part(group * 2 * inputs..(group + 1) * 2 * inputs) }.fill(0.0);
        }
        for tile in tiles(rows.clone()) {
            let x = &self.x[tile.start * inputs..tile.end * inputs];
            // Where one task does all, the next tile's du and y come while this tile's products run.
            let next = after(&tile, &rows);
            let next = if data.is_some() { next.start * outputs..next.end * outputs } else { 0..0 };
            let mut ahead = (Ahead::new(self.du, next.clone()), Ahead::new(self.y, next));
            let mut number = panels.start;
            while number < panels.end {
                let chunk = self.chunk(number, panels.end);
                let first = self.wide.panel(number);
                let block = Block {
                    row: tile.start,
                    rows: tile.len(),
                    column: first.first,
                    columns: (outputs - first.first).min(chunk.1),
                    channels: outputs,
                };
                batch_norm_backward(self.du, self.y, block, &[], self.coefficients, dy, chunk.1);
                if data.is_some() {
                    self.add_data(&tile, block, number > panels.start, dy, chunk.1, dx, &mut ahead.0);
                }
                if let Some(gradient) = &gradient {
                    for panel in self.wide.range(number..chunk.0) {
                        let start = gradient.start + panel.first * inputs;
                        // SAFETY: each task has its own panels of its group's gradient.
                        let to = unsafe { self.gradients.part(start..start + panel.width * inputs) };
                        let (b, width) = (&dy[panel.first - first.first..], panel.width);
                        let add = tile.start > rows.start;
                        gemm::multiply_transposed(
                            x,
                            inputs,
                            inputs,
                            tile.len(),
                            b,
                            chunk.1,
                            width,
                            to,
                            width,
                            add,
                            &mut ahead.1,
                        );
                    }
                }
                number = chunk.0;
            }
            if let Some(group) = data {
                self.finish_data(&tile, group, keep, factors, dx);
            }
        }
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
    #[allow(clippy::too_many_arguments)]
    fn add_data(
        &self,
        tile: &Range<usize>,
        block: Block,
        add: bool,
        dy: &[f32],
        stride: usize,
        dx: &mut [f32],
        ahead: &mut Ahead,
    ) {
        for panel in self.narrow.iter() {
            let start = panel.first * self.p.outputs + block.column * panel.width;
            let b = &self.packed[start..start + block.columns * panel.width];
            let to = &mut dx[panel.first..];
            gemm::multiply(dy, stride, tile.len(), b, panel.width, to, self.narrow.padded(), add, ahead);
        }
    }

    /// Adds the shortcut, stores dx and adds to the previous batch norm's sums.
    fn finish_data(
        &self,
        tile: &Range<usize>,
        group: usize,
        keep: Option<&[f32]>,
        factors: &mut [f32],
        dx: &[f32],
    ) {
        let inputs = self.p.inputs;
        row_factors(keep, self.p.previous.pixels, tile, factors);
        let stride = self.narrow.padded();
        for panel in self.narrow.iter() {
            let block = Block::of(tile, panel, inputs);
            let sums = (self.sums, group * 2 * inputs);
            finish(&dx[panel.first..], stride, block, factors, self.previous, self.dx, sums.0, sums.1);
        }
    }
}

/// The stochastic-depth factor of each row of a tile.
pub(super) fn row_factors(keep: Option<&[f32]>, pixels: usize, tile: &Range<usize>, factors: &mut [f32]) {
    let Some(keep) = keep else {
        return factors[..tile.len()].fill(1.0);
    };
    let mut row = tile.start;
    while row < tile.end {
        let end = ((row / pixels + 1) * pixels).min(tile.end);
        factors[row - tile.start..end - tile.start].fill(keep[row / pixels]);
        row = end;
    }
}

/// What the epilogue of dx reads.
#[derive(Clone, Copy)]
struct Previous<'a> {
    y: &'a [f32],
    /// μ, r, .. of the previous batch norm.
    coefficients: &'a [f32],
    shortcut: Option<&'a [f32]>,
}

dispatch! {
    /// dx = `from` (+ shortcut) of a block; adds Σ f·dx and Σ f·dx·ŷ to `sums` [2, channels] from `start`.
    fn finish(
        from: &[f32], stride: usize, block: Block, factors: &[f32], previous: Previous<'_>,
        dx: Shared<'_>, sums: Shared<'_>, start: usize
    ) => finish_body;
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn finish_body<V: Vector>(
    from: &[f32],
    stride: usize,
    block: Block,
    factors: &[f32],
    previous: Previous<'_>,
    dx: Shared<'_>,
    sums: Shared<'_>,
    start: usize,
) {
    let padded = block.columns.next_multiple_of(V::LANES);
    assert!(block.rows == 0 || (block.rows - 1) * stride + padded <= from.len());
    assert!(factors.len() >= block.rows && previous.coefficients.len() >= 2 * block.channels);
    block.check(dx.len().min(previous.y.len()));
    if let Some(shortcut) = previous.shortcut {
        block.check(shortcut.len());
    }
    for first in (0..block.columns).step_by(V::LANES) {
        let count = V::LANES.min(block.columns - first);
        // SAFETY: the block lies within all tensors by the checks above; its part of dx and of the sums
        // belongs to this task.
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
                    value = value.add(V::load_some(shortcut.as_ptr().add(at), count));
                }
                let to = dx.part(at..at + count).as_mut_ptr();
                value.store_some(to, count, false);
                let du = value.mul(V::splat(factor));
                let yhat = V::load_some(previous.y.as_ptr().add(at), count).sub(mean).mul(r);
                plain = plain.add(du);
                normalised = du.mul_add(yhat, normalised);
            }
            plain.store_part(plain_sum, count);
            normalised.store_part(normalised_sum, count);
        }
    }
}
