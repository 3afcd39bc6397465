//! Steps that overflow, the loss scale, and what the engine keeps beside the parameters: running statistics until they are
//! committed, and the copy of the weights.

use super::*;
use crate::common::buffers;
use effnet::ops::cuda::reduction::{Partials, WeightGradient, finish_gradients};

/// Sets the running statistics as a forward pass would update them.
fn move_statistics<G: TestGpu>(ops: &mut CudaOps<G>, values: &[f32]) {
    let cx = ops.context();
    cx.gpu.write(cx.state.running, bytemuck::cast_slice(values)).unwrap();
}

/// Adds one more term to a gradient, as the second stage of a pass does, and zeros to the three after it: elements come in
/// fours.
fn complete_gradient<G: TestGpu>(ops: &mut CudaOps<G>, at: usize, term: f32) {
    let terms = [term, 0.0, 0.0, 0.0];
    let partial = buffers::on_device(ops, bytemuck::cast_slice(&terms));
    let cx = ops.context();
    let weight = Param { offset: at, elements: terms.len() };
    let partials = Partials { at: partial, parts: 1 };
    finish_gradients(cx, None, Some(WeightGradient { weight, partials })).unwrap();
}

const TRAINABLE: usize = 2100;
const TOTAL: usize = 2400;

/// A device in the middle of training, before an update.
fn midway<G: TestGpu>(precision: Precision, update: &Update) -> CudaOps<G> {
    let mut ops = cuda::<G>(precision, TRAINABLE, TOTAL, G::WAYS[0]);
    let scale = if precision == Precision::Fp16 { step::INITIAL_SCALE } else { 1.0 };
    three_scaled_steps(&mut ops, update, TRAINABLE, TOTAL, scale);
    ops
}

fn skipped<G: TestGpu>(ops: &mut CudaOps<G>) -> u32 {
    step::read(ops.context()).unwrap().scale.skipped
}

/// A step whose gradient overflows changes nothing and restores the running statistics. The next step continues as if
/// it had not happened.
fn step_that_overflows_changes_nothing<G: TestGpu>() {
    for (rule, clip_norm) in rules().into_iter().flat_map(|rule| [(rule, None), (rule, Some(1.0))]) {
        let update = Update { rule, weight_decay: DECAY, clip_norm, ema: true, frozen: Frozen::NOTHING };
        for precision in Precision::ALL {
            let next = |step| StepParams { step, ..params(2) };
            let mut untouched = midway::<G>(precision, &update);
            untouched.set_step(next(3)).unwrap();
            untouched.run(&update.into()).unwrap();
            let after = state(&mut untouched, TRAINABLE, TOTAL);
            for term in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let what = format!("{update:?} in {precision}, {term}");
                let mut ops = midway::<G>(precision, &update);
                let before = state(&mut ops, TRAINABLE, TOTAL);
                move_statistics(&mut ops, &vec![7.0; TOTAL - TRAINABLE]);
                complete_gradient(&mut ops, TRAINABLE / 2, term);
                ops.set_step(next(3)).unwrap();
                ops.run(&update.into()).unwrap();
                let mut got = state(&mut ops, TRAINABLE, TOTAL);
                assert!(!got[1][TRAINABLE / 2].is_finite(), "{what}: the gradient is finite");
                got[1] = before[1].clone();
                let same = got.iter().zip(&before).all(|(a, b)| equal_bits(a, b));
                assert!(same, "{what}: the step was not skipped");
                expect_copy(&what, &mut ops, &before[0]);
                assert_eq!(skipped(&mut ops), 1, "{what}");

                // The same gradients: with the scale halved, they are those of twice the loss.
                let halved = if precision == Precision::Fp16 { 0.5 } else { 1.0 };
                let scaled: Vec<f32> = before[1].iter().map(|g| g * halved).collect();
                ops.write_state(Buffer::Gradients, &scaled).unwrap();
                ops.set_step(next(4)).unwrap();
                ops.run(&update.into()).unwrap();
                let mut got = state(&mut ops, TRAINABLE, TOTAL);
                got[1] = after[1].clone();
                let same = got.iter().zip(&after).all(|(a, b)| equal_bits(a, b));
                assert!(same, "{what}: the next step is not as usual");
                assert_eq!(skipped(&mut ops), 1, "{what}: the flag stays up");
            }
        }
    }
}
on_cuda!(step_that_overflows_changes_nothing);

