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

    /// # Safety
    /// The instruction set of `V` is present, and the slices have as many numbers as each other.
    #[inline(always)]
    unsafe fn narrow_body<V: Vector, E: Element>(from: &[f32], to: &mut [E], back: &mut [f32]) {
        for start in (0..from.len()).step_by(V::LANES) {
            let count = V::LANES.min(from.len() - start);
            // SAFETY: the caller's promise.
            unsafe {
                let v = V::load_some(from.as_ptr().add(start), count);
                E::store_some(v, to.as_mut_ptr().add(start), count, start % 3 == 0);
                let again = E::load_some::<V>(to.as_ptr().add(start), count);
                again.store_some(back.as_mut_ptr().add(start), count, false);
                let mut rounded = [0.0f32; 16];
                E::rounded(v).store(rounded.as_mut_ptr());
                for (rounded, back) in rounded.iter().zip(&back[start..start + count]) {
                    assert_eq!(rounded.to_bits(), back.to_bits(), "stored and loaded again");
                }
            }
        }
    }

    /// Rounding to nearest even, as the `half` crate does it: ties, infinities, NaN, and random bits. Numbers whose
    /// exponent is the smallest may become 0.
    #[test]
    fn bf16_is_rounded_to_nearest_even() {
        let mut bits: Vec<u32> = (0..40_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        bits.extend([
            0x3f80_8000,
            0x3f81_8000,
            0x3f80_7fff,
            0x3f80_8001,
            0x7f80_0000,
            0xff80_0000,
            0x7f7f_ffff,
        ]);
        bits.extend([0x7fff_ffff, 0x7f80_0001, 0xffff_8000, 0, 0x8000_0000]);
        let from: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let (mut to, mut back) = (vec![bf16::ONE; from.len()], vec![0.0; from.len()]);
        let check = |to: &[bf16]| {
            for (x, got) in from.iter().zip(to) {
                let expected = bf16::from_f32(*x);
                let flushed = x.abs() < f32::MIN_POSITIVE && got.to_f32() == 0.0;
                let same = got.to_bits() == expected.to_bits() || (x.is_nan() && got.is_nan());
                assert!(same || flushed, "{x:e} ({:08x}) became {got:e}, not {expected:e}", x.to_bits());
            }
        };
        narrow(&from, &mut to, &mut back);
        check(&to);
        // SAFETY: portable vectors need no features.
        unsafe { narrow_body::<Portable, bf16>(&from, &mut to, &mut back) };
        check(&to);
        #[cfg(target_arch = "x86_64")]
        if level() as u8 >= Level::Avx2 as u8 {
            // SAFETY: the processor has the features.
            unsafe { narrow_body::<Avx2, bf16>(&from, &mut to, &mut back) };
            check(&to);
        }
        #[cfg(target_arch = "x86_64")]
        if level() as u8 >= Level::Avx512 as u8 {
            // SAFETY: the processor has the features.
            unsafe { narrow_body::<Avx512, bf16>(&from, &mut to, &mut back) };
            check(&to);
        }
    }

    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn sigmoids_body<V: Vector, E: Element>(v: &[f32], out: &mut [f32], _: &E) {
        let mut lanes = [0.0f32; 16];
        for (v, out) in v.iter().zip(out) {
            // SAFETY: the caller's promise; `lanes` has room for the widest vector.
            unsafe { E::sigmoid(&[V::splat(*v), V::zero()])[0].store(lanes.as_mut_ptr()) };
            *out = lanes[V::LANES - 1];
        }
    }

    /// What is stored as bf16 may have a sigmoid of twelve bits.
    #[test]
    fn sigmoid_is_as_exact_as_each_storage_type_needs_it() {
        let v: Vec<f32> = (-86_000..=86_000).map(|i| i as f32 * 0.001).collect();
        let mut out = vec![0.0; v.len()];
        let worst = |out: &[f32]| {
            let error =
                |(v, got): (&f32, &f32)| (f64::from(*got) * (1.0 + (-f64::from(*v)).exp()) - 1.0).abs();
            // Written this way, NaN counts.
            v.iter()
                .zip(out)
                .map(error)
                .fold(0.0, |worst: f64, error| if error <= worst { worst } else { error })
        };
        sigmoids(&v, &mut out, &0.0f32);
        assert!(worst(&out) <= 4e-7, "fp32: {:e}", worst(&out));
        sigmoids(&v, &mut out, &bf16::ZERO);
        assert!(worst(&out) <= 0.5f64.powi(12), "bf16: {:e}", worst(&out));
        let (ends, mut out) = ([-1e4, -100.0, 100.0, 1e4, f32::NAN], [0.0; 5]);
        sigmoids(&ends, &mut out, &bf16::ZERO);
        let near = |got: f32, expected: f32| (got - expected).abs() <= 1e-4;
        assert!(near(out[0], 0.0) && near(out[1], 0.0) && near(out[2], 1.0) && near(out[3], 1.0), "{out:?}");
        assert!(out[4].is_nan());
    }

    dispatch! {
        fn sigmoids<E>(v: &[f32], out: &mut [f32], element: &E) => sigmoids_body;
        fn narrow<E>(from: &[f32], to: &mut [E], back: &mut [f32]) => narrow_body;
        fn functions(x: &[f32], out: &mut [[f32; 4]]) => functions_body;
        fn parts(count: usize, from: &[f32], to: &mut [f32]) -> f32 => parts_body;
        fn transpose(from: &[f32], to: &mut [f32], stride: usize) -> usize => transpose_body;
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

    /// # Safety
    /// The instruction set of `V` is present, and both slices have `V::LANES` rows of `stride` numbers.
    #[inline(always)]
    unsafe fn transpose_body<V: Vector>(from: &[f32], to: &mut [f32], stride: usize) -> usize {
        // SAFETY: the caller's promise.
        unsafe { V::transpose(from.as_ptr(), stride, to.as_mut_ptr(), stride) };
        V::LANES
    }

    #[test]
    fn a_block_is_transposed_and_nothing_else_is_written() {
        let stride = 19;
        let from: Vec<f32> = (0..16 * stride).map(|i| f32::from_bits(0x7f80_0001 + i as u32)).collect();
        let check = |run: &dyn Fn(&[f32], &mut [f32], usize) -> usize| {
            let mut to = vec![0.5; from.len()];
            let lanes = run(&from, &mut to, stride);
            for (i, to) in to.iter().enumerate() {
                let (row, column) = (i / stride, i % stride);
                let inside = row < lanes && column < lanes;
                let expected = if inside { from[column * stride + row] } else { 0.5 };
                assert_eq!(to.to_bits(), expected.to_bits(), "row {row}, column {column} of {lanes} lanes");
            }
        };
        check(&transpose);
        // SAFETY: portable vectors need no features.
        check(&|from, to, stride| unsafe { transpose_body::<Portable>(from, to, stride) });
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
