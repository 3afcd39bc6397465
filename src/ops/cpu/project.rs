//! The pointwise convolution that narrows: y = (silu(BN(x))·gate)·Wᵀ with statistics; backward.
//!
//! Forward, a task owns a group of rows and computes it tile by tile: it forms A = silu(BN(x))·gate of a few
//! hundred wide channels in scratch memory and multiplies it at once. The narrow y stays in the cache until
//! it has the products of all wide channels, and is stored with its statistics.

mod backward;
mod folded;
mod inference;

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::batch_norm::{NormStatistics, statistics_floats};
use super::context::{Context, OnCpu, WorkspaceFloats, part_of, workspace_floats};
use super::expand::{GROUPS, TASKS};
use super::gemm::rows::{RowBlock, RowStatistics, TILE, after, floats_of, store, tiles};
use super::gemm::{self, Ahead, Packed, Panels, Product, padded};
use super::memory::Shared;
use super::simd::{Element, Vector, dispatch, fence, silu_each};
use crate::ops::ProjectForward;

/// Most wide channels of a block of A.
const CHUNK: usize = 256;

/// Groups of rows of the forward pass: at least 32 rows each.
fn forward_groups(rows: usize) -> usize {
    rows.div_ceil(TILE).max((rows / 32).min(TASKS)).clamp(1, GROUPS)
}

impl OnCpu for ProjectForward {
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        let groups = forward_groups(self.images * self.pixels);
        let packed = floats_of::<E>(gemm::depth::<E>(self.inputs) * padded(self.outputs));
        let lengths = [packed, statistics_floats(groups, self.outputs)];
        WorkspaceFloats {
            shared: workspace_floats(&lengths),
            per_thread: InChunks::<E>::scratch(self.outputs),
        }
    }

    unsafe fn run<E: Element>(&self, cx: &Context) {
        let depth = self.inputs;
        let panels = Panels::narrow(self.outputs);
        let rows = self.images * self.pixels;
        let groups = forward_groups(rows);
        // SAFETY: the caller's promise, and the pass takes each of them once.
        let ([packed, partials], y, norm) = unsafe {
            let packed = floats_of::<E>(gemm::depth::<E>(depth) * panels.padded());
            let lengths = [packed, statistics_floats(groups, self.outputs)];
            (
                cx.workspace(lengths),
                Shared::new(cx.write_activation::<E>(self.y)),
                NormStatistics::of(cx, &self.bn),
            )
        };
        let packed = Packed::transposed(cx, self.weight, panels, packed);
        let packed = packed.numbers();
        let input = Input {
            x: cx.activation::<E>(self.x),
            coefficients: cx.read(self.input_bn.coefficients),
            gate: cx.read(self.gate),
            pixels: self.pixels,
            channels: depth,
        };
        let sums = Shared::new(&mut *partials);
        let product = InChunks { depth, panels, packed };
        let form = |block: RowBlock, a: &mut [E]| activate(input, block, a, CHUNK);
        cx.parallel(groups, |group, scratch| {
            let own = part_of(rows, groups, group);
            for tile in tiles(own.clone()) {
                // The next tile's x is loaded while this tile's products run.
                let next = after(&tile, &own);
                let mut ahead = Ahead::new(input.x, next.start * depth..next.end * depth);
                let out = product.tile(&tile, scratch, &mut ahead, form);
                let start = group * statistics_floats(1, self.outputs);
                let first = tile.start == own.start;
                let statistics = norm.is_some().then_some(RowStatistics { partials: sums, start, first });
                for panel in panels.iter() {
                    let block = RowBlock::of(&tile, panel, self.outputs);
                    // SAFETY: each task has its own rows.
                    unsafe { store(&out[panel.first..], panels.padded(), block, y, statistics) };
                }
            }
            fence();
        });
        if let Some(norm) = norm {
            norm.finish(cx, partials, |group| part_of(rows, groups, group).len());
        }
    }
}

/// A product of tiles of rows whose A is formed [`CHUNK`] columns at a time.
struct InChunks<'a, E> {
    depth: usize,
    panels: Panels,
    packed: &'a [E],
}

