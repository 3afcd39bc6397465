//! Sixteen floats: AVX-512.

use std::arch::x86_64::*;

use half::bf16;

use crate::ops::cpu::simd::Vector;

/// The methods of vectors of sixteen floats, but for those that round to bf16 and those about pairs.
macro_rules! sixteen_lanes {
    () => {
        const LANES: usize = 16;
        const REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Self(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Self(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn load_part(from: *const f32, count: usize) -> Self {
            unsafe { Self(_mm512_maskz_loadu_ps(first_lanes(count), from)) }
        }
        #[inline(always)]
        unsafe fn store_part(self, to: *mut f32, count: usize) {
            unsafe { _mm512_mask_storeu_ps(to, first_lanes(count), self.0) }
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
            unsafe { Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
        }
        /// The processor's 14 bits and one step of Newton's: a division would take as long as the whole `exp`.
        #[inline(always)]
        fn reciprocal(self) -> Self {
            unsafe {
                let r = _mm512_rcp14_ps(self.0);
                let error = _mm512_fnmadd_ps(self.0, r, _mm512_set1_ps(1.0));
                Self(_mm512_fmadd_ps(r, error, r))
            }
        }
        #[inline(always)]
        fn power_of_two(self) -> Self {
            unsafe { Self(_mm512_scalef_ps(_mm512_set1_ps(1.0), self.0)) }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
        #[inline(always)]
        unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
            unsafe { transpose_512(from, stride, to, to_stride) }
        }
        #[inline(always)]
        unsafe fn stream(self, to: *mut f32) {
            unsafe {
                if (to as usize).is_multiple_of(64) { _mm512_stream_ps(to, self.0) } else { self.store(to) }
            }
        }
        #[inline(always)]
        fn scale(self, exponent: Self) -> Self {
            unsafe { Self(_mm512_scalef_ps(self.0, exponent.0)) }
        }

        #[inline(always)]
        unsafe fn load_bf16(from: *const bf16) -> Self {
            unsafe { Self(widen_512(_mm256_loadu_si256(from.cast()))) }
        }
        #[inline(always)]
        unsafe fn store_bf16(self, to: *mut bf16) {
            unsafe { _mm256_storeu_si256(to.cast(), self.narrow()) }
        }
        #[inline(always)]
        unsafe fn stream_bf16(self, to: *mut bf16) {
            unsafe {
                if (to as usize).is_multiple_of(32) {
                    _mm256_stream_si256(to.cast(), self.narrow())
                } else {
                    self.store_bf16(to)
                }
            }
        }
        #[inline(always)]
        fn rounded_to_bf16(self) -> Self {
            unsafe { Self(widen_512(self.narrow())) }
        }
        #[inline(always)]
        unsafe fn store_in_pairs(self, to: *mut bf16, second: bool) {
            unsafe {
                let (numbers, to) = (_mm512_cvtepu16_epi32(self.narrow()), to.cast());
                let pairs = match second {
                    false => numbers,
                    true => _mm512_or_si512(_mm512_loadu_si512(to), _mm512_slli_epi32::<16>(numbers)),
                };
                _mm512_storeu_si512(to.cast(), pairs);
            }
        }
    };
}

/// Vectors of sixteen floats.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

// SAFETY (every block below, and in the macro above): as for `Avx2`, with AVX-512F and VL.
impl Vector for Avx512 {
    sixteen_lanes!();
    /// The first numbers, and the second ones.
    type Pairs = [__m512; 2];
    const PAIR_REGISTERS: usize = 2;

    #[inline(always)]
    unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self {
        let mut numbers = [bf16::ZERO; 16];
        unsafe {
            std::ptr::copy_nonoverlapping(from, numbers.as_mut_ptr(), count);
            Self::load_bf16(numbers.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_bf16_part(self, to: *mut bf16, count: usize) {
        unsafe {
            let numbers = _mm512_cvtepu16_epi32(self.narrow());
            _mm512_mask_cvtepi32_storeu_epi16(to.cast(), first_lanes(count), numbers)
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(first: Self, second: Self, to: *mut bf16) {
        unsafe {
            let [first, second] = [first, second].map(|v| _mm512_cvtepu16_epi32(v.narrow()));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(first, _mm512_slli_epi32::<16>(second)));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> [__m512; 2] {
        unsafe { split_512(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const bf16) -> [__m512; 2] {
        unsafe { split_512(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn add_products(self, a: [__m512; 2], b: [__m512; 2]) -> Self {
        unsafe { Self(_mm512_fmadd_ps(a[1], b[1], _mm512_fmadd_ps(a[0], b[0], self.0))) }
    }
}

impl Avx512 {
    /// As [`narrow_256`].
    #[inline(always)]
    fn narrow(self) -> __m256i {
        // SAFETY: a vector exists, so the instruction set is present.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet)))
        }
    }
}

/// Vectors of sixteen floats with the instructions for bf16.
#[derive(Clone, Copy)]
pub struct Avx512Bf16(__m512);

// SAFETY (every block below): as for `Avx512`, with AVX-512 BF16, BW and DQ.
impl Vector for Avx512Bf16 {
    sixteen_lanes!();
    type Pairs = __m512bh;
    const PAIR_REGISTERS: usize = 1;

    /// 2^y is 2^⌊y⌋ times a polynomial of degree 3 of the rest (Remez, relative error 7.5e-5); the reciprocal has 14 bits.
    #[inline(always)]
    fn sigmoid_for_bf16<const B: usize>(v: &[Self; B]) -> [Self; B] {
        let mut s = *v;
        // SAFETY: vectors exist, so the instruction set is present.
        unsafe {
            let constant = |value| _mm512_set1_ps(value);
            for s in &mut s {
                s.0 = _mm512_mul_ps(s.0, constant(-std::f32::consts::LOG2_E));
            }
            let mut rest = s;
            for rest in &mut rest {
                rest.0 = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(rest.0);
            }
            let mut p = rest;
            for p in &mut p {
                p.0 = _mm512_fmadd_ps(p.0, constant(0.078_024_55), constant(0.226_067_19));
            }
            for c in [0.695_833_5, 0.999_925_2] {
                for (p, rest) in p.iter_mut().zip(&rest) {
                    p.0 = _mm512_fmadd_ps(p.0, rest.0, constant(c));
                }
            }
            for (s, p) in s.iter_mut().zip(&p) {
                s.0 = _mm512_add_ps(_mm512_scalef_ps(p.0, s.0), constant(1.0));
            }
            for s in &mut s {
                s.0 = _mm512_rcp14_ps(s.0);
            }
        }
        s
    }
    #[inline(always)]
    unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self {
        unsafe { Self(widen_512(_mm256_maskz_loadu_epi16(first_lanes(count), from.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_bf16_part(self, to: *mut bf16, count: usize) {
        unsafe { _mm256_mask_storeu_epi16(to.cast(), first_lanes(count), self.narrow()) }
    }
    #[inline(always)]
    unsafe fn store_pairs(first: Self, second: Self, to: *mut bf16) {
        unsafe {
            // All first numbers, then all second ones; a permutation brings each pair together.
            let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second.0, first.0));
            _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(alternating(), rounded));
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> __m512bh {
        unsafe { std::mem::transmute(_mm512_loadu_si512(from.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const bf16) -> __m512bh {
        unsafe { std::mem::transmute(_mm512_set1_epi32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    fn add_products(self, a: __m512bh, b: __m512bh) -> Self {
        unsafe { Self(_mm512_dpbf16_ps(self.0, a, b)) }
    }
}

impl Avx512Bf16 {
    #[inline(always)]
    fn narrow(self) -> __m256i {
        // SAFETY: a vector exists, so the instruction set is present.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(self.0)) }
    }
}

/// A mask of `count` leading lanes, of at most sixteen.
#[inline(always)]
fn first_lanes(count: usize) -> __mmask16 {
    ((1u32 << count) - 1) as __mmask16
}

/// The indices 0, 16, 1, 17, .. 15, 31.
/// # Safety
/// AVX-512F is present.
#[inline(always)]
unsafe fn alternating() -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_or_si512(first, _mm512_slli_epi32::<16>(_mm512_add_epi32(first, _mm512_set1_epi32(16))))
    }
}

/// bf16 numbers as floats.
/// # Safety
/// AVX-512F is present.
#[inline(always)]
unsafe fn widen_512(numbers: __m256i) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(numbers))) }
}

/// As [`split_256`].
/// # Safety
/// AVX-512F is present.
#[inline(always)]
unsafe fn split_512(pairs: __m512i) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
    }
}

/// [`Vector::transpose`]: pairs of rows, then of pairs, then the quarters of vectors.
/// # Safety
/// AVX-512F is present; otherwise as for the method.
#[inline(always)]
unsafe fn transpose_512(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut rows = [_mm512_setzero_ps(); 16];
        for i in 0..16 {
            rows[i] = _mm512_loadu_ps(from.wrapping_add(i * stride));
        }
        let mut pairs = [_mm512_setzero_pd(); 16];
        for i in 0..8 {
            let (first, second) = (rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i] = _mm512_castps_pd(_mm512_unpacklo_ps(first, second));
            pairs[2 * i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(first, second));
        }
        // Of four rows: each quarter of a vector has one column, four columns apart.
        let mut fours = rows;
        for i in [0, 4, 8, 12] {
            for c in [0, 1] {
                let (first, second) = (pairs[i + c], pairs[i + c + 2]);
                fours[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
                fours[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
            }
        }
        for c in 0..4 {
            // The quarters 0 and 2, and 1 and 3, of the first and of the last eight rows.
            let even = [0, 8].map(|i| _mm512_shuffle_f32x4::<0x88>(fours[i + c], fours[i + c + 4]));
            let odd = [0, 8].map(|i| _mm512_shuffle_f32x4::<0xdd>(fours[i + c], fours[i + c + 4]));
            for (first, [a, b]) in [(0, even), (4, odd)] {
                let low = _mm512_shuffle_f32x4::<0x88>(a, b);
                let high = _mm512_shuffle_f32x4::<0xdd>(a, b);
                _mm512_storeu_ps(to.wrapping_add((first + c) * to_stride), low);
                _mm512_storeu_ps(to.wrapping_add((first + c + 8) * to_stride), high);
            }
        }
    }
}
