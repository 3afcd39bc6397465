//! Functions of several vectors at once, step by step: each step is done for all vectors before the next.
//!
//! A sigmoid is a chain of some twenty operations of which each waits for the one before. A processor with AVX-512 can
//! start two or more of them a cycle, but it looks ahead over only a few such chains. In this order the independent
//! operations stand together.

use super::{Element, Vector};

/// z·sigmoid(z) of each vector, as exact as the storage type needs it.
#[inline(always)]
pub fn silu_each<E: Element, V: Vector, const B: usize>(z: &[V; B]) -> [V; B] {
    let mut silu = E::sigmoid(z);
    for (silu, z) in silu.iter_mut().zip(z) {
        *silu = z.mul(*silu);
    }
    silu
}

/// silu of each vector and its derivative σ·(1 + z·(1−σ)), from one sigmoid: all silus, and all derivatives.
#[inline(always)]
pub fn silu_with_derivative_each<E: Element, V: Vector, const B: usize>(z: &[V; B]) -> ([V; B], [V; B]) {
    let mut derivative = E::sigmoid(z);
    let mut silu = derivative;
    for (silu, z) in silu.iter_mut().zip(z) {
        *silu = z.mul(*silu);
    }
    for (s, silu) in derivative.iter_mut().zip(&silu) {
        // σ + z·σ·(1−σ) = σ + silu − silu·σ
        *s = silu.neg_mul_add(*s, s.add(*silu));
    }
    (silu, derivative)
}

/// [`Vector::sigmoid`] of each vector.
#[inline(always)]
/// [`Vector::sigmoid`] of each vector.
pub fn sigmoid_each<V: Vector, const B: usize>(z: &[V; B]) -> [V; B] {
    let mut s = *z;
    if const { V::REGISTERS < 32 } {
        // Three vectors of each chain and the constants would not fit into the registers.
        for s in &mut s {
            *s = s.sigmoid();
        }
        return s;
    }
    for s in &mut s {
        *s = s.constant(0.0).sub(*s);
    }
    s = exp_each(&s);
    for s in &mut s {
        *s = s.constant(1.0).add(*s);
    }
    for s in &mut s {
        *s = s.reciprocal();
    }
    s
}

/// e^v of each vector. Relative error below 2e-7 for −87…88, clamped beyond; NaN stays NaN.
///
/// Cody and Waite's reduction to ±ln2/2 and the minimax polynomial of degree 5 with e^0 = 1 and slope 1
/// there (Remez, relative error 1.05e-7): the shortest that stays below two units in the last place.
#[inline(always)]
pub fn exp_each<V: Vector, const B: usize>(v: &[V; B]) -> [V; B] {
    let mut r = *v;
    // The order of operands matters for NaN: x86 min/max return the second operand if either is NaN.
    for r in &mut r {
        *r = r.constant(-87.0).max(*r);
    }
    for r in &mut r {
        *r = r.constant(88.0).min(*r);
    }
    let mut n = r;
    for n in &mut n {
        *n = n.mul(n.constant(std::f32::consts::LOG2_E)).round();
    }
    for part in [0.693_359_4, -2.121_944_4e-4] {
        for (r, n) in r.iter_mut().zip(&n) {
            *r = n.neg_mul_add(n.constant(part), *r);
        }
    }
    let mut p = r;
    for p in &mut p {
        *p = p.constant(8.312_51e-3);
    }
    for c in [4.189_024_5e-2, 1.666_711_6e-1, 4.999_923e-1, 1.0, 1.0] {
        for (p, r) in p.iter_mut().zip(&r) {
            *p = p.mul_add(*r, r.constant(c));
        }
    }
    for (p, n) in p.iter_mut().zip(&n) {
        *p = p.scale(*n);
    }
    p
}
