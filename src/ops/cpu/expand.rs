//! The pointwise convolution that widens, and the head's: y = x·Wᵀ with statistics; backward.
//!
//! Forward, a task owns a group of rows (and, with few rows, a slice of the wide channels) and computes
//! it tile by tile: the product of a panel of channels is in the first-level cache while it is
//! stored and its statistics are taken.
//!
//! Backward, dy exists only as a block of one tile's rows and about a hundred wide channels, which both
//! products read: dx += dy·W and dWᵀ += xᵀ·dy. With many rows, each group of rows computes its dx and
//! its own sum of dW. With few rows and a large weight, the partial sums of many groups would cost
//! more than the products: then a first round of tasks over groups of rows computes dx, and a second one over slices
//! of the wide channels forms dy again and computes dW.

use std::ops::Range;

use super::batch_norm::{NormStatistics, NormSums, backward_coefficients, statistics_floats, sums_floats};
use super::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use super::gemm::rows::{RowBlock, RowStatistics, TILE, after, batch_norm_backward, store, tiles};
use super::gemm::{self, Ahead, Panels, Product, padded};
use super::memory::Shared;
use super::simd::{Vector, dispatch, fence};
use crate::ops::{ExpandBackward, ExpandForward, NarrowGradient};

/// Enough tasks for any machine: two for each of sixteen threads.
pub(super) const TASKS: usize = 32;
/// Most groups of rows: each has its own partial sums.
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
    fn workspace(&self) -> WorkspaceFloats {
        let tasks = ForwardTasks::new(self.rows, self.outputs);
        let lengths = [self.inputs * padded(self.outputs), statistics_floats(tasks.groups, self.outputs)];
        WorkspaceFloats { shared: workspace_floats(&lengths), per_thread: TILE * PANEL }
    }

    unsafe fn run(&self, cx: &Context) {
        let depth = self.inputs;
        let panels = Panels::new(self.outputs);
        let tasks = ForwardTasks::new(self.rows, self.outputs);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed, partials], y, norm) = unsafe {
            let lengths = [depth * panels.padded(), statistics_floats(tasks.groups, self.outputs)];
            (cx.workspace(lengths), Shared::new(cx.write(self.y)), NormStatistics::of(cx, &self.bn))
        };
        gemm::pack_transposed(cx, cx.weight(self.weight), panels, packed);
        let (x, packed) = (cx.read(self.x), &*packed);
        let sums = Shared::new(&mut *partials);
        cx.parallel(tasks.groups * tasks.slices, |task, scratch| {
            let (group, slice) = (task / tasks.slices, task % tasks.slices);
            let own = part_of(self.rows, tasks.groups, group);
            for tile in tiles(own.clone()) {
                let start = group * statistics_floats(1, self.outputs);
                let first = tile.start == own.start;
                let statistics = norm.is_some().then_some(RowStatistics { partials: sums, start, first });
                for panel in panels.range(part_of(panels.count(), tasks.slices, slice)) {
                    gemm::multiply(Product {
                        rows: tile.len(),
                        depth,
                        width: panel.width,
                        a: (&x[tile.start * depth..tile.end * depth], depth),
                        b: (&packed[panel.first * depth..][..panel.width * depth], panel.width),
                        c: (scratch, panel.width),
                        add: false,
                        ahead: &mut Ahead::none(),
                    });
                    let block = RowBlock::of(&tile, panel, self.outputs);
                    // SAFETY: each task has its own rows and panels.
                    unsafe { store(scratch, panel.width, block, y, statistics) };
                }
            }
            fence();
        });
        if let Some(norm) = norm {
            norm.finish(cx, partials, |group| part_of(self.rows, tasks.groups, group).len());
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
    /// rows for each narrow channel. There are at most `units` groups.
    pub fn new(rows: usize, units: usize, narrow: usize, wide: usize) -> BackwardTasks {
        let groups = (rows / (8 * narrow)).clamp(1, 64).min(units);
        let slices = if groups < 16 { TASKS.div_ceil(groups).min(wide.div_ceil(PANEL)) } else { 1 };
        BackwardTasks { groups, slices }
    }
}

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
    /// None where there is no gradient at the input.
    previous: Option<Previous<'a>>,
}

/// What the epilogue of dx reads.
#[derive(Clone, Copy)]
struct Previous<'a> {
    y: &'a [f32],
    /// μ, r, .. of the previous batch norm.
    coefficients: &'a [f32],
    shortcut: Option<&'a [f32]>,
    /// The stochastic-depth factor of each image; none means one.
    keep: Option<&'a [f32]>,
    /// Rows of an image.
    pixels: usize,
}

