//! Matrix products of a block of rows that stays in the core's cache.
//!
//! The right-hand matrix is cut into *panels* of one to three vectors of columns, zero-padded to whole
//! vectors; within a panel a row's columns are contiguous. Two orientations of the left-hand matrix serve all
//! passes: C = A·B ([`multiply`]: outputs and gradients of activations), and
//! C = Aᵀ·B ([`multiply_transposed`]: gradients of weights, summed over rows). Weights are packed once per pass,
//! 0.1 to 2 MB that all threads then read; activations are never packed.
//!
//! For gradients of weights, the vectors always run over the *wide* side of the weight, which is a multiple of
//! 16 in every network. So a narrow side of 24 or 40 wastes no lanes.

mod kernel;
pub mod rows;

pub use kernel::Ahead;

use std::ops::Range;

use super::context::Context;
use super::memory::Shared;
use super::simd::{Level, Vector, dispatch, level};

/// How the columns of a matrix are cut into panels.
#[derive(Clone, Copy, Debug)]
pub struct Panels {
    columns: usize,
    /// Columns of a first panel for the kernel of half the lanes, or 0; `vectors` of `lanes` follow.
    half: usize,
    lanes: usize,
    vectors: usize,
    /// Whether the first panel has three vectors: if their number is odd and the registers suffice.
    three: bool,
}

/// Columns `first..first + columns`, padded to `width` (whole vectors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panel {
    pub first: usize,
    pub columns: usize,
    pub width: usize,
}

impl Panels {
    /// The panels of the processor's instruction set: whole vectors.
    pub fn new(columns: usize) -> Panels {
        match level() {
            Level::Avx512 | Level::Avx512Bf16 => Panels::with(columns, 16, 32),
            Level::Avx2 => Panels::with(columns, 8, 16),
            Level::Portable => Panels::with(columns, 8, 8),
        }
    }

    /// Panels of a product's result whose columns may end in half a vector: with 16 lanes, the 8-lane kernel computes
    /// a first panel of 24 (or all 8) columns, so that 24 or 40 channels waste nothing.
    pub fn narrow(columns: usize) -> Panels {
        match level() {
            Level::Avx512 | Level::Avx512Bf16 if columns.div_ceil(8) % 2 == 1 => {
                let half = if columns <= 8 { 8 } else { 24 };
                let rest = Panels::with(columns.saturating_sub(half), 16, 32);
                Panels { columns, half, ..rest }
            }
            _ => Panels::new(columns),
        }
    }

    fn with(columns: usize, lanes: usize, registers: usize) -> Panels {
        let vectors = columns.div_ceil(lanes);
        let three = registers >= 32 && vectors >= 3 && vectors % 2 == 1;
        Panels { columns, half: 0, lanes, vectors, three }
    }

    pub fn count(&self) -> usize {
        let whole = if self.three { (self.vectors - 1) / 2 } else { self.vectors.div_ceil(2) };
        whole + usize::from(self.half > 0)
    }

    pub fn panel(&self, number: usize) -> Panel {
        if self.half > 0 && number == 0 {
            return Panel { first: 0, columns: self.half.min(self.columns), width: self.half };
        }
        let (first, width) = match (self.three, number - usize::from(self.half > 0)) {
            (true, 0) => (0, 3),
            (true, number) => (2 * number + 1, 2),
            (false, number) => (2 * number, 2.min(self.vectors - 2 * number)),
        };
        let (first, width) = (self.half + first * self.lanes, width * self.lanes);
        Panel { first, columns: width.min(self.columns - first), width }
    }

    pub fn iter(&self) -> impl Iterator<Item = Panel> + use<> {
        self.range(0..self.count())
    }

    /// The panels of these numbers.
    pub fn range(&self, numbers: Range<usize>) -> impl Iterator<Item = Panel> + use<> {
        let panels = *self;
        numbers.map(move |number| panels.panel(number))
    }

    /// Columns with the last panel's padding: a packed matrix has this many times its depth floats, and the
    /// panel that starts at column `first` starts at `first·depth`.
    pub fn padded(&self) -> usize {
        self.half + self.vectors * self.lanes
    }
}

