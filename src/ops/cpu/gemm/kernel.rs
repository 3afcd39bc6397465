//! The register tile: a few rows times one, two or three vectors of columns, summed over the whole depth.
//!
//! A tile's accumulators stay in registers. A step of the depth (one of fp32, two of bf16) loads one row of B (`W`
//! vectors) and multiplies it by one element of A per row, broadcast from memory. So A needs no packing, in either
//! orientation. The number of accumulators hides the latency of the multiply-add (4 cycles at one 512-bit or
//! two 256-bit ones a cycle), the shape needs less than one load per multiply-add.
//!
//! Each element is *one* chain of multiply-adds over the depth, in every tile, and a product that is added to
//! a stored C continues the chain exactly. So a row's result depends neither on the number of rows
//! that are computed together nor on how the depth was cut.

// Plain indices into arrays of registers: iterators with closures may become calls (see `simd`).
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use crate::ops::cpu::context::part_of;
use crate::ops::cpu::simd::{Element, Vector, prefetch};

/// Rows of the tile that fills the registers with `width` vectors of columns, if an operand takes `each` registers.
const fn tile_rows(registers: usize, width: usize, each: usize) -> usize {
    match (registers, width) {
        (32, 3) if each == 2 => 7,
        (16, 2) if each == 2 => 4,
        (16, _) if each == 2 => 10,
        (32, 3) => 8,
        (32, _) => 12,
        // Twelve accumulators leave one register free; 4 by 3 leaves none, and the compiler spills.
        (16, 2) => 6,
        (16, _) => 12,
        (_, 1) => 4,
        (_, _) => 2,
    }
}

/// Registers of an operand.
const fn operand_registers<V: Vector, E: Element>() -> usize {
    if E::HALF { V::PAIR_REGISTERS } else { 1 }
}

/// The operands of a product, see [`super::Product`].
#[derive(Clone, Copy)]
pub struct Operands<E> {
    pub a: *const E,
    pub a_stride: usize,
    pub b: *const E,
    pub b_stride: usize,
    /// Steps of the depth, of [`Element::DEPTH`] each.
    pub groups: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    pub add: bool,
    pub ahead: Ahead,
}

/// What to prefetch during a product: one cache line per step of the depth. The products of one tile take about as long
/// as loading the next tile's data from memory. Loads between multiply-adds cost nothing. Loading all lines at once
/// would wait, since a core can have only a few misses in flight.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    next: *const u8,
    /// Lines.
    left: usize,
}

impl Ahead {
    /// Prefetches nothing.
    pub const fn none() -> Ahead {
        Ahead { next: std::ptr::null(), left: 0 }
    }

    /// Part of a tensor, if the tensor is so large that it comes from memory. For a tensor in a cache, prefetches
    /// cost more than they gain.
    pub fn new<E: Element>(tensor: &[E], part: Range<usize>) -> Ahead {
        if size_of_val(tensor) < MEMORY {
            return Ahead::none();
        }
        let data = &tensor[part];
        Ahead { next: data.as_ptr().cast(), left: size_of_val(data) / LINE }
    }

    /// After a product that took this many steps.
    pub fn skip(&mut self, steps: usize) {
        let steps = steps.min(self.left);
        self.left -= steps;
        self.next = self.next.wrapping_add(steps * LINE);
    }
}

/// Bytes of a tensor that is in no cache.
const MEMORY: usize = 8 << 20;
/// Bytes of a cache line.
const LINE: usize = 64;