/// With several ranks the summed gradients are searched: one that is not finite, at any place, raises the flag; finite
/// ones do not. The gradients do not change.
fn sum_that_is_not_finite_raises_the_flag<G: TestGpu>() {
    for (trainable, total) in LENGTHS {
        for way in G::WAYS {
            let mut ops = cuda::<G>(Precision::Fp32, trainable, total, *way);
            let mut look = |gradients: &[f32]| {
                ops.write_state(Buffer::Gradients, gradients).unwrap();
                let cx = ops.context();
                optimiser::look_at_gradients(cx, Frozen::NOTHING).unwrap();
                let raised = step::read(cx).unwrap().not_finite;
                let mut after = vec![0.0; trainable];
                ops.read_state(Buffer::Gradients, &mut after).unwrap();
                assert!(equal_bits(&after, gradients), "{trainable} of {total}: gradients were changed");
                // The update skips the step and lowers the flag.
                let update = Update {
                    rule: rules()[3],
                    weight_decay: NO_DECAY,
                    clip_norm: None,
                    ema: false,
                    frozen: Frozen::NOTHING,
                };
                ops.run(&update.into()).unwrap();
                raised
            };
            let finite: Vec<f32> = [f32::MAX, f32::MIN, 0.0, -0.0, f32::from_bits(1)]
                .into_iter()
                .cycle()
                .take(trainable)
                .collect();
            assert!(!look(&finite), "{trainable} of {total}, {way:?}: raised by finite numbers");
            for at in [0, 1, 6, 7, 8, 2047, 2048, trainable / 2, trainable - 1] {
                for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                    let mut gradients = finite.clone();
                    let Some(gradient) = gradients.get_mut(at) else { continue };
                    *gradient = value;
                    assert!(look(&gradients), "{trainable} of {total}, {way:?}: {value} at {at} was missed");
                }
            }
            assert!(!look(&finite), "{trainable} of {total}, {way:?}: the flag stays up");
        }
    }
}
on_cuda!(sum_that_is_not_finite_raises_the_flag);

/// The update stores the new running statistics with the parameters, and their moving average follows.
fn running_statistics_are_committed_by_a_step_that_is_not_skipped<G: TestGpu>() {
    for precision in Precision::ALL {
        for ema in [false, true] {
            let update = Update {
                rule: Rule::Sgd { momentum: 0.9, nesterov: false },
                weight_decay: NO_DECAY,
                clip_norm: None,
                ema,
                frozen: Frozen::NOTHING,
            };
            let mut ops = midway::<G>(precision, &update);
            let before = state(&mut ops, TRAINABLE, TOTAL);
            let moved = Formula::of("moved").values(TOTAL - TRAINABLE, -1.0, 1.0);
            move_statistics(&mut ops, &moved);
            ops.run(&update.into()).unwrap();
            let mut committed = vec![0.0; TOTAL - TRAINABLE];
            let cx = ops.context();
            let at = cx.state.parameters.offset(4 * TRAINABLE);
            cx.gpu.read(at, bytemuck::cast_slice_mut(&mut committed)).unwrap();
            assert_eq!(committed, moved, "{precision}, EMA {ema}");
            let after = state(&mut ops, TRAINABLE, TOTAL);
            for (at, moved) in moved.iter().enumerate() {
                let (before, after) = (before[4][TRAINABLE + at], after[4][TRAINABLE + at]);
                let decay = 0.7 + 0.1 * 2.0f32;
                let expected =
                    if ema { decay as f64 * before as f64 + 0.1 * *moved as f64 } else { before as f64 };
                // Two products and a sum of numbers up to one.
                assert!((after as f64 - expected).abs() <= 4.0 * UNIT, "{precision}, EMA {ema}: {after}");
            }
        }
    }
}
on_cuda!(running_statistics_are_committed_by_a_step_that_is_not_skipped);