impl<'a> Previous<'a> {
    fn of(cx: &'a Context, NarrowGradient { shortcut, previous, .. }: &NarrowGradient) -> Previous<'a> {
        Previous {
            y: cx.read(previous.y),
            coefficients: cx.read(previous.bn.coefficients),
            shortcut: shortcut.map(|t| cx.read(t)),
            keep: previous.keep.map(|t| cx.read(t)),
            pixels: previous.pixels,
        }
    }
}

/// The packed weight, batch norm's coefficients, the weight's partial gradients, the partial sums, with inputs and outputs
/// `padded`. The first and the last serve the gradient at the input.
fn backward_lengths(p: &ExpandBackward, tasks: &Backward, padded: [usize; 2]) -> [usize; 4] {
    let data = |floats: usize| if p.narrow.is_some() { floats } else { 0 };
    let [inputs, outputs] = padded;
    [
        data(p.outputs * inputs),
        4 * p.outputs,
        tasks.weights.groups * p.inputs * outputs,
        data(sums_floats(tasks.data, p.inputs)),
    ]
}

impl OnCpu for ExpandBackward {
    fn workspace(&self) -> WorkspaceFloats {
        let lengths = backward_lengths(self, &Backward::new(self), [self.inputs, self.outputs].map(padded));
        let per_thread = workspace_floats(&[TILE * CHUNK, TILE, TILE * padded(self.inputs)]);
        WorkspaceFloats { shared: workspace_floats(&lengths), per_thread }
    }

    unsafe fn run(&self, cx: &Context) {
        let tasks = Backward::new(self);
        let narrow = Panels::narrow(self.inputs);
        let wide = Panels::new(self.outputs);
        let gradient_floats = self.inputs * wide.padded();
        let lengths = backward_lengths(self, &tasks, [narrow.padded(), wide.padded()]);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed, coefficients, gradients, sums], dx, norm, weight) = unsafe {
            let norm = self.narrow.as_ref().map(|narrow| NormSums::of(cx, &narrow.previous.bn));
            let dx = self.narrow.as_ref().map_or(&mut [][..], |narrow| cx.write(narrow.dx));
            (cx.workspace(lengths), dx, norm, cx.gradient_mut(self.weight))
        };
        if self.narrow.is_some() {
            gemm::pack(cx, cx.weight(self.weight), narrow, packed);
        }
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

impl BackwardPass<'_> {
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
        let (dy, rest) = scratch.split_at_mut(TILE * CHUNK);
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
            let mut number = panels.start;
            while number < panels.end {
                let (end, stride) = self.chunk(number, panels.end);
                let column = self.wide.panel(number).first;
                let block = RowBlock::new(&tile, column..outputs.min(column + stride), outputs);
                batch_norm_backward(self.du, self.y, block, &[], self.coefficients, dy, stride);
                if data.is_some() {
                    self.add_data(block, number > panels.start, (dy, stride), dx, &mut ahead.0);
                }
                if let Some(gradient) = &gradient {
                    let add = tile.start > rows.start;
                    let to = gradient.start;
                    self.add_gradient(block, number..end, add, (dy, stride), to, &mut ahead.1);
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
    fn add_data(&self, block: RowBlock, add: bool, dy: (&[f32], usize), dx: &mut [f32], ahead: &mut Ahead) {
        for panel in self.narrow.iter() {
            let start = panel.first * self.p.outputs + block.column * panel.width;
            gemm::multiply(Product {
                rows: block.rows,
                depth: block.columns,
                width: panel.width,
                a: dy,
                b: (&self.packed[start..start + block.columns * panel.width], panel.width),
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
        (dy, stride): (&[f32], usize),
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
                a: (&self.x[block.row * inputs..(block.row + block.rows) * inputs], inputs),
                b: (&dy[panel.first - block.column..], stride),
                // SAFETY: each task has its own panels of its group's gradient.
                c: (unsafe { self.gradients.part(start..start + panel.width * inputs) }, panel.width),
                add,
                ahead,
            });
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

dispatch! {
    /// Adds the shortcut to a block of dx, stores it, and adds Σ f·dx and Σ f·dx·ŷ to the group's sums [2, channels].
    /// # Safety
    /// The block of dx and the group's sums belong to the calling task.
    unsafe fn finish(
        pass: &BackwardPass<'_>,
        previous: &Previous<'_>,
        group: usize,
        block: RowBlock,
        from: &[f32],
        factors: &[f32],
    ) => finish_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`finish`].
#[inline(always)]
unsafe fn finish_body<V: Vector>(
    pass: &BackwardPass<'_>,
    previous: &Previous<'_>,
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