/// C[rows, W vectors] from A[rows, depth], or from A[depth, rows] if `TRANSPOSED`, and B[depth, W vectors], where the
/// depth's rows are interleaved.
///
/// `REGISTERS` may exceed `V::REGISTERS`: AVX-512 doubles the registers of 256-bit vectors too.
///
/// Returns what is left to prefetch.
///
/// # Safety
/// The instruction set of `V` is present. The operands are valid for these shapes, and C overlaps neither A nor B.
#[inline(always)]
pub unsafe fn rows<V: Vector, E: Element, const REGISTERS: usize, const W: usize, const TRANSPOSED: bool>(
    mut o: Operands<E>,
    rows: usize,
) -> Ahead {
    let most = const { tile_rows(REGISTERS, W, operand_registers::<V, E>()) };
    let tiles = rows.div_ceil(most);
    for number in 0..tiles {
        // Nearly equal tiles: 32 rows are 11 + 11 + 10, not 12 + 12 + 8.
        let count = part_of(rows, tiles, number).len();
        // SAFETY: the caller's promise; the tile's rows are among `rows`.
        unsafe {
            if o.ahead.left > 0 {
                tile_of::<V, E, REGISTERS, W, TRANSPOSED, true>(o, count);
                o.ahead.skip(o.groups);
            } else {
                tile_of::<V, E, REGISTERS, W, TRANSPOSED, false>(o, count);
            }
            o.a = o.a.add(count * if TRANSPOSED { E::DEPTH } else { o.a_stride });
            o.c = o.c.add(count * o.c_stride);
        }
    }
    o.ahead
}

/// # Safety
/// As for [`rows`], with no more rows than a tile has.
#[inline(always)]
unsafe fn tile_of<
    V: Vector,
    E: Element,
    const REGISTERS: usize,
    const W: usize,
    const TRANSPOSED: bool,
    const AHEAD: bool,
>(
    o: Operands<E>,
    rows: usize,
) {
    let most = const { tile_rows(REGISTERS, W, operand_registers::<V, E>()) };
    // SAFETY: the caller's promise.
    unsafe {
        match rows {
            1 => tile::<V, E, 1, W, TRANSPOSED, AHEAD>(o),
            2 if most >= 2 => tile::<V, E, 2, W, TRANSPOSED, AHEAD>(o),
            3 if most >= 3 => tile::<V, E, 3, W, TRANSPOSED, AHEAD>(o),
            4 if most >= 4 => tile::<V, E, 4, W, TRANSPOSED, AHEAD>(o),
            5 if most >= 5 => tile::<V, E, 5, W, TRANSPOSED, AHEAD>(o),
            6 if most >= 6 => tile::<V, E, 6, W, TRANSPOSED, AHEAD>(o),
            7 if most >= 7 => tile::<V, E, 7, W, TRANSPOSED, AHEAD>(o),
            8 if most >= 8 => tile::<V, E, 8, W, TRANSPOSED, AHEAD>(o),
            9 if most >= 9 => tile::<V, E, 9, W, TRANSPOSED, AHEAD>(o),
            10 if most >= 10 => tile::<V, E, 10, W, TRANSPOSED, AHEAD>(o),
            11 if most >= 11 => tile::<V, E, 11, W, TRANSPOSED, AHEAD>(o),
            _ if most >= 12 => tile::<V, E, 12, W, TRANSPOSED, AHEAD>(o),
            _ => unreachable!("a tile has at most {most} rows"),
        }
    }
}

/// # Safety
/// As for [`rows`], with R rows.
#[inline(always)]
unsafe fn tile<
    V: Vector,
    E: Element,
    const R: usize,
    const W: usize,
    const TRANSPOSED: bool,
    const AHEAD: bool,
>(
    o: Operands<E>,
) {
    let (row, step) = if TRANSPOSED { (E::DEPTH, E::DEPTH * o.a_stride) } else { (o.a_stride, E::DEPTH) };
    let (mut a, mut b) = (o.a, o.b);
    let mut ahead = o.ahead.next;
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[V::zero(); W]; R];
        if o.add {
            for i in 0..R {
                for j in 0..W {
                    sums[i][j] = V::load(o.c.add(i * o.c_stride + j * V::LANES));
                }
            }
        }
        for _ in 0..o.groups {
            let mut columns = [E::columns::<V>(b); W];
            for j in 1..W {
                columns[j] = E::columns::<V>(b.add(j * V::LANES * E::DEPTH));
            }
            for i in 0..R {
                let element = E::splat::<V>(a.add(i * row));
                for j in 0..W {
                    sums[i][j] = E::multiply_add(element, columns[j], sums[i][j]);
                }
            }
            a = a.add(step);
            b = b.add(o.b_stride * E::DEPTH);
            if AHEAD {
                prefetch(ahead);
                ahead = ahead.wrapping_add(LINE);
            }
        }
        for i in 0..R {
            for j in 0..W {
                sums[i][j].store(o.c.add(i * o.c_stride + j * V::LANES));
            }
        }
    }
}
