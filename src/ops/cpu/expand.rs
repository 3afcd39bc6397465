//! The pointwise convolution that widens, and the head's: y = x·Wᵀ with statistics; backward.
//!
//! Forward, a task owns a group of rows (and, with few rows, a slice of the wide channels) and computes
//! it tile by tile: the product of a panel of channels is in the first-level cache while it is
//! stored and its statistics are taken.

mod backward;

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::batch_norm::{NormStatistics, statistics_floats};
use super::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use super::gemm::rows::{RowBlock, RowStatistics, TILE, floats_of, store, tiles};
use super::gemm::{self, Ahead, Packed, Panels, Product, padded};
use super::memory::Shared;
use super::simd::{Element, fence};
use crate::ops::ExpandForward;

/// Enough tasks for any machine: two for each of sixteen threads.
pub(super) const TASKS: usize = 32;
/// Most groups of rows: each has its own partial sums.
pub(super) const GROUPS: usize = 256;
/// Floats of the widest panel.
pub(super) const PANEL: usize = 48;

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
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let tasks = ForwardTasks::new(self.rows, self.outputs);
        let packed = floats_of::<E>(gemm::depth::<E>(self.inputs) * padded(self.outputs));
        let lengths = [packed, statistics_floats(tasks.groups, self.outputs)];
        let rows = floats_of::<E>(TILE * gemm::depth::<E>(self.inputs));
        WorkspaceFloats { shared: workspace_floats(&lengths), per_thread: TILE * PANEL + rows }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let depth = gemm::depth::<E>(self.inputs);
        let panels = Panels::new(self.outputs);
        let tasks = ForwardTasks::new(self.rows, self.outputs);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed, partials], y, norm) = unsafe {
            let packed = floats_of::<E>(depth * panels.padded());
            let lengths = [packed, statistics_floats(tasks.groups, self.outputs)];
            (
                cx.workspace(lengths),
                Shared::new(cx.write_activation::<E>(self.y)),
                NormStatistics::of(cx, &self.bn),
            )
        };
        let packed = Packed::transposed(cx, self.weight, panels, packed);
        let (x, packed) = (cx.activation::<E>(self.x), packed.numbers());
        let sums = Shared::new(&mut *partials);
        cx.parallel(tasks.groups * tasks.slices, |task, scratch| {
            let (group, slice) = (task / tasks.slices, task % tasks.slices);
            let own = part_of(self.rows, tasks.groups, group);
            for tile in tiles(own.clone()) {
                let start = group * statistics_floats(1, self.outputs);
                let first = tile.start == own.start;
                let statistics = norm.is_some().then_some(RowStatistics { partials: sums, start, first });
                let (out, copy) = scratch.split_at_mut(TILE * PANEL);
                let a = whole_groups(&x[tile.start * self.inputs..tile.end * self.inputs], self.inputs, copy);
                for panel in panels.range(part_of(panels.count(), tasks.slices, slice)) {
                    gemm::multiply(Product {
                        rows: tile.len(),
                        depth: self.inputs,
                        width: panel.width,
                        a: (a, depth),
                        b: (&packed[panel.first * depth..][..panel.width * depth], panel.width),
                        c: (&mut *out, panel.width),
                        add: false,
                        ahead: &mut Ahead::none(),
                    });
                    let block = RowBlock::of(&tile, panel, self.outputs);
                    // SAFETY: each task has its own rows and panels.
                    unsafe { store(out, panel.width, block, y, statistics) };
                }
            }
            fence();
        });
        if let Some(norm) = norm {
            norm.finish(cx, partials, |group| part_of(self.rows, tasks.groups, group).len());
        }
    }
}

/// Rows of so many columns that end in zeros where a product needs more of them: the rows themselves, or a copy.
fn whole_groups<'a, E: Element>(rows: &'a [E], columns: usize, copy: &'a mut [f32]) -> &'a [E] {
    let depth = gemm::depth::<E>(columns);
    if depth == columns {
        return rows;
    }
    let count = rows.len() / columns;
    let copy = &mut cast_slice_mut::<_, E>(copy)[..count * depth];
    for (to, from) in copy.chunks_exact_mut(depth).zip(rows.chunks_exact(columns)) {
        to[..columns].copy_from_slice(from);
        to[columns..].fill(E::zeroed());
    }
    copy
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
