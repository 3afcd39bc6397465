//! The small dense products of squeeze-excite and the classifier, for use within a task.
//!
//! Two kernels serve all of them: rows against rows (dot products along contiguous memory), and a sum of
//! rows weighted by the elements of another matrix. The strides of that matrix say whether it is read by rows (gradient
//! of the input) or by columns (gradient of the weight). Each output element has one accumulator, and its
//! terms are added in the same order in every tile. So a result depends neither on the batch nor on how
//! the tasks are cut.

use super::memory::Shared;
use super::simd::{Vector, dispatch};
use super::sweep::{each_vector, read, write};

/// A rectangle of a row-major matrix that one task writes while others write other parts.
pub struct Region<'a> {
    out: Shared<'a>,
    start: usize,
    stride: usize,
    rows: usize,
    columns: usize,
}

impl<'a> Region<'a> {
    /// All of a matrix with this many columns.
    pub fn whole(out: &'a mut [f32], columns: usize) -> Self {
        let rows = out.len() / columns;
        Region { out: Shared::new(out), start: 0, stride: columns, rows, columns }
    }

    /// `rows` × `columns` elements of a matrix whose rows are `stride` apart, from element `start` on.
    /// # Safety
    /// Nothing else uses these elements while the region lives.
    pub unsafe fn of(out: Shared<'a>, start: usize, stride: usize, rows: usize, columns: usize) -> Self {
        assert!(rows == 0 || start + (rows - 1) * stride + columns <= out.len());
        Region { out, start, stride, rows, columns }
    }

    /// Elements `first..first + count` of a row.
    #[inline(always)]
    fn part(&mut self, row: usize, first: usize, count: usize) -> &mut [f32] {
        debug_assert!(row < self.rows && first + count <= self.columns);
        let at = self.start + row * self.stride + first;
        // SAFETY: nothing else uses the region by the promise of `of`, and `self` is borrowed mutably.
        unsafe { self.out.part(at..at + count) }
    }
}

/// A matrix to read: element (row, k) is `data[row · row_stride + k · depth_stride]`.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    pub data: &'a [f32],
    pub row_stride: usize,
    pub depth_stride: usize,
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// One value per column.
    Bias(&'a [f32]),
    /// The present output.
    Add,
}

/// A sum of rows of b, weighted by the elements of a: out[r, j] = start + Σ_k a(r, k)·b[k, j] for k < depth.
#[derive(Clone, Copy)]
pub struct WeightedRows<'a> {
    pub a: Factor<'a>,
    pub depth: usize,
    pub b: &'a [f32],
    /// Floats from a row of b to the next.
    pub stride: usize,
    pub start: Start<'a>,
}

