//! Each level's functions against their definitions.

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
    bits.extend([0x3f80_8000, 0x3f81_8000, 0x3f80_7fff, 0x3f80_8001, 0x7f80_0000, 0xff80_0000, 0x7f7f_ffff]);
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
        let error = |(v, got): (&f32, &f32)| (f64::from(*got) * (1.0 + (-f64::from(*v)).exp()) - 1.0).abs();
        // Written this way, NaN counts.
        v.iter().zip(out).map(error).fold(0.0, |worst: f64, error| if error <= worst { worst } else { error })
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
    let check = |lanes: usize, to: &[f32]| {
        for (i, to) in to.iter().enumerate() {
            let (row, column) = (i / stride, i % stride);
            let inside = row < lanes && column < lanes;
            let expected = if inside { from[column * stride + row] } else { 0.5 };
            assert_eq!(to.to_bits(), expected.to_bits(), "row {row}, column {column} of {lanes} lanes");
        }
    };
    let mut to = vec![0.5; from.len()];
    let lanes = transpose(&from, &mut to, stride);
    check(lanes, &to);
    to.fill(0.5);
    // SAFETY: portable vectors need no features.
    let lanes = unsafe { transpose_body::<Portable>(&from, &mut to, stride) };
    check(lanes, &to);
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
