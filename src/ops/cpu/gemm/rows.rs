//! The steps before and after a product, on a block of rows that is in the cache.

// Plain indices into arrays of registers: iterators with closures may become calls (see `simd`).
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::Panel;
use crate::ops::cpu::context::part_of;
use crate::ops::cpu::memory::Shared;
use crate::ops::cpu::simd::{Element, Vector, dispatch};

/// Most rows of a tile. A tile with 48 columns fills half of a first-level cache, one with all columns of a wide
/// layer the second-level cache.
pub const TILE: usize = 128;

/// Nearly equal tiles of at most [`TILE`] rows.
pub fn tiles(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let count = rows.len().div_ceil(TILE);
    (0..count).map(move |number| {
        let part = part_of(rows.len(), count, number);
        rows.start + part.start..rows.start + part.end
    })
}

/// The rows of a task that follow a tile, at most as many as the tile has.
pub fn after(tile: &Range<usize>, rows: &Range<usize>) -> Range<usize> {
    tile.end..(tile.end + tile.len()).min(rows.end)
}

/// Whether no cache is expected to hold a tensor of so many elements until the next pass reads it.
pub fn streams<E: Element>(elements: usize) -> bool {
    elements * size_of::<E>() >= 16 << 20
}

/// A block of rows in scratch memory that is an operand of two products: once its columns are the depth, once its rows.
/// For fp32 both read the same rows, for bf16 the second one needs them interleaved.
pub struct Operand<'a, E> {
    rows: &'a mut [E],
    interleaved: &'a mut [E],
    /// Columns from a row to the next: whole vectors.
    pub stride: usize,
}

impl<'a, E: Element> Operand<'a, E> {
    /// Floats of scratch memory for so many rows and columns, whole vectors.
    pub const fn floats(rows: usize, columns: usize) -> usize {
        let interleaved = if E::DEPTH > 1 { rows.next_multiple_of(E::DEPTH) * columns } else { 0 };
        floats_of::<E>(rows * columns) + floats_of::<E>(interleaved)
    }

    /// In scratch memory of [`Operand::floats`] for `columns`.
    pub fn new(scratch: &'a mut [f32], rows: usize, columns: usize) -> Operand<'a, E> {
        let (own, rest) = scratch.split_at_mut(floats_of::<E>(rows * columns));
        Operand { rows: cast_slice_mut(own), interleaved: cast_slice_mut(rest), stride: columns }
    }

    /// The rows, and their stride.
    pub fn by_columns(&self) -> (&[E], usize) {
        (self.rows, self.stride)
    }

    /// The interleaved rows from a column on, and their stride.
    pub fn by_rows(&self, column: usize) -> (&[E], usize) {
        let rows = if E::DEPTH > 1 { &*self.interleaved } else { &*self.rows };
        (&rows[column * E::DEPTH..], self.stride)
    }
}

/// Floats that so many elements take.
pub const fn floats_of<E>(elements: usize) -> usize {
    (elements * size_of::<E>()).div_ceil(4)
}

/// A block of a row-major matrix [.., channels].
#[derive(Clone, Copy)]
pub struct RowBlock {
    pub row: usize,
    pub rows: usize,
    pub column: usize,
    pub columns: usize,
    pub channels: usize,
}

impl RowBlock {
    pub fn new(rows: &Range<usize>, columns: Range<usize>, channels: usize) -> RowBlock {
        let (row, column) = (rows.start, columns.start);
        RowBlock { row, rows: rows.len(), column, columns: columns.len(), channels }
    }

    pub fn of(rows: &Range<usize>, panel: Panel, channels: usize) -> RowBlock {
        RowBlock::new(rows, panel.first..panel.first + panel.columns, channels)
    }

    /// The block's part of row `row` in the matrix.
    #[inline(always)]
    pub fn range(&self, row: usize) -> Range<usize> {
        let start = (self.row + row) * self.channels + self.column;
        start..start + self.columns
    }

    /// Panics unless all of the block lies within `len` floats.
    #[inline(always)]
    pub fn check(&self, len: usize) {
        assert!(self.rows == 0 || self.range(self.rows - 1).end <= len);
        assert!(self.column + self.columns <= self.channels);
    }
}

/// Where a task stores its shift, Σ(y−shift) and Σ(y−shift)²: [3, channels] from `start`.
#[derive(Clone, Copy)]
pub struct RowStatistics<'a> {
    pub partials: Shared<'a>,
    pub start: usize,
    /// Whether this is the task's first tile, whose first row is the shift.
    pub first: bool,
}

