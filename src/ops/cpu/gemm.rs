//! Matrix products of a block of rows that stays in the core's cache.
//!
//! The right-hand matrix is cut into *panels* of one to three vectors of columns, zero-padded to whole
//! vectors; within a panel a row's columns are contiguous. Two orientations of the left-hand matrix serve all
//! passes: C = A·B ([`multiply`]: outputs and gradients of activations), and
//! C = Aᵀ·B ([`multiply_transposed`]: gradients of weights, summed over rows). Weights are packed once per pass,
//! 0.1 to 2 MB that all threads then read; activations are never packed.
//!
//! One multiply-add takes one fp32 number of each operand, or two bf16 numbers: [`Element::DEPTH`] steps of the depth. So
//! where an operand's rows are the depth, these rows are *interleaved* in groups of that size: [groups, columns, DEPTH],
//! with zeros for the missing rows of the last group. Sums are in fp32.
//!
//! For gradients of weights, the vectors always run over the *wide* side of the weight, which is a multiple of
//! 16 in every network. So a narrow side of 24 or 40 wastes no lanes.

mod kernel;
mod pack;
mod packed;
pub mod rows;

pub use kernel::Ahead;
pub use pack::{pack, pack_transposed};
pub use packed::{Form, Packed, PackedWeights};

use std::ops::Range;

use super::context::Context;
use super::memory::Shared;
use super::simd::{Element, Level, Vector, dispatch, halves_are_cheaper, level};
use super::sweep::{each_vector, read, write};

