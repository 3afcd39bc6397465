//! Vectors of AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::Vector;

/// The methods that have the same form in both instruction sets, by their intrinsics.
macro_rules! same_form {
    ($($name:ident($($operand:ident),*) = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        fn $name(self $(, $operand: Self)*) -> Self {
            // SAFETY: a vector exists, so the instruction set is present.
            unsafe { Self($intrinsic(self.0 $(, $operand.0)*)) }
        }
    )*};
}

#[derive(Clone, Copy)]
pub struct Avx2(__m256);

// SAFETY (every block below): AVX2 and FMA are present, by the contract of the functions that create a vector and, in
// the other methods, because a vector exists. Pointers are valid by each method's contract.
impl Vector for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Avx2(_mm256_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        unsafe { Avx2(_mm256_maskload_ps(from, avx2_mask(count))) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        unsafe { _mm256_maskstore_ps(to, avx2_mask(count), self.0) }
    }
    same_form! {
        add(other) = _mm256_add_ps;
        sub(other) = _mm256_sub_ps;
        mul(other) = _mm256_mul_ps;
        div(other) = _mm256_div_ps;
        mul_add(factor, addend) = _mm256_fmadd_ps;
        neg_mul_add(factor, addend) = _mm256_fnmadd_ps;
        min(other) = _mm256_min_ps;
        max(other) = _mm256_max_ps;
        sqrt() = _mm256_sqrt_ps;
    }
    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Avx2(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Avx2(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        unsafe {
            if (to as usize).is_multiple_of(32) { _mm256_stream_ps(to, self.0) } else { self.store(to) }
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }
}

/// A mask of `count` leading lanes.
/// # Safety
/// AVX2 is present.
#[inline(always)]
unsafe fn avx2_mask(count: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(count as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY (every block below): as for `Avx2`, with AVX-512F.
impl Vector for Avx512 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        unsafe { Avx512(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { Avx512(_mm512_loadu_ps(from)) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        unsafe { Avx512(_mm512_maskz_loadu_ps(((1u32 << count) - 1) as __mmask16, from)) }
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << count) - 1) as __mmask16, self.0) }
    }
    same_form! {
        add(other) = _mm512_add_ps;
        sub(other) = _mm512_sub_ps;
        mul(other) = _mm512_mul_ps;
        div(other) = _mm512_div_ps;
        mul_add(factor, addend) = _mm512_fmadd_ps;
        neg_mul_add(factor, addend) = _mm512_fnmadd_ps;
        min(other) = _mm512_min_ps;
        max(other) = _mm512_max_ps;
        sqrt() = _mm512_sqrt_ps;
    }
    #[inline(always)]
    fn round(self) -> Self {
        unsafe { Avx512(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    /// The processor's 14 bits and one step of Newton's: a division would take as long as the whole `exp`.
    #[inline(always)]
    fn reciprocal(self) -> Self {
        unsafe {
            let r = _mm512_rcp14_ps(self.0);
            let error = _mm512_fnmadd_ps(self.0, r, _mm512_set1_ps(1.0));
            Avx512(_mm512_fmadd_ps(r, error, r))
        }
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        unsafe { Avx512(_mm512_scalef_ps(_mm512_set1_ps(1.0), self.0)) }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn stream(self, to: *mut f32) {
        unsafe {
            if (to as usize).is_multiple_of(64) { _mm512_stream_ps(to, self.0) } else { self.store(to) }
        }
    }
    #[inline(always)]
    fn scale(self, exponent: Self) -> Self {
        unsafe { Avx512(_mm512_scalef_ps(self.0, exponent.0)) }
    }
}