impl RowStatistics<'_> {
    /// The places of the three sums of the block's columns from `column` on.
    ///
    /// # Safety
    /// These columns belong to the calling task.
    #[inline(always)]
    unsafe fn parts(&self, block: RowBlock, column: usize, count: usize) -> [*mut f32; 3] {
        let start = self.start + block.column + column;
        let mut parts = [std::ptr::null_mut(); 3];
        for (row, part) in parts.iter_mut().enumerate() {
            let start = start + row * block.channels;
            // SAFETY: the caller's promise.
            *part = unsafe { self.partials.part(start..start + count) }.as_mut_ptr();
        }
        parts
    }
}

dispatch! {
    /// Copies a block from `from` (rows of whole vectors, `stride` apart) to its place in `to`, and takes its
    /// statistics.
    /// # Safety
    /// The block of `to` and the block's columns of the statistics belong to the calling task.
    pub unsafe fn store<E>(
        from: &[f32], stride: usize, block: RowBlock, to: Shared<'_, E>, statistics: Option<RowStatistics<'_>>
    ) => store_body;

    /// dy = a·f·du + b·(y − μ) + c of a block of du and y into `out` (rows of whole vectors, zero beyond the
    /// columns). `coefficients` are batch norm's backward ones [4, channels]. `factors` has f of each of the block's
    /// rows; empty factors mean one.
    pub fn batch_norm_backward<E>(
        du: &[E], y: &[E], block: RowBlock, factors: &[f32], coefficients: &[f32], out: &mut Operand<'_, E>
    ) => batch_norm_backward_body;

    /// Interleaves a matrix of `columns`, into rows of whole vectors.
    pub fn interleave<E>(from: &[E], columns: usize, out: &mut [E], stride: usize) => interleave_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`store`].
#[inline(always)]
unsafe fn store_body<V: Vector, E: Element>(
    from: &[f32],
    stride: usize,
    block: RowBlock,
    to: Shared<'_, E>,
    statistics: Option<RowStatistics<'_>>,
) {
    let vectors = block.columns.div_ceil(V::LANES);
    assert!(block.rows == 0 || (block.rows - 1) * stride + vectors * V::LANES <= from.len());
    block.check(to.len());
    // SAFETY: the checks above; the rest is the caller's promise.
    unsafe {
        match vectors {
            1 => store_vectors::<V, E, 1>(from, stride, block, to, statistics),
            2 => store_vectors::<V, E, 2>(from, stride, block, to, statistics),
            3 => store_vectors::<V, E, 3>(from, stride, block, to, statistics),
            _ => unreachable!("a panel of {vectors} vectors"),
        }
    }
}