/// Columns with the padding of any instruction set, for the size of a workspace.
pub fn padded(columns: usize) -> usize {
    columns.next_multiple_of(16)
}

/// Packs B = W, row-major [depth, columns].
pub fn pack(cx: &Context, weight: &[f32], panels: Panels, packed: &mut [f32]) {
    let columns = panels.columns;
    let depth = weight.len() / columns;
    pack_panels(cx, panels, depth, packed, |panel, out| {
        for (from, to) in weight.chunks_exact(columns).zip(out.chunks_exact_mut(panel.width)) {
            to[..panel.columns].copy_from_slice(&from[panel.first..panel.first + panel.columns]);
            to[panel.columns..].fill(0.0);
        }
    });
}

/// Packs B = Wᵀ, where W is row-major [columns, depth].
pub fn pack_transposed(cx: &Context, weight: &[f32], panels: Panels, packed: &mut [f32]) {
    let columns = panels.columns;
    let depth = weight.len() / columns;
    pack_panels(cx, panels, depth, packed, |panel, out| {
        let rows = &weight[panel.first * depth..(panel.first + panel.columns) * depth];
        // Sixteen steps of the depth at a time: a cache line of each row of W, a few lines of the panel.
        for first in (0..depth).step_by(16) {
            let out = &mut out[first * panel.width..(first + 16).min(depth) * panel.width];
            for (j, row) in rows.chunks_exact(depth).enumerate() {
                for (to, from) in out.chunks_exact_mut(panel.width).zip(&row[first..]) {
                    to[j] = *from;
                }
            }
            for to in out.chunks_exact_mut(panel.width) {
                to[panel.columns..].fill(0.0);
            }
        }
    });
}

fn pack_panels(
    cx: &Context,
    panels: Panels,
    depth: usize,
    packed: &mut [f32],
    pack: impl Fn(Panel, &mut [f32]) + Sync,
) {
    let packed = Shared::new(packed);
    let run = |number: usize| {
        let panel = panels.panel(number);
        let start = panel.first * depth;
        // SAFETY: panels do not overlap.
        pack(panel, unsafe { packed.part(start..start + panel.width * depth) });
    };
    if panels.padded() * depth < 1 << 14 {
        return (0..panels.count()).for_each(run);
    }
    cx.parallel(panels.count(), |number, _| run(number));
}

/// Adds the gradient of a weight, summed by `groups` tasks into [groups][panel over wide][narrow][width], in
/// the order of the groups. The gradient is [wide, narrow] if `transposed`, else [narrow, wide].
pub fn add_weight_gradient(
    cx: &Context,
    partials: &[f32],
    narrow: usize,
    wide: usize,
    transposed: bool,
    gradient: &mut [f32],
) {
    let panels = Panels::new(wide);
    let size = panels.padded() * narrow;
    // Blocks of 16 narrow channels, so that many threads have work even with few panels.
    let blocks = narrow.div_ceil(16);
    let gradient = Shared::new(gradient);
    let run = |task: usize| {
        let panel = panels.panel(task / blocks);
        let first = task % blocks * 16;
        for i in first..(first + 16).min(narrow) {
            let start = panel.first * narrow + i * panel.width;
            let mut sums = [0.0f32; 48];
            for partial in partials.chunks_exact(size) {
                for (sum, value) in sums.iter_mut().zip(&partial[start..start + panel.columns]) {
                    *sum += value;
                }
            }
            let sums = &sums[..panel.columns];
            // SAFETY: each task adds to its own rows and columns.
            unsafe {
                if transposed {
                    for (j, sum) in sums.iter().enumerate() {
                        let at = (panel.first + j) * narrow + i;
                        gradient.part(at..at + 1)[0] += sum;
                    }
                } else {
                    let at = i * wide + panel.first;
                    for (to, sum) in gradient.part(at..at + panel.columns).iter_mut().zip(sums) {
                        *to += sum;
                    }
                }
            }
        }
    };
    if partials.len() < 1 << 14 {
        return (0..panels.count() * blocks).for_each(run);
    }
    cx.parallel(panels.count() * blocks, |task, _| run(task));
}