/// Steps with and without overflow, and the scale after each.
fn scales<G: TestGpu>(ops: &mut CudaOps<G>, overflows: &[bool]) -> Vec<f32> {
    let update = Update {
        rule: Rule::Sgd { momentum: 0.0, nesterov: false },
        weight_decay: NO_DECAY,
        clip_norm: None,
        ema: false,
        frozen: Frozen::NOTHING,
    };
    let step = |overflow: &bool| {
        ops.begin_step().unwrap();
        if *overflow {
            complete_gradient(ops, 0, f32::INFINITY);
        }
        ops.run(&update.into()).unwrap();
        ops.end_step().unwrap();
        let figures = ops.take_figures(true).unwrap().expect("a step has ended");
        assert_eq!(figures.skipped, *overflow);
        step::read(ops.context()).unwrap().scale.scale
    };
    overflows.iter().map(step).collect()
}

fn loss_scale_of_fp16_halves_on_overflow_and_grows_again<G: TestGpu>() {
    let mut ops = cuda::<G>(Precision::Fp16, 10, 12, G::WAYS[0]);
    ops.set_growth_interval(3);
    let (t, f) = (true, false);
    assert_eq!(
        scales(&mut ops, &[f, f, t, t, f, f, f, f, f, t, f, f, f]),
        [
            65536., 65536., 32768., 16384., 16384., 16384., 32768., 32768., 32768., 16384., 16384., 16384.,
            32768.
        ]
    );
    assert_eq!(ops.loss_scale().unwrap(), Some(LossScale { scale: 32768., good_steps: 0, skipped: 3 }));
    // Between 1 and 2^24.
    ops.set_loss_scale(LossScale { scale: 2.0, good_steps: 2, skipped: 40 }).unwrap();
    assert_eq!(scales(&mut ops, &[t, t, f, f, f, t]), [1., 1., 1., 1., 2., 1.]);
    ops.set_loss_scale(LossScale { scale: 8388608., good_steps: 2, skipped: 40 }).unwrap();
    assert_eq!(scales(&mut ops, &[f, f, f, f]), [16777216.; 4]);
    assert_eq!(ops.loss_scale().unwrap(), Some(LossScale { scale: 16777216., good_steps: 0, skipped: 40 }));
}
on_cuda!(loss_scale_of_fp16_halves_on_overflow_and_grows_again);

fn loss_scale_of_fp32_and_bf16_stays_one<G: TestGpu>() {
    for precision in [Precision::Fp32, Precision::Bf16] {
        let mut ops = cuda::<G>(precision, 10, 12, G::WAYS[0]);
        ops.set_growth_interval(1);
        assert_eq!(scales(&mut ops, &[false, true, true, false]), [1.; 4], "{precision}");
        assert_eq!(skipped(&mut ops), 2, "{precision}");
    }
}
on_cuda!(loss_scale_of_fp32_and_bf16_stays_one);

/// The copy in the storage type is that of the chosen weights, also after an update.
fn copy_of_the_weights_follows_the_choice<G: TestGpu>() {
    let update = Update {
        rule: Rule::Sgd { momentum: 0.9, nesterov: false },
        weight_decay: NO_DECAY,
        clip_norm: None,
        ema: true,
        frozen: Frozen::NOTHING,
    };
    for precision in Precision::ALL {
        let mut ops = midway::<G>(precision, &update);
        for (weights, buffer) in [(Weights::Ema, 4), (Weights::Raw, 0), (Weights::Ema, 4)] {
            ops.use_weights(weights).unwrap();
            for _ in 0..2 {
                let state = state(&mut ops, TRAINABLE, TOTAL);
                expect_copy(&format!("{precision}, {weights:?}"), &mut ops, &state[buffer]);
                ops.run(&update.into()).unwrap();
            }
        }
    }
}
on_cuda!(copy_of_the_weights_follows_the_choice);