/// # Safety
/// The instruction set of `V` is present. The block lies within `to` and belongs to the caller; `from` has whole
/// vectors for each row.
#[inline(always)]
unsafe fn store_vectors<V: Vector, E: Element, const W: usize>(
    from: &[f32],
    stride: usize,
    block: RowBlock,
    to: Shared<'_, E>,
    statistics: Option<RowStatistics<'_>>,
) {
    let streams = streams::<E>(to.len());
    // Lanes of each vector: all but those of the last.
    let mut lanes = [V::LANES; W];
    lanes[W - 1] = block.columns - (W - 1) * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        let mut shift = [V::zero(); W];
        let mut sums = [[V::zero(); W]; 2];
        if let Some(statistics) = statistics {
            for j in 0..W {
                if statistics.first {
                    shift[j] = E::rounded(V::load(from.as_ptr().add(j * V::LANES)));
                } else {
                    let [a, b, c] = statistics.parts(block, j * V::LANES, lanes[j]);
                    shift[j] = V::load_part(a, lanes[j]);
                    sums[0][j] = V::load_part(b, lanes[j]);
                    sums[1][j] = V::load_part(c, lanes[j]);
                }
            }
        }
        for row in 0..block.rows {
            let to = to.part(block.range(row)).as_mut_ptr();
            for j in 0..W {
                // The statistics are those of what the next pass loads.
                let y = E::rounded(V::load(from.as_ptr().add(row * stride + j * V::LANES)));
                E::store_some(y, to.add(j * V::LANES), lanes[j], streams);
                let d = y.sub(shift[j]);
                sums[0][j] = sums[0][j].add(d);
                sums[1][j] = d.mul_add(d, sums[1][j]);
            }
        }
        if let Some(statistics) = statistics {
            for j in 0..W {
                let [a, b, c] = statistics.parts(block, j * V::LANES, lanes[j]);
                shift[j].store_part(a, lanes[j]);
                sums[0][j].store_part(b, lanes[j]);
                sums[1][j].store_part(c, lanes[j]);
            }
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn batch_norm_backward_body<V: Vector, E: Element>(
    du: &[E],
    y: &[E],
    block: RowBlock,
    factors: &[f32],
    coefficients: &[f32],
    out: &mut Operand<E>,
) {
    let stride = out.stride;
    let padded = block.columns.next_multiple_of(V::LANES);
    let last = block.rows.saturating_sub(1);
    assert!(block.rows == 0 || (padded <= stride && last * stride + padded <= out.rows.len()));
    assert!(E::DEPTH == 1 || block.rows.next_multiple_of(E::DEPTH) * stride <= out.interleaved.len());
    assert!(factors.is_empty() || factors.len() >= block.rows);
    assert!(coefficients.len() >= 4 * block.channels);
    block.check(du.len().min(y.len()));
    // SAFETY: the block lies within `du` and `y`, its columns within the coefficients and its padded rows within `out`,
    // by the checks above; the rest is the caller's promise.
    unsafe {
        for row in (0..last).step_by(2) {
            form_rows::<V, E, 2>(du, y, block, row, factors, coefficients, out);
        }
        if block.rows % 2 == 1 {
            form_rows::<V, E, 1>(du, y, block, last, factors, coefficients, out);
        }
    }
}

/// `R` rows of dy, from `first_row` on, which is even.
///
/// # Safety
/// The instruction set of `V` is present. These rows lie within all slices, padded to whole vectors within `out`.
#[inline(always)]
unsafe fn form_rows<V: Vector, E: Element, const R: usize>(
    du: &[E],
    y: &[E],
    block: RowBlock,
    first_row: usize,
    factors: &[f32],
    coefficients: &[f32],
    out: &mut Operand<E>,
) {
    let (stride, start) = (out.stride, block.range(first_row).start);
    for first in (0..block.columns).step_by(V::LANES) {
        let count = V::LANES.min(block.columns - first);
        // SAFETY: the caller's promise.
        unsafe {
            let of = coefficients.as_ptr().add(block.column + first);
            let (a, b) = (V::load_some(of, count), V::load_some(of.add(block.channels), count));
            let c = V::load_some(of.add(2 * block.channels), count);
            let mean = V::load_some(of.add(3 * block.channels), count);
            let mut dy = [V::zero(); R];
            for i in 0..R {
                let factor = if factors.is_empty() { 1.0 } else { factors[first_row + i] };
                let at = start + i * block.channels + first;
                let du = E::load_some::<V>(du.as_ptr().add(at), count).mul(V::splat(factor));
                let centred = E::load_some::<V>(y.as_ptr().add(at), count).sub(mean);
                dy[i] = a.mul_add(du, b.mul_add(centred, c));
                E::store(dy[i], out.rows.as_mut_ptr().add((first_row + i) * stride + first));
            }
            if E::DEPTH > 1 {
                let group = first_row / E::DEPTH * stride + first;
                let to = out.interleaved.as_mut_ptr().add(group * E::DEPTH);
                match R {
                    2 => E::store_two_interleaved([dy[0], dy[R - 1]], to, to),
                    _ => E::store_interleaved(dy[0], to, 0),
                }
            }
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn interleave_body<V: Vector, E: Element>(from: &[E], columns: usize, out: &mut [E], stride: usize) {
    let rows = from.len() / columns;
    assert!(columns.next_multiple_of(V::LANES) <= stride);
    assert!(rows.next_multiple_of(E::DEPTH) * stride <= out.len());
    for row in (0..rows).step_by(2) {
        for first in (0..columns).step_by(V::LANES) {
            let count = V::LANES.min(columns - first);
            let [to, next] = [row, row + 1].map(|row| (row / E::DEPTH * stride + first) * E::DEPTH);
            // SAFETY: the rows lie within `from`, their padded groups within `out`; the rest is the caller's promise.
            unsafe {
                let from = from.as_ptr().add(row * columns + first);
                let values = E::load_some::<V>(from, count);
                let out = out.as_mut_ptr();
                if row + 1 < rows {
                    let rows = [values, E::load_some::<V>(from.add(columns), count)];
                    E::store_two_interleaved(rows, out.add(to), out.add(next));
                } else {
                    E::store_interleaved(values, out.add(to), 0);
                }
            }
        }
    }
}