dispatch! {
    /// out[r, o] = bias[o] + Σ_k x[r, k]·w[o, k], for x [rows, depth] and w [columns, depth] of the region.
    pub fn dots(x: &[f32], w: &[f32], depth: usize, bias: &[f32], out: &mut Region<'_>) => dots_body;
    /// See [`WeightedRows`].
    pub fn weighted_rows(product: WeightedRows<'_>, out: &mut Region<'_>) => weighted_rows_body;
    /// Adds the columns' sums of a matrix to `out`: out[j] += Σ_r x[r·stride + j].
    pub fn add_column_sums(x: &[f32], stride: usize, rows: usize, out: &mut [f32]) => add_column_sums_body;
    /// out = a·b, element by element.
    pub fn multiply(a: &[f32], b: &[f32], out: &mut [f32]) => multiply_body;
    /// out = sigmoid(out).
    pub fn sigmoid_in_place(out: &mut Region<'_>) => sigmoid_in_place_body;
    /// out = silu(x).
    pub fn silu(x: &[f32], out: &mut [f32]) => silu_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn dots_body<V: Vector>(x: &[f32], w: &[f32], depth: usize, bias: &[f32], out: &mut Region) {
    assert!(x.len() >= out.rows * depth && w.len() >= out.columns * depth && bias.len() >= out.columns);
    let mut row = 0;
    while row < out.rows {
        let four = row + 4 <= out.rows;
        let mut column = 0;
        while column < out.columns {
            let left = out.columns - column;
            // SAFETY: rows and columns are below the region's, for which the lengths were checked; the rest is the
            // caller's promise.
            unsafe {
                match (four, left >= 4 && V::REGISTERS >= 32, left >= 2) {
                    (true, true, _) => dots_tile::<V, 4, 4>(x, w, depth, bias, row, column, out),
                    (true, false, true) => dots_tile::<V, 4, 2>(x, w, depth, bias, row, column, out),
                    (true, false, false) => dots_tile::<V, 4, 1>(x, w, depth, bias, row, column, out),
                    (false, true, _) => dots_tile::<V, 1, 4>(x, w, depth, bias, row, column, out),
                    (false, false, true) => dots_tile::<V, 1, 2>(x, w, depth, bias, row, column, out),
                    (false, false, false) => dots_tile::<V, 1, 1>(x, w, depth, bias, row, column, out),
                }
            }
            column += if left >= 4 && V::REGISTERS >= 32 { 4 } else { 2.min(left) };
        }
        row += if four { 4 } else { 1 };
    }
}

/// # Safety
/// The instruction set of `V` is present. x has rows up to `row + R`, w up to `column + O`, of `depth` elements.
#[inline(always)]
unsafe fn dots_tile<V: Vector, const R: usize, const O: usize>(
    x: &[f32],
    w: &[f32],
    depth: usize,
    bias: &[f32],
    row: usize,
    column: usize,
    out: &mut Region,
) {
    let x: [&[f32]; R] = std::array::from_fn(|i| &x[(row + i) * depth..(row + i + 1) * depth]);
    let w: [&[f32]; O] = std::array::from_fn(|i| &w[(column + i) * depth..(column + i + 1) * depth]);
    // SAFETY: the caller's promise.
    let mut sums = unsafe { [[V::zero(); O]; R] };
    each_vector!(V, depth, |at, count| {
        // SAFETY: every slice has `depth` elements; the rest is the caller's promise.
        unsafe {
            let mut weights = [V::zero(); O];
            for (weight, w) in weights.iter_mut().zip(w) {
                *weight = V::load_some(w.as_ptr().add(at), count);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                let x = V::load_some(x.as_ptr().add(at), count);
                for (sum, weight) in sums.iter_mut().zip(weights) {
                    *sum = x.mul_add(weight, *sum);
                }
            }
        }
    });
    for (r, sums) in sums.iter().enumerate() {
        let out = out.part(row + r, column, O);
        for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[column..]) {
            *out = sum.sum() + bias;
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn weighted_rows_body<V: Vector>(product: WeightedRows, out: &mut Region) {
    let WeightedRows { a, depth, b, stride, .. } = product;
    if depth == 0 || out.rows == 0 || out.columns == 0 {
        return;
    }
    assert!(a.data.len() > (out.rows - 1) * a.row_stride + (depth - 1) * a.depth_stride);
    assert!(b.len() >= (depth - 1) * stride + out.columns);
    let widest = if V::REGISTERS >= 32 { 4 } else { 2 };
    let mut column = 0;
    while column < out.columns {
        let left = out.columns - column;
        let width = left.min(widest * V::LANES);
        let mut row = 0;
        while row < out.rows {
            // SAFETY: rows and columns are below the region's, for which the lengths were checked; the rest is the
            // caller's promise.
            unsafe {
                // Eight rows are two tiles of four, rather than 6 + 1 + 1; nine are 4 + 4 + 1.
                row += match out.rows - row {
                    8 | 9 => weighted_strip::<V, 4>(product, row, column, width, out),
                    6.. if V::REGISTERS >= 32 => weighted_strip::<V, 6>(product, row, column, width, out),
                    4.. => weighted_strip::<V, 4>(product, row, column, width, out),
                    _ => weighted_strip::<V, 1>(product, row, column, width, out),
                };
            }
        }
        column += width;
    }
}

/// Chooses the tile for `width` columns. Returns the rows.
/// # Safety
/// As for [`weighted_tile`].
#[inline(always)]
unsafe fn weighted_strip<V: Vector, const R: usize>(
    product: WeightedRows,
    row: usize,
    column: usize,
    width: usize,
    out: &mut Region,
) -> usize {
    let last = width - (width - 1) / V::LANES * V::LANES;
    // SAFETY: the caller's promise.
    unsafe {
        match (width.div_ceil(V::LANES), last == V::LANES) {
            (4, true) => weighted_tile::<V, R, 4>(product, row, column, V::LANES, out),
            (4, false) => weighted_tile::<V, R, 4>(product, row, column, last, out),
            (3, _) => weighted_tile::<V, R, 3>(product, row, column, last, out),
            (2, true) => weighted_tile::<V, R, 2>(product, row, column, V::LANES, out),
            (2, false) => weighted_tile::<V, R, 2>(product, row, column, last, out),
            _ => weighted_tile::<V, R, 1>(product, row, column, last, out),
        }
    }
    R
}

/// `R` rows of `W` vectors, the last of which has `last` elements.
/// # Safety
/// The instruction set of `V` is present. `a` has the rows up to `row + R`, `b` the columns up to the tile's end, both
/// for all k < depth.
#[inline(always)]
unsafe fn weighted_tile<V: Vector, const R: usize, const W: usize>(
    product: WeightedRows,
    row: usize,
    column: usize,
    last: usize,
    out: &mut Region,
) {
    let WeightedRows { a, depth, b, stride, start } = product;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::zero(); W]; R];
        for k in 0..depth {
            let mut terms = [V::zero(); W];
            let b = b.as_ptr().add(k * stride + column);
            for (w, term) in terms.iter_mut().enumerate() {
                *term = V::load_some(b.add(w * V::LANES), if w == W - 1 { last } else { V::LANES });
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let factor = V::splat(*a.data.as_ptr().add((row + r) * a.row_stride + k * a.depth_stride));
                for (sum, term) in sums.iter_mut().zip(terms) {
                    *sum = term.mul_add(factor, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            let width = (W - 1) * V::LANES + last;
            let out = out.part(row + r, column, width);
            for (w, sum) in sums.iter().enumerate() {
                let (at, count) = (w * V::LANES, if w == W - 1 { last } else { V::LANES });
                let value = match start {
                    Start::Zero => *sum,
                    Start::Bias(bias) => sum.add(read(bias, column + at, count)),
                    Start::Add => sum.add(read(out, at, count)),
                };
                write(out, at, count, value);
            }
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn add_column_sums_body<V: Vector>(x: &[f32], stride: usize, rows: usize, out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, out.len(), |at, count| {
            let mut sum = V::zero();
            for row in 0..rows {
                sum = sum.add(read(x, row * stride + at, count));
            }
            write(out, at, count, read::<V, _>(out, at, count).add(sum));
        });
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn multiply_body<V: Vector>(a: &[f32], b: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, out.len(), |at, count| {
            write(out, at, count, read::<V, _>(a, at, count).mul(read(b, at, count)));
        });
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn sigmoid_in_place_body<V: Vector>(out: &mut Region) {
    // SAFETY: the caller's promise.
    unsafe {
        for row in 0..out.rows {
            let columns = out.columns;
            let out = out.part(row, 0, columns);
            each_vector!(V, columns, |at, count| {
                write(out, at, count, read::<V, _>(out, at, count).sigmoid());
            });
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn silu_body<V: Vector>(x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, out.len(), |at, count| {
            write(out, at, count, read::<V, _>(x, at, count).silu());
        });
    }
}
