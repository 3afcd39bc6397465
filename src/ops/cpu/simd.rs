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
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_sfence};

pub(super) use dispatch::dispatch;
pub use dispatch::{Level, level};
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
    /// Stores one number of each of `LANES` pairs, rounded: the first, and 0 as the second, or the second alone.
    /// # Safety
    /// `to` is valid for reading and writing `2·LANES` numbers.
    unsafe fn store_in_pairs(self, to: *mut bf16, second: bool);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn functions_body<V: Vector>(x: &[f32], out: &mut [[f32; 4]]) {
        let mut lanes = [0.0f32; 16];
        for (x, out) in x.iter().zip(out) {
            // SAFETY: the caller's promise.
            let v = unsafe { V::splat(*x) };
            let (silu, derivative) = v.silu_with_derivative();
            for (slot, v) in out.iter_mut().zip([v.exp(), v.sigmoid(), silu, derivative]) {
                // SAFETY: `lanes` has room for the widest vector.
                unsafe { v.store(lanes.as_mut_ptr()) };
                *slot = lanes[V::LANES - 1];
            }
        }
    }

    /// # Safety
    /// The instruction set of `V` is present, and both slices are longer than any vector.
    #[inline(always)]
    unsafe fn parts_body<V: Vector>(count: usize, from: &[f32], to: &mut [f32]) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let v = V::load_part(from.as_ptr(), count.min(V::LANES));
            v.store_part(to.as_mut_ptr(), count.min(V::LANES));
            v.sum()
        }
    }

    dispatch! {
        fn functions(x: &[f32], out: &mut [[f32; 4]]) => functions_body;
        fn parts(count: usize, from: &[f32], to: &mut [f32]) -> f32 => parts_body;
    }

    fn check(run: impl Fn(&[f32], &mut [[f32; 4]])) {
        let x: Vec<f32> = (-8000..=8000).map(|i| i as f32 * 0.01).collect();
        let mut out = vec![[0.0; 4]; x.len()];
        run(&x, &mut out);
        for (&x, got) in x.iter().zip(&out) {
            let z = x as f64;
            let s = 1.0 / (1.0 + (-z).exp());
            let expected = [z.exp(), s, z * s, s * (1.0 + z * (1.0 - s))];
            // One rounding of the result and about two of the steps: 3·2^-24; derivative: absolute near 0.
            for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                let scale = if i == 3 { 1.0f64.max(z.abs()) } else { expected.abs() };
                let error = (*got as f64 - expected).abs();
                assert!(error <= 4e-7 * scale, "function {i} of {x}: {got} and {expected}");
            }
        }
        let mut nan = [[0.0; 4]];
        run(&[f32::NAN], &mut nan);
        assert!(nan[0].iter().all(|v| v.is_nan()), "NaN is not hidden: {nan:?}");
    }

    #[test]
    fn functions_are_as_exact_as_stated() {
        check(functions);
        // SAFETY: portable vectors need no features.
        check(|x, out| unsafe { functions_body::<Portable>(x, out) });
    }

    #[test]
    fn parts_touch_only_their_elements() {
        let from: Vec<f32> = (1..=32).map(|v| v as f32).collect();
        for count in 0..=8 {
            let mut to = vec![-1.0; 32];
            assert_eq!(parts(count, &from, &mut to), (count * (count + 1) / 2) as f32);
            assert_eq!(to[..count], from[..count]);
            assert!(to[count..].iter().all(|&v| v == -1.0));
        }
    }
}
