//! Clipping by the norm of all gradients: against the oracle, and the same bits however the work is divided.

use super::*;

/// Clips to half of the norm, or not at all: then the bits are those of an update that does not clip. The norm is that of
/// the gradients without the loss scale.
fn expect_clipping<O: Ops>(mut device: impl FnMut(usize, usize) -> O, scale: f32) {
    for (trainable, total) in LENGTHS.into_iter().chain([(70_001, 70_501)]) {
        let gradients = doubles(&gradient(2, trainable));
        let full = norm(&gradients);
        for rule in rules() {
            for (what, most) in [("half", 0.5 * full as f32), ("ample", 1e3), ("none", f32::NAN)] {
                let clip_norm = (what != "none").then_some(most);
                let update = Update {
                    rule,
                    weight_decay: BY_PARAMETER,
                    clip_norm,
                    ema: false,
                    frozen: Frozen::NOTHING,
                };
                let mut ops = device(trainable, total);
                three_scaled_steps(&mut ops, &update, trainable, total, scale);
                let got = state(&mut ops, trainable, total);
                let what = format!("{update:?} over {trainable} of {total}, {what}");
                let mut reference = Reference::new(trainable, total);
                three_steps(&mut reference, &update, trainable, total);
                expect_close(&what, &got, &mut reference);
                ops.end_step().unwrap();
                let figures = ops.take_figures(true).unwrap().expect("a step has ended");
                match figures.gradient_norm {
                    Some(found) => {
                        let error = (f64::from(found) / full - 1.0).abs();
                        assert!(
                            clip_norm.is_some() && error <= 2.0 * UNIT,
                            "{what}: norm {found}, not {full}"
                        );
                    }
                    None => assert_eq!(clip_norm, None, "{what}: no norm"),
                }
                if clip_norm == Some(1e3) {
                    let mut ops = device(trainable, total);
                    let plain = Update { clip_norm: None, ..update };
                    three_scaled_steps(&mut ops, &plain, trainable, total, scale);
                    let same =
                        state(&mut ops, trainable, total).iter().zip(&got).all(|(a, b)| equal_bits(a, b));
                    assert!(same, "{what}: gradients below the limit were changed");
                }
            }
        }
    }
}

#[test]
fn gradients_are_clipped_by_their_norm() {
    expect_clipping(
        |trainable, total| CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap(),
        1.0,
    );
}

fn gradients_are_clipped_by_their_norm_in_kernels<G: TestGpu>() {
    for (precision, scale) in [(Precision::Fp32, 1.0), (Precision::Fp16, step::INITIAL_SCALE)] {
        expect_clipping(|trainable, total| cuda::<G>(precision, trainable, total, G::WAYS[0]), scale);
    }
}
on_cuda!(gradients_are_clipped_by_their_norm_in_kernels);

/// Any number of threads, any order of blocks, and every repetition gives the same bits.
#[test]
fn clipping_has_the_same_bits_for_any_number_of_threads() {
    let (trainable, total) = (70_001, 70_501);
    let update = Update {
        rule: rules()[0],
        weight_decay: DECAY,
        clip_norm: Some(0.7),
        ema: true,
        frozen: Frozen::NOTHING,
    };
    let run = |threads| {
        let mut ops = CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(threads)).unwrap();
        three_steps(&mut ops, &update, trainable, total);
        ops.end_step().unwrap();
        let norm = ops.take_figures(true).unwrap().unwrap().gradient_norm.unwrap();
        (norm.to_bits(), state(&mut ops, trainable, total))
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        let (norm, state) = run(threads);
        assert!(norm == one.0 && state.iter().zip(&one.1).all(|(a, b)| equal_bits(a, b)), "{threads}");
    }
}

fn clipping_has_the_same_bits_in_any_order_of_blocks<G: TestGpu>() {
    let (trainable, total) = (600 * 2048 + 5, 600 * 2048 + 9);
    let update = Update {
        rule: rules()[2],
        weight_decay: NO_DECAY,
        clip_norm: Some(0.7),
        ema: false,
        frozen: Frozen::NOTHING,
    };
    let runs = G::WAYS.iter().map(|way| {
        let mut ops = cuda::<G>(Precision::Fp32, trainable, total, *way);
        three_steps(&mut ops, &update, trainable, total);
        state(&mut ops, trainable, total)
    });
    let states: Vec<_> = runs.collect();
    let mut reference = Reference::new(trainable, total);
    three_steps(&mut reference, &update, trainable, total);
    expect_close("600 chunks", &states[0], &mut reference);
    for state in &states {
        assert!(state.iter().zip(&states[0]).all(|(a, b)| equal_bits(a, b)));
    }
}
on_cuda!(clipping_has_the_same_bits_in_any_order_of_blocks);

/// An infinite gradient of a finite loss is found by the norm, and the step changes nothing.
#[test]
fn norm_that_is_not_finite_skips_the_step() {
    let mut ops = CpuOps::new(StateSize::new(10, 12), &[], CpuDevice::fp32(2)).unwrap();
    let update = Update {
        rule: rules()[0],
        weight_decay: DECAY,
        clip_norm: Some(1.0),
        ema: true,
        frozen: Frozen::NOTHING,
    };
    three_steps(&mut ops, &update, 10, 12);
    let before = state(&mut ops, 10, 12);
    let mut gradients = vec![0.1; 10];
    gradients[3] = f32::INFINITY;
    ops.begin_step().unwrap();
    ops.write_state(Buffer::Gradients, &gradients).unwrap();
    ops.run(&update.into()).unwrap();
    ops.end_step().unwrap();
    let figures = ops.take_figures(true).unwrap().unwrap();
    assert!(figures.skipped && figures.gradient_norm.is_none());
    let after = state(&mut ops, 10, 12);
    assert!([0, 2, 3, 4].iter().all(|&buffer| equal_bits(&before[buffer], &after[buffer])));
}
