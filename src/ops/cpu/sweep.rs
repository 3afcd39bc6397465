//! Elementwise sweeps over slices of any length: whole vectors first, then one part of a vector.
//!
//! A kernel that is bound by memory or by its exponentials does not get slower by a bounds check per vector, so
//! these loads and stores check theirs.

use super::simd::{self, Element, Vector};

/// Elements `at..at + count`, zero beyond; `count` is at most the vector's lanes.
/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
pub unsafe fn read<V: Vector, E: Element>(from: &[E], at: usize, count: usize) -> V {
    let from = &from[at..at + count];
    // SAFETY: the slice has `count` elements; the rest is the caller's promise.
    unsafe { E::load_some(from.as_ptr(), count) }
}

/// Writes elements `at..at + count`.
#[inline(always)]
pub fn write<V: Vector, E: Element>(to: &mut [E], at: usize, count: usize, value: V) {
    let to = &mut to[at..at + count];
    // SAFETY: the slice has `count` elements.
    unsafe { E::store_some(value, to.as_mut_ptr(), count, false) }
}

/// Asks for the cache line of an element, which may lie beyond the slice.
#[inline(always)]
pub fn prefetch<E: Element>(from: &[E], at: usize) {
    simd::prefetch(from.as_ptr().wrapping_add(at));
}

/// Runs a block for each vector of `0..length`, with the vector's first index and its number of elements. The block is
/// expanded twice, so that within the loop over whole vectors this number is a constant.
macro_rules! each_vector {
    ($vector:ty, $length:expr, |$at:ident, $count:ident| $body:block) => {{
        let length: usize = $length;
        let mut $at = 0;
        while $at + <$vector>::LANES <= length {
            let $count = <$vector>::LANES;
            $body
            $at += <$vector>::LANES;
        }
        if $at < length {
            let $count = length - $at;
            $body
        }
    }};
}
pub(super) use each_vector;
