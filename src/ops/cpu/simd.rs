//! Vector code, written once and compiled for each instruction set.
//!
//! A kernel is a generic function over [`Vector`] marked `#[inline(always)]`. The macro [`dispatch!`] makes
//! one copy of it inside a `#[target_feature]` function per instruction set and picks one at run time. The
//! crate is built for the plain target; nothing relies on compiler flags. No kernel calls `f32::mul_add`: on
//! a target without FMA that is a library call, sixty times slower than the loop around it. Kernels also pass no
//! vectors to closures in hot loops: a closure has none of the instruction set's features, so each operation
//! becomes a call if the closure is not inlined.
//!
//! A vector exists only if its instruction set is present. The functions that create one are `unsafe` and require
//! this, and so is every kernel; `dispatch!` has asked the processor. A vector is then the proof for its own methods,
//! which are safe.
//!
//! Vectors of different widths add in different orders. So results are equal bit by bit on processors with the same
//! instruction set, but not across instruction sets.
//!
//! Tensors are stored as [`Element`]s: fp32 or bf16. Arithmetic is in fp32; a bf16 number is widened when it is loaded
//! and rounded to nearest even when it is stored. Products of bf16 matrices take their numbers two at a time, as
//! [`Vector::Pairs`].

mod dispatch;
mod each;
mod element;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_sfence};

pub(super) use dispatch::dispatch;
pub use dispatch::{Level, halves_are_cheaper, level};
use each::exp_each;
pub use each::{silu_each, silu_with_derivative_each};
pub use element::Element;
use half::bf16;
pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16, HalfBf16};

/// A vector of `LANES` floats. Every method is a few instructions.
pub trait Vector: Copy {
    const LANES: usize;
    /// Vector registers of the instruction set, which bounds the tile of a matrix product.
    const REGISTERS: usize;
    /// Two bf16 numbers for each lane.
    type Pairs: Copy;
    /// Vector registers that one of them takes.
    const PAIR_REGISTERS: usize;

