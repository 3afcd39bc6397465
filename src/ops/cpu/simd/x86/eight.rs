//! Eight floats: AVX2.

use std::arch::x86_64::*;

use half::bf16;

use crate::ops::cpu::simd::Vector;

/// The methods of vectors of eight floats, but for those about pairs.
macro_rules! eight_lanes {
    () => {
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm256_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            unsafe { Self(_mm256_maskload_ps(from, avx2_mask(count))) }
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
            unsafe { Self(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
            }
        }
        #[inline(always)]
        unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
            unsafe { transpose_256(from, stride, to, to_stride) }
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
        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            unsafe { Self(widen_256(_mm_loadu_si128(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self {
            let mut numbers = [bf16::ZERO; 8];
            unsafe {
                std::ptr::copy_nonoverlapping(from, numbers.as_mut_ptr(), count);
                Self::load_bf16(numbers.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut bf16) {
            unsafe { _mm_storeu_si128(to.cast(), narrow_256(self.0)) }
        }
        #[inline(always)]
        unsafe fn store_bf16_part(self, to: *mut bf16, count: usize) {
            let mut numbers = [bf16::ZERO; 8];
            unsafe {
                self.store_bf16(numbers.as_mut_ptr());
                std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, count);
            }
        }
        #[inline(always)]
        fn rounded_to_bf16(self) -> Self {
            unsafe { Self(widen_256(narrow_256(self.0))) }
        }
        #[inline(always)]
        unsafe fn store_in_pairs(self, to: *mut bf16, second: bool) {
            unsafe {
                let (numbers, to) = (_mm256_cvtepu16_epi32(narrow_256(self.0)), to.cast());
                let pairs = match second {
                    false => numbers,
                    true => _mm256_or_si256(_mm256_loadu_si256(to), _mm256_slli_epi32::<16>(numbers)),
                };
                _mm256_storeu_si256(to, pairs);
            }
        }
        #[inline(always)]
        unsafe fn store_pairs(first: Self, second: Self, to: *mut bf16) {
            unsafe {
                let [first, second] = [first, second].map(|v| _mm256_cvtepu16_epi32(narrow_256(v.0)));
                _mm256_storeu_si256(to.cast(), _mm256_or_si256(first, _mm256_slli_epi32::<16>(second)));
            }
        }
        #[inline(always)]
        unsafe fn stream_bf16(self, to: *mut bf16) {
            unsafe {
                if (to as usize).is_multiple_of(16) {
                    _mm_stream_si128(to.cast(), narrow_256(self.0))
                } else {
                    self.store_bf16(to)
                }
            }
        }
    };
}

/// Vectors of eight floats.
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

// SAFETY (every block below, and in the macro above): AVX2 and FMA are present, by the contract of the functions that
// create a vector and, in the other methods, because a vector exists. Pointers are valid by each method's contract.
impl Vector for Avx2 {
    eight_lanes!();
    const REGISTERS: usize = 16;
    /// The first numbers, and the second ones.
    type Pairs = [__m256; 2];
    const PAIR_REGISTERS: usize = 2;

    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> [__m256; 2] {
        unsafe { split_256(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const bf16) -> [__m256; 2] {
        unsafe { split_256(_mm256_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn add_products(self, a: [__m256; 2], b: [__m256; 2]) -> Self {
        unsafe { Self(_mm256_fmadd_ps(a[1], b[1], _mm256_fmadd_ps(a[0], b[0], self.0))) }
    }
}

/// Vectors of eight floats with the instructions for pairs, and with all registers of AVX-512: for the columns of a
/// product that fill half of a wider vector.
#[derive(Clone, Copy)]
pub struct HalfBf16(__m256);

// SAFETY (every block below): as for `Avx2`, with AVX-512 BF16 and VL.
impl Vector for HalfBf16 {
    eight_lanes!();
    const REGISTERS: usize = 32;
    type Pairs = __m256bh;
    const PAIR_REGISTERS: usize = 1;

    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> __m256bh {
        unsafe { std::mem::transmute(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const bf16) -> __m256bh {
        unsafe { std::mem::transmute(_mm256_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn add_products(self, a: __m256bh, b: __m256bh) -> Self {
        unsafe { Self(_mm256_dpbf16_ps(self.0, a, b)) }
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

/// bf16 numbers as floats.
/// # Safety
/// AVX2 is present.
#[inline(always)]
unsafe fn widen_256(numbers: __m128i) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(numbers))) }
}

/// Rounded to bf16, nearest even. A NaN becomes a quiet one: rounding its bits up could make them infinity.
/// # Safety
/// AVX2 is present.
#[inline(always)]
unsafe fn narrow_256(values: __m256) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(values);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(values, values));
        let numbers = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan));
        let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(numbers, numbers));
        _mm256_castsi256_si128(packed)
    }
}

/// The first and the second numbers of pairs.
/// # Safety
/// AVX2 is present.
#[inline(always)]
unsafe fn split_256(pairs: __m256i) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let second = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs)), _mm256_castsi256_ps(second)]
    }
}

/// [`Vector::transpose`]: pairs of rows, then of pairs, then the halves of vectors.
/// # Safety
/// AVX2 is present; otherwise as for the method.
#[inline(always)]
unsafe fn transpose_256(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm256_setzero_ps(); 8];
        for i in 0..8 {
            rows[i] = _mm256_loadu_ps(from.wrapping_add(i * stride));
        }
        let mut pairs = rows;
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        let pairs = pairs.map(|v| _mm256_castps_pd(v));
        // Of four rows: each half of a vector has one column, four columns apart.
        let mut fours = rows;
        for i in [0, 4] {
            for c in [0, 1] {
                let (first, second) = (pairs[i + c], pairs[i + c + 2]);
                fours[i + 2 * c] = _mm256_castpd_ps(_mm256_unpacklo_pd(first, second));
                fours[i + 2 * c + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(first, second));
            }
        }
        for c in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(fours[c], fours[c + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(fours[c], fours[c + 4]);
            _mm256_storeu_ps(to.wrapping_add(c * to_stride), low);
            _mm256_storeu_ps(to.wrapping_add((c + 4) * to_stride), high);
        }
    }
}
