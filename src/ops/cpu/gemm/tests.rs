use super::super::simd::Portable;
use super::*;

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

/// C = A·B and C = Aᵀ·B of every panel against double loops; the depth in one piece and in two.
fn check_products<V: Vector>(m: usize, n: usize, k: usize) {
    let (a, b) = (values(m * k, 1), values(k * n, 2));
    let a_columns: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
    for panel in (0..panels_of::<V>(n).count()).map(|p| panels_of::<V>(n).panel(p)) {
        let mut packed = vec![0.0; k * panel.width];
        for (i, row) in packed.chunks_exact_mut(panel.width).enumerate() {
            let from = i * n + panel.first;
            row[..panel.columns].copy_from_slice(&b[from..from + panel.columns]);
        }
        let stride = panel.width + 3;
        let mut whole = vec![f32::NAN; m * stride];
        multiply_body::<V>(
            &a,
            k,
            m,
            &packed,
            panel.width,
            &mut whole,
            stride,
            false,
            &mut Ahead::new(&a, 0..a.len()),
        );
        let mut pieces = vec![f32::NAN; m * stride];
        let cut = k / 2 * panel.width;
        multiply_body::<V>(
            &a,
            k,
            m,
            &packed[..cut],
            panel.width,
            &mut pieces,
            stride,
            false,
            &mut Ahead::none(),
        );
        let rest = &a[k / 2..];
        multiply_body::<V>(
            rest,
            k,
            m,
            &packed[cut..],
            panel.width,
            &mut pieces,
            stride,
            true,
            &mut Ahead::none(),
        );
        let mut transposed = vec![f32::NAN; m * stride];
        let width = panel.width;
        multiply_transposed_body::<V>(
            &a_columns,
            m,
            m,
            k,
            &packed,
            width,
            width,
            &mut transposed,
            stride,
            false,
            &mut Ahead::none(),
        );
        for i in 0..m {
            for j in 0..panel.columns {
                let terms = (0..k).map(|t| a[i * k + t] as f64 * b[t * n + panel.first + j] as f64);
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

fn check_all<V: Vector>() {
    for m in [1, 2, 3, 5, 7, 11, 12, 13, 23, 25, 40] {
        for n in [1, 7, 8, 16, 17, 24, 40, 48, 70] {
            for k in [1, 2, 9, 50] {
                check_products::<V>(m, n, k);
            }
        }
    }
}

#[test]
fn products_are_those_of_the_definition() {
    check_all::<Portable>();
    #[cfg(target_arch = "x86_64")]
    {
        use super::super::simd::{Avx2, Avx512};
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            check_all::<Avx2>();
        }
        if is_x86_feature_detected!("avx512f") {
            check_all::<Avx512>();
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (n, k) = (panels_of::<Portable>(32), 33);
    let panel = n.panel(0);
    let (a, b) = (values(40 * k, 3), values(k * Panels::new(32).panel(0).width, 4));
    let width = Panels::new(32).panel(0).width;
    let mut all = vec![0.0; 40 * width];
    multiply(&a, k, 40, &b, width, &mut all, width, false, &mut Ahead::none());
    for rows in 1..40 {
        let mut some = vec![0.0; rows * width];
        multiply(&a, k, rows, &b, width, &mut some, width, false, &mut Ahead::none());
        assert_eq!(some, all[..rows * width], "{rows} rows");
    }
    assert_eq!(panel.first, 0);
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