    /// # Safety
    /// The instruction set is present.
    unsafe fn splat(value: f32) -> Self;
    /// # Safety
    /// The instruction set is present, and `from` is valid for reading `LANES` floats.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` is valid for writing `LANES` floats.
    unsafe fn store(self, to: *mut f32);
    /// The first `count` floats, zero beyond. `count` may be 0 to `LANES`.
    /// # Safety
    /// The instruction set is present, and `from` is valid for reading `count` floats.
    unsafe fn load_part(from: *const f32, count: usize) -> Self;
    /// The first `count` floats.
    /// # Safety
    /// `to` is valid for writing `count` floats.
    unsafe fn store_part(self, to: *mut f32, count: usize);
    /// # Safety
    /// The instruction set is present, and `from` is valid for reading `LANES` numbers.
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// As [`Vector::load_part`].
    /// # Safety
    /// The instruction set is present, and `from` is valid for reading `count` numbers.
    unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self;
    /// Rounds to nearest even; NaN stays NaN. Where the processor rounds by itself, numbers below 2⁻¹²⁶ become 0.
    /// # Safety
    /// `to` is valid for writing `LANES` numbers.
    unsafe fn store_bf16(self, to: *mut bf16);
    /// As [`Vector::store_bf16`], the first `count` numbers.
    /// # Safety
    /// `to` is valid for writing `count` numbers.
    unsafe fn store_bf16_part(self, to: *mut bf16, count: usize);
    /// What [`Vector::store_bf16`] would store.
    fn rounded_to_bf16(self) -> Self;
    /// Stores one number of each of `LANES` pairs, rounded: the first, and 0 as the second, or the second alone.
    /// # Safety
    /// `to` is valid for reading and writing `2·LANES` numbers.
    unsafe fn store_in_pairs(self, to: *mut bf16, second: bool);
    /// 1/(1 + e^−v) of each vector, for results that are stored as bf16: the relative error is below 2⁻¹², an eighth of what
    /// rounding to bf16 may be off by. The exact sigmoid where nothing is shorter.
    #[inline(always)]
    fn sigmoid_for_bf16<const B: usize>(v: &[Self; B]) -> [Self; B] {
        each::sigmoid_each(v)
    }
    /// Stores `LANES` pairs of both vectors' numbers, rounded.
    /// # Safety
    /// `to` is valid for writing `2·LANES` numbers.
    unsafe fn store_pairs(first: Self, second: Self, to: *mut bf16);
    /// # Safety
    /// The instruction set is present, and `from` is valid for reading `2·LANES` numbers.
    unsafe fn load_pairs(from: *const bf16) -> Self::Pairs;
    /// The same pair in each lane.
    /// # Safety
    /// The instruction set is present, and `from` is valid for reading two numbers.
    unsafe fn splat_pair(from: *const bf16) -> Self::Pairs;
    /// self + a₀·b₀ + a₁·b₁ for the pairs of each lane.
    fn add_products(self, a: Self::Pairs, b: Self::Pairs) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// self·factor + addend.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// addend − self·factor.
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    /// Nearest whole number, ties to even.
    fn round(self) -> Self;
    /// 2^self for whole numbers −126…127.
    fn power_of_two(self) -> Self;
    /// Sum of the lanes, in a fixed order.
    fn sum(self) -> f32;
    /// Transposes `LANES` rows of `LANES` numbers of 32 bits, whatever they mean; rows are `stride` numbers apart.
    /// # Safety
    /// The instruction set is present. `from` is valid for reading and `to` for writing these rows, and they do not overlap.
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize);

    /// Stores past the caches if `to` is aligned to the vector, for tensors that no cache holds until they are
    /// read: a line that is written whole need not be read first. A task calls [`fence`] after its last such store.
    /// # Safety
    /// `to` is valid for writing `LANES` floats.
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { self.store(to) }
    }

    /// [`Vector::store_bf16`] in the same way.
    /// # Safety
    /// `to` is valid for writing `LANES` numbers.
    #[inline(always)]
    unsafe fn stream_bf16(self, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { self.store_bf16(to) }
    }

    /// [`Vector::load`] if `count` is `LANES`, else [`Vector::load_part`]: a masked load is slower.
    /// # Safety
    /// As for `load_part`.
    #[inline(always)]
    unsafe fn load_some(from: *const f32, count: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { if count == Self::LANES { Self::load(from) } else { Self::load_part(from, count) } }
    }

    /// Stores the first `count` floats, whole vectors past the caches if `stream`.
    /// # Safety
    /// As for `store_part`.
    #[inline(always)]
    unsafe fn store_some(self, to: *mut f32, count: usize, stream: bool) {
        // SAFETY: the caller's promise.
        unsafe {
            match (count == Self::LANES, stream) {
                (true, true) => self.stream(to),
                (true, false) => self.store(to),
                _ => self.store_part(to, count),
            }
        }
    }

    /// self·2^exponent for whole exponents −126…127.
    #[inline(always)]
    fn scale(self, exponent: Self) -> Self {
        self.mul(exponent.power_of_two())
    }

    /// # Safety
    /// The instruction set is present.
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self::splat(0.0) }
    }

    /// A vector of one value. `self` only proves that the instruction set is present.
    #[inline(always)]
    fn constant(self, value: f32) -> Self {
        // SAFETY: a vector exists, so the instruction set is present.
        unsafe { Self::splat(value) }
    }

    /// e^self, see [`exp_each`].
    #[inline(always)]
    fn exp(self) -> Self {
        exp_each(&[self])[0]
    }

    /// 1/self, to about one unit in the last place, for normal numbers below 2^126.
    #[inline(always)]
    fn reciprocal(self) -> Self {
        self.constant(1.0).div(self)
    }

    /// 1/(1 + e^−self).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        self.constant(1.0).add(self.constant(0.0).sub(self).exp()).reciprocal()
    }

    /// self·sigmoid(self).
    #[inline(always)]
    fn silu(self) -> Self {
        self.mul(self.sigmoid())
    }

    /// silu and its derivative σ·(1 + z·(1−σ)), from one sigmoid.
    #[inline(always)]
    fn silu_with_derivative(self) -> (Self, Self) {
        let s = self.sigmoid();
        let silu = self.mul(s);
        // σ + z·σ·(1−σ) = σ + silu − silu·σ
        (silu, silu.neg_mul_add(s, s.add(silu)))
    }
}

/// Ends a task that has used [`Vector::stream`]: other threads see its stores before any later one.
#[inline(always)]
pub fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64.
    unsafe {
        _mm_sfence()
    }
}

/// Asks for a cache line that will be needed soon. Any address is allowed.
#[inline(always)]
pub fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every x86-64; a prefetch never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// As [`prefetch`], into the L2 cache only: for data that is needed a row later. In L1 it would replace the current
/// row.
#[inline(always)]
pub fn prefetch_far<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `prefetch`.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
