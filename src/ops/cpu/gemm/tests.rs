use half::bf16;

use super::super::simd::Portable;
use super::super::{CpuDevice, CpuOps};
use super::*;
use crate::ops::StateSize;

/// Values whose products and sums of 50 are not exact in fp32.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn panels_of<V: Vector>(columns: usize) -> Panels {
    Panels::with(columns, V::LANES, V::REGISTERS)
}

fn close(got: f32, expected: f64, size: f64, what: &str) {
    let error = (got as f64 - expected).abs();
    assert!(error <= size, "{what}: {got} and {expected}");
}

/// Interleaves the rows of a matrix.
fn interleaved<E: Element>(rows: &[E], columns: usize) -> Vec<E> {
    let mut out = vec![E::zeroed(); depth::<E>(rows.len() / columns) * columns];
    for (row, from) in rows.chunks_exact(columns).enumerate() {
        let group = &mut out[row / E::DEPTH * E::DEPTH * columns..];
        for (to, from) in group.chunks_exact_mut(E::DEPTH).zip(from) {
            to[row % E::DEPTH] = *from;
        }
    }
    out
}

/// C = A·B and C = Aᵀ·B of every panel against double loops; the depth in one piece and in two.
/// # Safety
/// The instruction set of `V` is present.
unsafe fn check_products<V: Vector, E: Element>(m: usize, n: usize, k: usize) {
    let stored = |values: Vec<f32>| values.into_iter().map(E::from_f32).collect::<Vec<E>>();
    let (a, b) = (stored(values(m * k, 1)), stored(values(k * n, 2)));
    let a_columns: Vec<E> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
    let a_columns = interleaved(&a_columns, m);
    let whole_depth = depth::<E>(k);
    let mut a_rows = vec![E::zeroed(); m * whole_depth];
    a_rows
        .chunks_exact_mut(whole_depth)
        .zip(a.chunks_exact(k))
        .for_each(|(to, from)| to[..k].copy_from_slice(from));
    for panel in (0..panels_of::<V>(n).count()).map(|p| panels_of::<V>(n).panel(p)) {
        let mut rows = vec![E::zeroed(); k * panel.width];
        for (i, row) in rows.chunks_exact_mut(panel.width).enumerate() {
            let from = i * n + panel.first;
            row[..panel.columns].copy_from_slice(&b[from..from + panel.columns]);
        }
        let packed = interleaved(&rows, panel.width);
        let stride = panel.width + 3;
        // The product over a part of the depth.
        let multiply = |c: &mut [f32], part: Range<usize>, add: bool, ahead: &mut Ahead| {
            let product = Product {
                rows: m,
                depth: part.len(),
                width: panel.width,
                a: (&a_rows[part.start..], whole_depth),
                b: (&packed[part.start * panel.width..], panel.width),
                c: (c, stride),
                add,
                ahead,
            };
            // SAFETY: the caller's promise.
            unsafe { multiply_body::<V, E, false>(product) };
        };
        let mut whole = vec![f32::NAN; m * stride];
        multiply(&mut whole, 0..k, false, &mut Ahead::new(&a, 0..a.len()));
        let (mut pieces, half) = (vec![f32::NAN; m * stride], depth::<E>(k / 2));
        multiply(&mut pieces, 0..half, false, &mut Ahead::none());
        multiply(&mut pieces, half..k, true, &mut Ahead::none());
        let mut transposed = vec![f32::NAN; m * stride];
        let product = Product {
            rows: m,
            depth: k,
            width: panel.width,
            a: (&a_columns, m),
            b: (&packed, panel.width),
            c: (&mut transposed, stride),
            add: false,
            ahead: &mut Ahead::none(),
        };
        // SAFETY: the caller's promise.
        unsafe { multiply_body::<V, E, true>(product) };
        for i in 0..m {
            for j in 0..panel.columns {
                let number = |value: E| f64::from(value.to_f32());
                let terms = (0..k).map(|t| number(a[i * k + t]) * number(b[t * n + panel.first + j]));
                let got = whole[i * stride + j];
                // Each of the k steps rounds a sum no larger than this (without FMA, its product too).
                let size = (k + 1) as f64 * 6e-8 * terms.clone().map(f64::abs).sum::<f64>();
                close(got, terms.sum(), size, &format!("{m}x{n}x{k}, element {i},{j}"));
                assert_eq!(got, pieces[i * stride + j], "the depth's cut changes nothing");
                assert_eq!(got, transposed[i * stride + j], "nor does the orientation");
            }
            assert!(i + 1 == m || whole[i * stride + panel.width].is_nan(), "padding is not touched");
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
unsafe fn check_all<V: Vector>() {
    for m in [1, 2, 3, 5, 7, 11, 12, 13, 23, 25, 40] {
        for n in [1, 7, 8, 16, 17, 24, 40, 48, 70] {
            for k in [1, 2, 9, 50] {
                // SAFETY: the caller's promise.
                unsafe {
                    check_products::<V, f32>(m, n, k);
                    check_products::<V, half::bf16>(m, n, k);
                }
            }
        }
    }
}

#[test]
fn products_are_those_of_the_definition() {
    // SAFETY: portable vectors need no features.
    unsafe { check_all::<Portable>() };
    #[cfg(target_arch = "x86_64")]
    {
        use super::super::simd::{Avx2, Avx512, Avx512Bf16, HalfBf16};
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the features.
            unsafe { check_all::<Avx2>() };
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: as above.
            unsafe { check_all::<Avx512>() };
        }
        if level() == Level::Avx512Bf16 {
            // SAFETY: as above.
            unsafe {
                check_all::<Avx512Bf16>();
                check_all::<HalfBf16>();
            }
        }
    }
}

#[test]
fn product_rows_do_not_depend_on_their_neighbours() {
    let depth = 33;
    let width = Panels::new(32).panel(0).width;
    let a = values(40 * depth, 3);
    let b = values(depth * width, 4);
    let product_of = |rows: usize| {
        let mut c = vec![0.0; rows * width];
        multiply(Product {
            rows,
            depth,
            width,
            a: (&a, depth),
            b: (&b, width),
            c: (&mut c, width),
            add: false,
            ahead: &mut Ahead::none(),
        });
        c
    };
    let all = product_of(40);
    for rows in 1..40 {
        assert_eq!(product_of(rows), all[..rows * width], "{rows} rows");
    }
}

#[test]
fn panels_tile_the_columns() {
    for columns in 1..200 {
        let with = |lanes, registers| Panels::with(columns, lanes, registers);
        for panels in [with(16, 32), with(8, 16), with(8, 8), Panels::narrow(columns)] {
            let mut next = 0;
            for panel in panels.iter() {
                assert_eq!(panel.first, next);
                assert!(panel.columns > 0 && panel.columns <= panel.width);
                next += panel.width;
            }
            assert_eq!(next, panels.padded());
            assert!(next >= columns && next < columns + panels.lanes && next <= padded(columns));
        }
    }
}

/// Packed weights of whole panels and of those that begin with a half, against plain indices.
fn check_packing<E: Element>(panels: Panels, depth: usize) {
    let columns = panels.columns;
    let ops = CpuOps::new(StateSize::new(0, 0), &[], CpuDevice::fp32(2)).unwrap();
    let weight = values(columns * depth, 3);
    let turned: Vec<f32> = (0..depth * columns).map(|i| weight[i % columns * depth + i / columns]).collect();
    let whole = super::depth::<E>(depth);
    for (name, packed) in [("rows", false), ("columns", true)].map(|(name, transposed)| {
        let mut packed = vec![E::from_f32(9.0); whole * panels.padded()];
        match transposed {
            true => pack_transposed(&ops.cx, &weight, panels, &mut packed),
            false => pack(&ops.cx, &turned, panels, &mut packed),
        }
        (name, packed)
    }) {
        for panel in panels.iter() {
            for k in 0..whole {
                for j in 0..panel.width {
                    let at = panel.first * whole + (k / E::DEPTH * panel.width + j) * E::DEPTH + k % E::DEPTH;
                    let inside = k < depth && j < panel.columns;
                    let expected = if inside { weight[(panel.first + j) * depth + k] } else { 0.0 };
                    let expected = E::from_f32(expected).to_f32();
                    assert_eq!(
                        packed[at].to_f32(),
                        expected,
                        "{name}, {panels:?}, row {k}, column {j} of {panel:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn packed_weights_have_every_number_in_its_place() {
    let half = |columns: usize, half: usize| {
        let rest = Panels::with(columns.saturating_sub(half), 16, 32);
        Panels { columns, half, ..rest }
    };
    // Halves are for the vectors of sixteen.
    let halves = if matches!(level(), Level::Avx512 | Level::Avx512Bf16) {
        &[(8, 8), (5, 8), (24, 24), (40, 24)][..]
    } else {
        &[]
    };
    let all = halves.iter().map(|&(columns, first)| half(columns, first));
    for panels in all.chain([1, 13, 16, 24, 48, 80, 112].map(Panels::new)) {
        for depth in [1, 2, 15, 16, 24, 33, 40, 320] {
            check_packing::<f32>(panels, depth);
            check_packing::<bf16>(panels, depth);
        }
    }
}