impl<E: Element> InChunks<'_, E> {
    /// Floats of scratch memory.
    fn scratch(outputs: usize) -> usize {
        workspace_floats(&[floats_of::<E>(TILE * CHUNK), TILE * padded(outputs)])
    }

    /// The product of a tile, in scratch memory: rows of whole panels. `form` writes a block of A to rows that are `CHUNK`
    /// apart. While the products run, what lies `ahead` is loaded.
    #[inline(always)]
    fn tile<'s>(
        &self,
        tile: &Range<usize>,
        scratch: &'s mut [f32],
        ahead: &mut Ahead,
        form: impl Fn(RowBlock, &mut [E]),
    ) -> &'s mut [f32] {
        let InChunks { depth, panels, packed } = *self;
        let (a, out) = scratch.split_at_mut(floats_of::<E>(TILE * CHUNK));
        let a: &mut [E] = cast_slice_mut(a);
        for first in (0..depth).step_by(CHUNK) {
            let columns = CHUNK.min(depth - first);
            form(RowBlock::new(tile, first..first + columns, depth), a);
            for panel in panels.iter() {
                let start = panel.first * gemm::depth::<E>(depth) + first * panel.width;
                let steps = gemm::depth::<E>(columns);
                gemm::multiply(Product {
                    rows: tile.len(),
                    depth: columns,
                    width: panel.width,
                    a: (&*a, CHUNK),
                    b: (&packed[start..start + steps * panel.width], panel.width),
                    c: (&mut out[panel.first..], panels.padded()),
                    add: first > 0,
                    ahead,
                });
            }
        }
        out
    }
}

/// The tensors from which A is formed.
#[derive(Clone, Copy)]
struct Input<'a, E> {
    x: &'a [E],
    /// μ, r, scale, shift, [4, channels].
    coefficients: &'a [f32],
    /// [images, channels].
    gate: &'a [f32],
    pixels: usize,
    channels: usize,
}

impl<E: Element> Input<'_, E> {
    /// Panics if a block has elements outside these slices.
    #[inline(always)]
    fn check(&self, block: RowBlock) {
        block.check(self.x.len());
        assert!(block.channels == self.channels && self.coefficients.len() >= 4 * self.channels);
        let images = (block.row + block.rows).div_ceil(self.pixels);
        assert!(self.gate.len() >= images * self.channels);
    }
}

dispatch! {
    /// A = silu(scale·x + shift)·gate of a block into `out`, rows `stride` apart.
    fn activate<E>(input: Input<'_, E>, block: RowBlock, out: &mut [E], stride: usize) => activate_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn activate_body<V: Vector, E: Element>(
    input: Input<'_, E>,
    block: RowBlock,
    out: &mut [E],
    stride: usize,
) {
    input.check(block);
    let padded = block.columns.next_multiple_of(V::LANES);
    assert!(block.rows == 0 || (padded <= stride && (block.rows - 1) * stride + padded <= out.len()));
    // SAFETY: the block lies within the input, its padded rows within `out`, by the checks above; the rest is the
    // caller's promise.
    unsafe {
        let mut row = 0;
        while row + 4 <= block.rows {
            activate_rows::<V, E, 4>(input, block, row, out, stride);
            row += 4;
        }
        while row < block.rows {
            activate_rows::<V, E, 1>(input, block, row, out, stride);
            row += 1;
        }
    }
}

/// `R` rows of a block, from `first_row` on.
///
/// # Safety
/// The instruction set of `V` is present. The rows lie within the input, padded to whole vectors within `out`.
#[inline(always)]
unsafe fn activate_rows<V: Vector, E: Element, const R: usize>(
    input: Input<'_, E>,
    block: RowBlock,
    first_row: usize,
    out: &mut [E],
    stride: usize,
) {
    let (channels, start) = (input.channels, block.range(first_row).start);
    let mut gates = [std::ptr::null(); R];
    for (i, gate) in gates.iter_mut().enumerate() {
        let image = (block.row + first_row + i) / input.pixels;
        *gate = input.gate[image * channels + block.column..].as_ptr();
    }
    for first in (0..block.columns).step_by(V::LANES) {
        let count = V::LANES.min(block.columns - first);
        // SAFETY: the caller's promise.
        unsafe {
            let coefficients = input.coefficients.as_ptr().add(block.column + first);
            let scale = V::load_some(coefficients.add(2 * channels), count);
            let shift = V::load_some(coefficients.add(3 * channels), count);
            let mut z = [V::zero(); R];
            for (i, z) in z.iter_mut().enumerate() {
                let x = input.x.as_ptr().add(start + i * channels + first);
                *z = E::load_some::<V>(x, count).mul_add(scale, shift);
            }
            let silu = silu_each::<E, V, R>(&z);
            for i in 0..R {
                let gate = V::load_some(gates[i].add(first), count);
                E::store(silu[i].mul(gate), out.as_mut_ptr().add((first_row + i) * stride + first));
            }
        }
    }
}