/// How the columns of a matrix are cut into panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// a first panel of 24 (or all 8) columns, so that 24 or 40 channels waste nothing. Where a half takes as long as a
    /// whole, it computes only a panel that has nothing else.
    pub fn narrow(columns: usize) -> Panels {
        let halves = columns <= 8 || halves_are_cheaper();
        match level() {
            Level::Avx512 | Level::Avx512Bf16 if halves && columns.div_ceil(8) % 2 == 1 => {
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

    /// Columns with the last panel's padding: a packed matrix has this many times its [`depth`] numbers, and the
    /// panel that starts at column `first` starts at `first·depth`.
    pub fn padded(&self) -> usize {
        self.half + self.vectors * self.lanes
    }
}

/// Columns with the padding of any instruction set, for the size of a workspace.
pub fn padded(columns: usize) -> usize {
    columns.next_multiple_of(16)
}

/// Steps of the depth with those that fill the last group of an interleaved matrix.
pub fn depth<E: Element>(steps: usize) -> usize {
    steps.next_multiple_of(E::DEPTH)
}

/// Narrow channels of a block of a weight's gradient, and the columns of the widest panel.
const ROWS: usize = 16;
const WIDEST: usize = 48;

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
    // Blocks of narrow channels, so that many threads have work even with few panels.
    let blocks = narrow.div_ceil(ROWS);
    let gradient = Shared::new(gradient);
    let run = |task: usize| {
        let panel = panels.panel(task / blocks);
        let first = task % blocks * ROWS;
        let rows = ROWS.min(narrow - first);
        let mut sums = [0.0f32; ROWS * WIDEST];
        for (i, sums) in sums.chunks_exact_mut(WIDEST).enumerate().take(rows) {
            let start = panel.first * narrow + (first + i) * panel.width;
            add_rows(partials, start, size, &mut sums[..panel.columns]);
        }
        // SAFETY: each task adds to its own rows and columns.
        unsafe {
            if transposed {
                add_transposed(&sums, rows, panel.columns, gradient, panel.first * narrow + first, narrow);
                return;
            }
            for (i, sums) in sums.chunks_exact(WIDEST).enumerate().take(rows) {
                let at = (first + i) * wide + panel.first;
                for (to, sum) in gradient.part(at..at + panel.columns).iter_mut().zip(sums) {
                    *to += *sum;
                }
            }
        }
    };
    if partials.len() < 1 << 14 {
        return (0..panels.count() * blocks).for_each(run);
    }
    cx.parallel(panels.count() * blocks, |task, _| run(task));
}

dispatch! {
    /// Adds numbers `start..` of every `size` numbers to the sums, in order.
    fn add_rows(from: &[f32], start: usize, size: usize, sums: &mut [f32]) => add_rows_body;

    /// Adds the transpose of a block [rows, columns] to a matrix whose rows are `stride` apart, from element `start` on.
    /// # Safety
    /// These elements belong to the calling task.
    unsafe fn add_transposed(
        sums: &[f32; ROWS * WIDEST], rows: usize, columns: usize, to: Shared<'_>, start: usize, stride: usize
    ) => add_transposed_body;
}

/// # Safety
/// The instruction set of `V` is present; otherwise as for [`add_transposed`].
#[inline(always)]
unsafe fn add_transposed_body<V: Vector>(
    sums: &[f32; ROWS * WIDEST],
    rows: usize,
    columns: usize,
    to: Shared<'_>,
    start: usize,
    stride: usize,
) {
    assert!(rows <= ROWS && columns <= WIDEST);
    let mut turned = [0.0f32; 16 * 16];
    for column in (0..columns).step_by(V::LANES) {
        for row in (0..rows).step_by(V::LANES) {
            let count = V::LANES.min(rows - row);
            // SAFETY: the block and `turned` have whole vectors of rows and columns; the rest is the caller's promise.
            unsafe {
                V::transpose(sums.as_ptr().add(row * WIDEST + column), WIDEST, turned.as_mut_ptr(), V::LANES);
                for j in 0..V::LANES.min(columns - column) {
                    let at = start + (column + j) * stride + row;
                    let to = to.part(at..at + count).as_mut_ptr();
                    let sum = V::load(turned.as_ptr().add(j * V::LANES));
                    V::load_some(to, count).add(sum).store_some(to, count, false);
                }
            }
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn add_rows_body<V: Vector>(from: &[f32], start: usize, size: usize, sums: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        each_vector!(V, sums.len(), |at, count| {
            let mut sum = read::<V, _>(sums, at, count);
            for part in from.chunks_exact(size) {
                sum = sum.add(read(part, start + at, count));
            }
            write(sums, at, count, sum);
        });
    }
}

/// A product of matrices with `rows` × `depth` and `depth` × `width` elements. A matrix is a slice and a stride: the
/// number of columns from a row to the next.
pub struct Product<'a, E> {
    pub rows: usize,
    pub depth: usize,
    pub width: usize,
    pub a: (&'a [E], usize),
    /// Interleaved.
    pub b: (&'a [E], usize),
    pub c: (&'a mut [f32], usize),
    /// Whether the product is added to C or overwrites it.
    pub add: bool,
    pub ahead: &'a mut Ahead,
}

dispatch! {
    fn multiply_vectors<E>(product: Product<'_, E>) => multiply_body<false>;

    /// C[rows, width] = A[depth, rows]ᵀ·B[depth, width], or C += if `add`. A is interleaved, too.
    pub fn multiply_transposed<E>(product: Product<'_, E>) => multiply_body<true>;
}

/// C[rows, width] = A[rows, depth]·B[depth, width], or C += if `add`. B is (part of) a packed panel; the rows of A end in
/// zeros where the [`depth`] is larger than theirs.
pub fn multiply<E: Element>(product: Product<E>) {
    #[cfg(target_arch = "x86_64")]
    if !product.width.is_multiple_of(16) {
        match level() {
            // SAFETY: these levels mean AVX-512F and VL, AVX2 and FMA, and the second one BF16.
            Level::Avx512Bf16 if E::HALF => return unsafe { multiply_half_bf16(product) },
            // SAFETY: as above.
            Level::Avx512 | Level::Avx512Bf16 => return unsafe { multiply_half(product) },
            Level::Avx2 | Level::Portable => {}
        }
    }
    multiply_vectors(product);
}

/// [`multiply`] with eight lanes. With AVX-512, these vectors have 32 registers too.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
fn multiply_half<E: Element>(product: Product<E>) {
    // SAFETY: the attribute names AVX2 and FMA.
    unsafe { multiply_sized::<super::simd::Avx2, E, 32, false>(product) };
}

/// The same with the instructions for bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
fn multiply_half_bf16<E: Element>(product: Product<E>) {
    // SAFETY: the attribute names the features of these vectors.
    unsafe { multiply_sized::<super::simd::HalfBf16, E, 32, false>(product) };
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn multiply_body<V: Vector, E: Element, const TRANSPOSED: bool>(product: Product<E>) {
    // SAFETY: the caller's promise.
    unsafe {
        match V::REGISTERS {
            32 => multiply_sized::<V, E, 32, TRANSPOSED>(product),
            16 => multiply_sized::<V, E, 16, TRANSPOSED>(product),
            _ => multiply_sized::<V, E, 8, TRANSPOSED>(product),
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn multiply_sized<V: Vector, E: Element, const REGISTERS: usize, const TRANSPOSED: bool>(
    product: Product<E>,
) {
    let Product { rows, depth, width, a: (a, a_stride), b: (b, b_stride), c: (c, c_stride), add, ahead } =
        product;
    let groups = depth.div_ceil(E::DEPTH);
    match TRANSPOSED {
        true => check(a.len(), groups, rows * E::DEPTH, a_stride * E::DEPTH),
        false => check(a.len(), rows, groups * E::DEPTH, a_stride),
    }
    check(b.len(), groups, width * E::DEPTH, b_stride * E::DEPTH);
    check(c.len(), rows, width, c_stride);
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let operands = kernel::Operands { a, a_stride, b, b_stride, groups, c, c_stride, add, ahead: *ahead };
    // SAFETY: the operands lie within their slices by the checks above; the rest is the caller's promise.
    *ahead = unsafe { by_width::<V, E, REGISTERS, TRANSPOSED>(operands, rows, width) };
}

/// Panics if a matrix of these dimensions does not lie within `len` numbers.
fn check(len: usize, rows: usize, columns: usize, stride: usize) {
    assert!(rows == 0 || (columns <= stride && (rows - 1) * stride + columns <= len));
}

/// # Safety
/// As for [`kernel::rows`].
#[inline(always)]
unsafe fn by_width<V: Vector, E: Element, const REGISTERS: usize, const TRANSPOSED: bool>(
    o: kernel::Operands<E>,
    rows: usize,
    width: usize,
) -> Ahead {
    // SAFETY: the caller's promise.
    unsafe {
        match width / V::LANES {
            1 => kernel::rows::<V, E, REGISTERS, 1, TRANSPOSED>(o, rows),
            2 => kernel::rows::<V, E, REGISTERS, 2, TRANSPOSED>(o, rows),
            3 if REGISTERS >= 32 => kernel::rows::<V, E, REGISTERS, 3, TRANSPOSED>(o, rows),
            _ => unreachable!("a panel of {width} columns"),
        }
    }
}

#[cfg(test)]
mod tests;
