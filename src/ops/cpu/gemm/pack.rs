//! Packing: a weight becomes panels.
//!
//! Where a panel's rows are the weight's columns, square blocks are transposed in registers: storing number by number, a row
//! apart, took three times as long.

use super::{Panel, Panels};
use crate::ops::cpu::context::Context;
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, dispatch};
use crate::ops::cpu::sweep::read;

/// Packs B = W, row-major [depth, columns].
pub fn pack<E: Element>(cx: &Context, weight: &[f32], panels: Panels, packed: &mut [E]) {
    let columns = panels.columns;
    pack_panels(cx, panels, weight.len() / columns, packed, |panel, out| {
        pack_rows(weight, columns, panel, out);
    });
}

/// Packs B = Wᵀ, where W is row-major [columns, depth].
pub fn pack_transposed<E: Element>(cx: &Context, weight: &[f32], panels: Panels, packed: &mut [E]) {
    let depth = weight.len() / panels.columns;
    pack_panels(cx, panels, depth, packed, |panel, out| {
        let rows = &weight[panel.first * depth..(panel.first + panel.columns) * depth];
        pack_columns(rows, depth, panel.width, out);
    });
}

dispatch! {
    /// Interleaves a panel's part of the rows of a matrix of `columns`.
    fn pack_rows<E>(weight: &[f32], columns: usize, panel: Panel, out: &mut [E]) => pack_rows_body;

    /// Interleaves the columns of a matrix of `depth` columns, into a panel of `width`.
    fn pack_columns<E>(rows: &[f32], depth: usize, width: usize, out: &mut [E]) => pack_columns_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn pack_rows_body<V: Vector, E: Element>(weight: &[f32], columns: usize, panel: Panel, out: &mut [E]) {
    let groups = weight.chunks(E::DEPTH * columns).zip(out.chunks_exact_mut(E::DEPTH * panel.width));
    for (from, to) in groups {
        for first in (0..panel.columns).step_by(V::LANES) {
            let count = V::LANES.min(panel.columns - first);
            // A panel for half the lanes ends in half a vector.
            let mut whole = [E::zeroed(); 32];
            let room = V::LANES.min(panel.width - first) * E::DEPTH;
            let to = &mut to[first * E::DEPTH..][..room];
            let place = if room == V::LANES * E::DEPTH { to.as_mut_ptr() } else { whole.as_mut_ptr() };
            // SAFETY: there is room for a vector of groups; the rest is the caller's promise.
            unsafe {
                let values = read::<V, _>(from, panel.first + first, count);
                if from.len() == 2 * columns {
                    let next = read::<V, _>(from, columns + panel.first + first, count);
                    E::store_two_interleaved([values, next], place, place);
                } else {
                    E::store_interleaved(values, place, 0);
                }
            }
            if room < V::LANES * E::DEPTH {
                to.copy_from_slice(&whole[..room]);
            }
        }
    }
}

/// A square block: as many rows as a vector has lanes, 16 or 8. A lane has one fp32 number or two bf16 numbers.
#[repr(align(64))]
struct Block<E>([E; 512]);

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn pack_columns_body<V: Vector, E: Element>(rows: &[f32], depth: usize, width: usize, out: &mut [E]) {
    let columns = rows.len() / depth;
    // Steps of the depth in a block.
    let steps = V::LANES * E::DEPTH;
    let (mut block, mut turned) = (Block([E::zeroed(); 512]), Block([E::zeroed(); 512]));
    for column in (0..columns).step_by(V::LANES) {
        let lanes = V::LANES.min(width - column);
        for first in (0..depth).step_by(steps) {
            for j in 0..V::LANES {
                for part in (0..steps).step_by(V::LANES) {
                    let at = first + part;
                    let count = if column + j < columns { V::LANES.min(depth.saturating_sub(at)) } else { 0 };
                    // SAFETY: the numbers that are read lie in the row, and the block has room for the vector; the rest
                    // is the caller's promise.
                    unsafe {
                        let from = rows.as_ptr().wrapping_add((column + j) * depth + at);
                        E::store(V::load_some(from, count), block.0.as_mut_ptr().add(j * steps + part));
                    }
                }
            }
            let groups = (depth - first).min(steps).div_ceil(E::DEPTH);
            let to = &mut out[(first / E::DEPTH * width + column) * E::DEPTH..];
            let whole = groups == V::LANES && lanes == V::LANES;
            let (place, stride) = if whole { (&mut *to, width) } else { (&mut turned.0[..], V::LANES) };
            assert!(place.len() >= ((V::LANES - 1) * stride + V::LANES) * E::DEPTH);
            // SAFETY: each block has the lanes, by the assertion so does the place; the rest is the caller's promise.
            unsafe {
                V::transpose(block.0.as_ptr().cast(), V::LANES, place.as_mut_ptr().cast(), stride);
            }
            if !whole {
                for group in 0..groups {
                    let from = &turned.0[group * steps..][..lanes * E::DEPTH];
                    to[group * width * E::DEPTH..][..from.len()].copy_from_slice(from);
                }
            }
        }
    }
}

/// Packs each panel by `pack`, which finds zeros in it.
fn pack_panels<E: Element>(
    cx: &Context,
    panels: Panels,
    depth: usize,
    packed: &mut [E],
    pack: impl Fn(Panel, &mut [E]) + Sync,
) {
    let depth = super::depth::<E>(depth);
    let packed = Shared::new(packed);
    let run = |number: usize| {
        let panel = panels.panel(number);
        let start = panel.first * depth;
        // SAFETY: panels do not overlap.
        let out = unsafe { packed.part(start..start + panel.width * depth) };
        out.fill(E::zeroed());
        pack(panel, out);
    };
    if panels.padded() * depth < 1 << 14 {
        return (0..panels.count()).for_each(run);
    }
    cx.parallel(panels.count(), |number, _| run(number));
}
