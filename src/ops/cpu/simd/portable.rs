//! Vectors without intrinsics.

use half::bf16;

use super::Vector;

/// Eight floats, for processors that have neither AVX2 nor AVX-512.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

/// Methods that combine two vectors lane by lane.
macro_rules! lanewise {
    ($($name:ident = |$a:ident, $b:ident| $value:expr;)*) => {$(
        #[inline(always)]
        fn $name(self, other: Self) -> Self {
            Portable(std::array::from_fn(|i| {
                let ($a, $b) = (self.0[i], other.0[i]);
                $value
            }))
        }
    )*};
}

impl Vector for Portable {
    const LANES: usize = 8;
    const REGISTERS: usize = 8;
    /// The first numbers, and the second ones.
    type Pairs = [Self; 2];
    const PAIR_REGISTERS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_part(from: *const f32, count: usize) -> Self {
        // SAFETY: `i < count`, which the caller promises to be readable.
        Portable(std::array::from_fn(|i| if i < count { unsafe { *from.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, count: usize) {
        for i in 0..count.min(8) {
            // SAFETY: `i < count`, which the caller promises to be writable.
            unsafe { *to.add(i) = self.0[i] }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[bf16; 8]>().read_unaligned() }.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16_part(from: *const bf16, count: usize) -> Self {
        // SAFETY: `i < count`, which the caller promises to be readable.
        Portable(std::array::from_fn(|i| if i < count { unsafe { *from.add(i) }.to_f32() } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[bf16; 8]>().write_unaligned(self.0.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn store_bf16_part(self, to: *mut bf16, count: usize) {
        for i in 0..count.min(8) {
            // SAFETY: `i < count`, which the caller promises to be writable.
            unsafe { *to.add(i) = bf16::from_f32(self.0[i]) }
        }
    }
    #[inline(always)]
    fn rounded_to_bf16(self) -> Self {
        Portable(self.0.map(|v| bf16::from_f32(v).to_f32()))
    }
    #[inline(always)]
    unsafe fn store_in_pairs(self, to: *mut bf16, second: bool) {
        for i in 0..8 {
            // SAFETY: the caller promises 16 numbers.
            unsafe {
                *to.add(2 * i + usize::from(second)) = bf16::from_f32(self.0[i]);
                if !second {
                    *to.add(2 * i + 1) = bf16::ZERO;
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(first: Self, second: Self, to: *mut bf16) {
        // SAFETY: the caller's promise.
        unsafe {
            first.store_in_pairs(to, false);
            second.store_in_pairs(to, true);
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const bf16) -> [Self; 2] {
        // SAFETY: the caller's promise.
        let numbers = unsafe { from.cast::<[bf16; 16]>().read_unaligned() };
        [0, 1].map(|place| Portable(std::array::from_fn(|i| numbers[2 * i + place].to_f32())))
    }
    #[inline(always)]
    unsafe fn splat_pair(from: *const bf16) -> [Self; 2] {
        // SAFETY: the caller's promise.
        unsafe { [Portable([(*from).to_f32(); 8]), Portable([(*from.add(1)).to_f32(); 8])] }
    }
    #[inline(always)]
    fn add_products(self, a: [Self; 2], b: [Self; 2]) -> Self {
        a[1].mul_add(b[1], a[0].mul_add(b[0], self))
    }
    lanewise! {
        add = |a, b| a + b;
        sub = |a, b| a - b;
        mul = |a, b| a * b;
        div = |a, b| a / b;
        min = |a, b| if a < b { a } else { b };
        max = |a, b| if a > b { a } else { b };
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        self.mul(factor).add(addend)
    }
    #[inline(always)]
    fn neg_mul_add(self, factor: Self, addend: Self) -> Self {
        addend.sub(self.mul(factor))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Portable(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn round(self) -> Self {
        // The sum with 1.5·2^23 has no bits for a fraction.
        Portable(self.0.map(|v| (v + 12_582_912.0) - 12_582_912.0))
    }
    #[inline(always)]
    fn power_of_two(self) -> Self {
        Portable(self.0.map(|v| f32::from_bits(((v as i32 + 127) << 23) as u32)))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // Numbers that are pairs of bf16 are not aligned as floats, and stay bits.
        let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
        for row in 0..8 {
            for column in 0..8 {
                // SAFETY: the caller's promise.
                unsafe {
                    let number = from.wrapping_add(column * stride + row).read_unaligned();
                    to.wrapping_add(row * to_stride + column).write_unaligned(number);
                }
            }
        }
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }
}
