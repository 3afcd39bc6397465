//! What the processor's vector units can do at most: multiply-adds whose operands and sums stay in registers.
//!
//! A product of matrices does the same and loads its operands as well. So its rate is a share of this one, and no pass is
//! faster.

use std::hint::black_box;

use half::bf16;

use super::simd::{self, Element, Level, Vector, dispatch};
use crate::ops::Precision;

/// Sums in registers at once: of 16 registers, and of 32. A multiply-add takes four or five cycles and two start in each,
/// so eight to ten are needed; the instruction for pairs takes longer.
const SUMS: [usize; 2] = [10, 20];

/// The vector instructions that the kernels use. None if they are the compiler's choice: it then takes what does not
/// change out of the loop below, products too.
pub fn instructions() -> Option<&'static str> {
    match simd::level() {
        Level::Portable => None,
        level => Some(level.name()),
    }
}

/// Runs `rounds` rounds of independent multiply-adds on one thread: of fp32 numbers or, in [`Precision::Bf16`], of pairs
/// of bf16 numbers, summed in fp32. Returns the floating-point operations: two for each product.
///
/// # Panics
/// In a precision that the CPU does not compute in.
pub fn multiply_adds(precision: Precision, rounds: u64) -> u64 {
    match precision {
        Precision::Fp32 => run(&[0.5f32; 32], rounds),
        Precision::Bf16 => run(&[bf16::from_f32(0.5); 32], rounds),
        Precision::Fp16 => panic!("the CPU does not compute in {precision}"),
    }
}

dispatch! {
    /// The factors are one operand of the widest vector; the other operand is the first of them in each lane.
    fn run<E>(factors: &[E; 32], rounds: u64) -> u64 => run_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn run_body<V: Vector, E: Element>(factors: &[E; 32], rounds: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        if V::REGISTERS >= 32 {
            add::<V, E, { SUMS[1] }>(factors, rounds)
        } else {
            add::<V, E, { SUMS[0] }>(factors, rounds)
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn add<V: Vector, E: Element, const N: usize>(factors: &[E; 32], rounds: u64) -> u64 {
    const { assert!(V::LANES * E::DEPTH <= 32) };
    // SAFETY: there are factors for all lanes; the rest is the caller's promise.
    unsafe {
        // Hidden from the compiler, which would otherwise compute with these numbers by itself.
        let factors = black_box(factors).as_ptr();
        let (a, b) = (E::columns::<V>(factors), E::splat::<V>(factors));
        // They begin differently: the compiler would make one of equal sums.
        let mut sums = [V::zero(); N];
        sums.iter_mut().enumerate().for_each(|(number, sum)| *sum = V::splat(number as f32));
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = E::multiply_add(a, b, *sum);
            }
        }
        black_box(sums.iter().fold(V::zero(), |total, sum| total.add(*sum)).sum());
    }
    rounds * (N * V::LANES * E::DEPTH * 2) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_product_counts_as_two_operations() {
        let (fp32, bf16) = (multiply_adds(Precision::Fp32, 3), multiply_adds(Precision::Bf16, 3));
        let possible = [(SUMS[0], 8), (SUMS[1], 16)].map(|(sums, lanes)| (3 * sums * lanes * 2) as u64);
        assert!(possible.contains(&fp32), "{fp32} operations, not one of {possible:?}");
        assert_eq!(bf16, 2 * fp32, "a pair is two products");
        assert_eq!(multiply_adds(Precision::Fp32, 0), 0);
    }
}