/// A product of matrices with `rows` × `depth` and `depth` × `width` elements. Each matrix is a slice and a stride: the
/// number of floats from a row to the next.
pub struct Product<'a> {
    pub rows: usize,
    pub depth: usize,
    pub width: usize,
    pub a: (&'a [f32], usize),
    pub b: (&'a [f32], usize),
    pub c: (&'a mut [f32], usize),
    /// Whether the product is added to C or overwrites it.
    pub add: bool,
    pub ahead: &'a mut Ahead,
}

dispatch! {
    fn multiply_vectors(product: Product<'_>) => multiply_body<false>;

    /// C[rows, width] = A[depth, rows]ᵀ·B[depth, width], or C += if `add`.
    pub fn multiply_transposed(product: Product<'_>) => multiply_body<true>;
}

/// C[rows, width] = A[rows, depth]·B[depth, width], or C += if `add`. B is (part of) a packed panel.
pub fn multiply(product: Product) {
    #[cfg(target_arch = "x86_64")]
    if matches!(level(), Level::Avx512 | Level::Avx512Bf16) && !product.width.is_multiple_of(16) {
        // SAFETY: this level means AVX-512F and VL, AVX2 and FMA.
        return unsafe { multiply_half(product) };
    }
    multiply_vectors(product);
}

/// [`multiply`] with eight lanes. With AVX-512, these vectors have 32 registers too.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
fn multiply_half(product: Product) {
    // SAFETY: the attribute names AVX2 and FMA.
    unsafe { multiply_sized::<super::simd::Avx2, 32, false>(product) };
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn multiply_body<V: Vector, const TRANSPOSED: bool>(product: Product) {
    // SAFETY: the caller's promise.
    unsafe {
        match V::REGISTERS {
            32 => multiply_sized::<V, 32, TRANSPOSED>(product),
            16 => multiply_sized::<V, 16, TRANSPOSED>(product),
            _ => multiply_sized::<V, 8, TRANSPOSED>(product),
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn multiply_sized<V: Vector, const REGISTERS: usize, const TRANSPOSED: bool>(product: Product) {
    let Product { rows, depth, width, a: (a, a_stride), b: (b, b_stride), c: (c, c_stride), add, ahead } =
        product;
    let [a_rows, a_columns] = if TRANSPOSED { [depth, rows] } else { [rows, depth] };
    check(a.len(), a_rows, a_columns, a_stride);
    check(b.len(), depth, width, b_stride);
    check(c.len(), rows, width, c_stride);
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let operands = kernel::Operands { a, a_stride, b, b_stride, depth, c, c_stride, add, ahead: *ahead };
    // SAFETY: the operands lie within their slices by the checks above; the rest is the caller's promise.
    *ahead = unsafe { by_width::<V, REGISTERS, TRANSPOSED>(operands, rows, width) };
}

/// Panics if a matrix of these dimensions does not lie within `len` floats.
fn check(len: usize, rows: usize, columns: usize, stride: usize) {
    assert!(rows == 0 || (columns <= stride && (rows - 1) * stride + columns <= len));
}

/// # Safety
/// As for [`kernel::rows`].
#[inline(always)]
unsafe fn by_width<V: Vector, const REGISTERS: usize, const TRANSPOSED: bool>(
    o: kernel::Operands,
    rows: usize,
    width: usize,
) -> Ahead {
    // SAFETY: the caller's promise.
    unsafe {
        match width / V::LANES {
            1 => kernel::rows::<V, REGISTERS, 1, TRANSPOSED>(o, rows),
            2 => kernel::rows::<V, REGISTERS, 2, TRANSPOSED>(o, rows),
            3 if REGISTERS >= 32 => kernel::rows::<V, REGISTERS, 3, TRANSPOSED>(o, rows),
            _ => unreachable!("a panel of {width} columns"),
        }
    }
}

#[cfg(test)]
mod tests;
