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

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm_sfence};
use std::sync::OnceLock;

pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// A vector of `LANES` floats. Every method is a few instructions.
pub trait Vector: Copy {
    const LANES: usize;
    /// Vector registers of the instruction set, which bounds the tile of a matrix product.
    const REGISTERS: usize;

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

    /// e^self. Relative error below 2e-7 for −87…88, clamped beyond; NaN stays NaN.
    ///
    /// Cody and Waite's reduction to ±ln2/2 and the minimax polynomial of degree 5 with e^0 = 1 and slope 1
    /// there (Remez, relative error 1.05e-7): the shortest that stays below two units in the last place.
    #[inline(always)]
    fn exp(self) -> Self {
        // The order of operands matters for NaN: x86 min/max return the second operand if either is NaN.
        let x = self.constant(88.0).min(self.constant(-87.0).max(self));
        let n = x.mul(self.constant(std::f32::consts::LOG2_E)).round();
        let r = n.neg_mul_add(self.constant(0.693_359_4), x);
        let r = n.neg_mul_add(self.constant(-2.121_944_4e-4), r);
        let mut p = self.constant(8.312_51e-3);
        for c in [4.189_024_5e-2, 1.666_711_6e-1, 4.999_923e-1, 1.0, 1.0] {
            p = p.mul_add(r, self.constant(c));
        }
        p.scale(n)
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
pub fn prefetch(address: *const f32) {
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
pub fn prefetch_far(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as for `prefetch`.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(address.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Portable,
    Avx2,
    Avx512,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "AVX2",
            Level::Avx512 => "AVX-512",
        }
    }
}

/// The best level of this processor, or the one that `EFFNET_SIMD` (portable, avx2, avx512) asks for if the processor
/// has it. CI runs the operators' tests at each level.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let best = best_level();
        let wanted = match std::env::var("EFFNET_SIMD").as_deref() {
            Ok("portable") => Level::Portable,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        if (wanted as u8) < best as u8 { wanted } else { best }
    })
}

fn best_level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if fma && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            return Level::Avx512;
        }
        if fma {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Defines `fn name(args)`, which runs the generic kernel `body::<V>(args)` compiled for the processor's
/// instruction set. The kernel must be `#[inline(always)]`. If calling it needs a promise beside the instruction set,
/// `name` must be an `unsafe fn` with this promise. The kernel may have constants: `=> body<3, 2>` runs
/// `body::<V, 3, 2>`.
///
/// ```ignore
/// dispatch! {
///     /// Adds `x` to `y`.
///     pub fn add(x: &[f32], y: &mut [f32]) => add_body;
/// }
/// ```
macro_rules! dispatch {
    () => {};
    (@ [$($head:tt)*] $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)?
        => $body:ident $(<$($constant:literal),*>)?; $($more:tt)*) => {
        $($head)* fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: the attribute names the features of these vectors; the rest is the caller's promise.
                    unsafe { $body::<$crate::ops::cpu::simd::Avx2 $($(, $constant)*)?>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512vl")]
                unsafe fn avx512($($arg: $type),*) $(-> $ret)? {
                    // SAFETY: as above.
                    unsafe { $body::<$crate::ops::cpu::simd::Avx512 $($(, $constant)*)?>($($arg),*) }
                }
                match $crate::ops::cpu::simd::level() {
                    // SAFETY: `level` has found these features on this processor; the rest is the caller's promise.
                    $crate::ops::cpu::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::ops::cpu::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::cpu::simd::Level::Portable => {}
                }
            }
            // SAFETY: portable vectors need no features; the rest is the caller's promise.
            unsafe { $body::<$crate::ops::cpu::simd::Portable $($(, $constant)*)?>($($arg),*) }
        }
        $crate::ops::cpu::simd::dispatch! { $($more)* }
    };
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        $crate::ops::cpu::simd::dispatch! { @ [$(#[$meta])* $vis] $($rest)* }
    };
    ($(#[$meta:meta])* $vis:vis unsafe fn $($rest:tt)*) => {
        $crate::ops::cpu::simd::dispatch! { @ [$(#[$meta])* $vis unsafe] $($rest)* }
    };
}
pub(super) use dispatch;

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
