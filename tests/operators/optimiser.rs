//! The optimiser against the oracle: three steps of each rule over buffers of awkward lengths.

mod clipping;
mod frozen;
mod loss_scale;

use crate::common::fixture::{UNIT, doubles, equal_bits, norm, tolerance};
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use crate::common::reference::Reference;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision, optimiser, precision, step};
use effnet::ops::*;

const BUFFERS: [Buffer; 5] =
    [Buffer::Parameters, Buffer::Gradients, Buffer::Slot(0), Buffer::Slot(1), Buffer::Ema];

fn rules() -> [Rule; 7] {
    let rms = |form, eps| Rule::RmsProp { form, alpha: 0.9, momentum: 0.9, eps };
    [
        rms(RmsPropForm::PyTorch, 0.01),
        rms(RmsPropForm::TensorFlow, 0.001),
        Rule::Sgd { momentum: 0.9, nesterov: false },
        Rule::Sgd { momentum: 0.0, nesterov: false },
        Rule::Sgd { momentum: 0.9, nesterov: true },
        Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        Rule::AdamW { beta1: 0.5, beta2: 0.95, eps: 1e-2 },
    ]
}

const NO_DECAY: WeightDecay = WeightDecay { rate: 0.0, by_parameter: false };
const DECAY: WeightDecay = WeightDecay { rate: 1e-2, by_parameter: false };
const BY_PARAMETER: WeightDecay = WeightDecay { rate: 1e-2, by_parameter: true };

/// Elements of a buffer: gradients, mean-square and momentum have only the trainable ones.
fn elements(buffer: Buffer, trainable: usize, total: usize) -> usize {
    if matches!(buffer, Buffer::Parameters | Buffer::Ema) { total } else { trainable }
}

/// Gradients near the square root of eps, where eps has the largest effect.
fn gradient(step: u64, trainable: usize) -> Vec<f32> {
    Formula::of(&format!("gradient {step}")).values(trainable, -0.05, 0.05)
}

/// 0, 1 and other numbers, in runs that end inside of vectors and chunks.
fn factors(trainable: usize) -> Vec<f32> {
    (0..trainable).map(|i| [0.0, 1.0, 0.5, 3.0][i / 13 % 4]).collect()
}

fn params(step: u64) -> StepParams {
    StepParams { step, learning_rate: 0.02, ema_decay: 0.7 + 0.1 * step as f32, ..StepParams::default() }
}

/// The border of body and head lies in the middle of a vector and of a chunk.
fn params_with_body(step: u64, trainable: usize) -> StepParams {
    StepParams { body: trainable * 3 / 7, body_rate: 0.004, ..params(step) }
}

/// Three steps with the gradients of the loss times `scale`, a power of two.
fn three_steps_by<O: Ops>(ops: &mut O, update: &Update, factors: &[f32], total: usize, scale: f32) {
    let trainable = factors.len();
    let start = |name: &str, count| Formula::of(name).values(count, -1.0, 1.0);
    ops.write_state(Buffer::Parameters, &start("parameters", total)).unwrap();
    ops.write_state(Buffer::Ema, &start("ema", total)).unwrap();
    ops.write_state(Buffer::DecayFactors, factors).unwrap();
    for (number, slot) in update.rule.slots().iter().enumerate() {
        let values = match slot.name {
            "momentum" => start("momentum", trainable),
            _ => vec![slot.initial; trainable],
        };
        ops.write_state(Buffer::Slot(number), &values).unwrap();
    }
    for step in 0..3 {
        ops.set_step(params_with_body(step, trainable)).unwrap();
        let scaled: Vec<f32> = gradient(step, trainable).iter().map(|g| g * scale).collect();
        ops.write_state(Buffer::Gradients, &scaled).unwrap();
        ops.run(&(*update).into()).unwrap();
    }
}

fn three_scaled_steps<O: Ops>(ops: &mut O, update: &Update, trainable: usize, total: usize, scale: f32) {
    three_steps_by(ops, update, &factors(trainable), total, scale);
}

fn three_steps<O: Ops>(ops: &mut O, update: &Update, trainable: usize, total: usize) {
    three_scaled_steps(ops, update, trainable, total, 1.0);
}

fn state<O: Ops>(ops: &mut O, trainable: usize, total: usize) -> [Vec<f32>; 5] {
    BUFFERS.map(|buffer| {
        let mut values = vec![f32::NAN; elements(buffer, trainable, total)];
        ops.read_state(buffer, &mut values).unwrap();
        values
    })
}

/// Compares each buffer by its relative L2 error, except the gradients, which are only read.
fn expect_close(what: &str, got: &[Vec<f32>; 5], reference: &mut Reference) {
    for (buffer, values) in BUFFERS.into_iter().zip(got).filter(|(buffer, _)| *buffer != Buffer::Gradients) {
        let expected = reference.state(buffer).clone();
        let difference: Vec<f64> = doubles(values).iter().zip(&expected).map(|(g, e)| g - e).collect();
        let (error, bound) = (norm(&difference), tolerance(3) * norm(&expected));
        assert!(error <= bound, "{what}: {buffer:?} is off by {error:e}, bound {bound:e}");
    }
}

#[test]
fn three_steps_agree_with_the_oracle() {
    for (trainable, total) in [(1, 1), (7, 9), (1000, 1037), (70_001, 70_501)] {
        for rule in rules() {
            for (weight_decay, ema) in
                [(NO_DECAY, false), (DECAY, false), (DECAY, true), (BY_PARAMETER, true)]
            {
                let update = Update { rule, weight_decay, clip_norm: None, ema, frozen: Frozen::NOTHING };
                let what = format!("{update:?} over {trainable} of {total}");
                let mut reference = Reference::new(trainable, total);
                three_steps(&mut reference, &update, trainable, total);
                let read = |threads: usize| {
                    let mut ops =
                        CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(threads)).unwrap();
                    three_steps(&mut ops, &update, trainable, total);
                    state(&mut ops, trainable, total)
                };
                let got = read(1);
                expect_close(&what, &got, &mut reference);
                assert!(equal_bits(&got[1], &gradient(2, trainable)), "{what}: gradients were changed");
                for threads in [2, 3] {
                    let same = read(threads).iter().zip(&got).all(|(a, b)| equal_bits(a, b));
                    assert!(same, "{what}: {threads} threads give other bits than one");
                }
            }
        }
    }
}

/// Factors of 1 are the uniform decay, and factors of 0 none, bit by bit.
fn expect_uniform_decay<O: Ops>(mut device: impl FnMut(usize, usize) -> O) {
    for (trainable, total) in LENGTHS {
        for rule in rules() {
            for (factor, uniform) in [(1.0, DECAY), (0.0, NO_DECAY)] {
                let [got, expected] = [BY_PARAMETER, uniform].map(|weight_decay| {
                    let mut ops = device(trainable, total);
                    let update =
                        Update { rule, weight_decay, clip_norm: None, ema: true, frozen: Frozen::NOTHING };
                    three_steps_by(&mut ops, &update, &vec![factor; trainable], total, 1.0);
                    state(&mut ops, trainable, total)
                });
                let same = got.iter().zip(&expected).all(|(a, b)| equal_bits(a, b));
                assert!(same, "{rule:?} over {trainable} of {total}, factor {factor}");
            }
        }
    }
}

#[test]
fn decay_factors_that_are_equal_are_uniform_decay() {
    expect_uniform_decay(|trainable, total| {
        CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap()
    });
}

fn decay_factors_that_are_equal_are_uniform_decay_in_kernels<G: TestGpu>() {
    expect_uniform_decay(|trainable, total| cuda::<G>(Precision::Fp32, trainable, total, G::WAYS[0]));
}
on_cuda!(decay_factors_that_are_equal_are_uniform_decay_in_kernels);

/// AdamW counts the steps that were made: step 5 after two skipped ones moves the weights as step 3 does, on every
/// device, however the number of skipped steps came there.
fn expect_skipped_steps_do_not_count<O: Ops>(mut device: impl FnMut(usize, usize) -> O, reads: &[Buffer]) {
    let (trainable, total) = (1000, 1037);
    let update = Update {
        rule: Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        weight_decay: DECAY,
        clip_norm: None,
        ema: false,
        frozen: Frozen::NOTHING,
    };
    let mut moved = |step, skipped| {
        let mut ops = device(trainable, total);
        three_steps(&mut ops, &update, trainable, total);
        ops.set_loss_scale(LossScale { scale: 1.0, good_steps: 0, skipped }).unwrap();
        ops.set_step(StepParams { step, ..params(2) }).unwrap();
        ops.run(&update.into()).unwrap();
        reads
            .iter()
            .map(|buffer| {
                let mut values = vec![0.0; elements(*buffer, trainable, total)];
                ops.read_state(*buffer, &mut values).unwrap();
                values
            })
            .collect::<Vec<_>>()
    };
    let expected = moved(3, 0);
    assert!(moved(5, 2).iter().zip(&expected).all(|(a, b)| equal_bits(a, b)));
    assert!(!equal_bits(&moved(5, 0)[0], &expected[0]), "the number of the step does not count");
}

const MOVED: [Buffer; 3] = [Buffer::Parameters, Buffer::Slot(0), Buffer::Slot(1)];

#[test]
fn skipped_steps_do_not_count_for_adamw() {
    expect_skipped_steps_do_not_count(
        |trainable, total| CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap(),
        &MOVED,
    );
}

fn skipped_steps_do_not_count_for_adamw_in_kernels<G: TestGpu>() {
    for precision in Precision::ALL {
        let device = |trainable, total| cuda::<G>(precision, trainable, total, G::WAYS[0]);
        expect_skipped_steps_do_not_count(device, &MOVED);
    }
}
on_cuda!(skipped_steps_do_not_count_for_adamw_in_kernels);

/// Hand-computed: PyTorch's documentation, first step, so that the oracle has no mistake in common with the devices.
#[test]
fn first_steps_are_those_of_the_formula_by_hand() {
    let first = |rule, rate: f32| {
        let mut reference = Reference::new(1, 1);
        (reference.parameters[0], reference.gradients[0]) = (1.0, 0.5);
        reference.set_step(StepParams { learning_rate: 0.1, ..StepParams::default() }).unwrap();
        let update = Update {
            rule,
            weight_decay: WeightDecay::uniform(rate),
            clip_norm: None,
            ema: false,
            frozen: Frozen::NOTHING,
        };
        reference.run(&update.into()).unwrap();
        reference.parameters[0]
    };
    // g = 0.5 + 0.2; Nesterov: 0.7 + 0.9·0.7.
    assert!((first(Rule::Sgd { momentum: 0.9, nesterov: true }, 0.2) - (1.0 - 0.133)).abs() < 1e-12);
    // 1·(1 − 0.1·0.2) − 0.1·0.5/(0.5 + 0.5): both moments are corrected to g and g².
    let adamw = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 0.5 };
    assert!((first(adamw, 0.2) - (0.98 - 0.05)).abs() < 1e-12);
}

/// The optimiser must not change the running statistics, nor, without `ema`, the EMA buffer.
#[test]
fn running_statistics_and_an_unused_average_keep_their_bits() {
    let (trainable, total) = (100, 150);
    for rule in rules() {
        for ema in [false, true] {
            let mut ops = CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap();
            three_steps(
                &mut ops,
                &Update { rule, weight_decay: DECAY, clip_norm: None, ema, frozen: Frozen::NOTHING },
                trainable,
                total,
            );
            let mut values = vec![0.0; total];
            ops.read_state(Buffer::Parameters, &mut values).unwrap();
            let before = Formula::of("parameters").values(total, -1.0, 1.0);
            assert_eq!(values[trainable..], before[trainable..], "{rule:?}: running statistics");
            ops.read_state(Buffer::Ema, &mut values).unwrap();
            let before = Formula::of("ema").values(total, -1.0, 1.0);
            assert_eq!(values == before, !ema, "{rule:?}: EMA buffer with ema {ema}");
        }
    }
}

// ---- on a GPU ---------------------------------------------------------------------------------------------

/// Weights of which the engine keeps a copy in the storage type: at odd offsets, one longer than the chunk of a block.
fn products(trainable: usize) -> Vec<Param> {
    let thirds = [0, trainable / 3, trainable / 3 + trainable / 2, trainable];
    let params = thirds.windows(2).map(|w| Param { offset: w[0], elements: w[1] - w[0] });
    params.filter(|p| p.elements > 0).collect()
}

fn cuda<G: TestGpu>(precision: Precision, trainable: usize, total: usize, way: G::Way) -> CudaOps<G> {
    let device = CudaDevice::new(precision);
    let mut plan = Plan::new(&device, &[], &Tensors::default(), &[]);
    plan.products = products(trainable);
    engine::<G>(way, trainable, total, &[&plan], precision).unwrap()
}

/// Asserts that the copy in the storage type equals the rounded weights.
fn expect_copy<G: TestGpu>(what: &str, ops: &mut CudaOps<G>, weights: &[f32]) {
    let cx = ops.context();
    for param in products(cx.state.trainable) {
        let mut bytes = vec![0; param.elements * cx.precision.bytes()];
        let at = cx.stored_weight(param);
        assert_eq!(at.0 % 16, 0, "{what}: loads of the copy");
        cx.gpu.read(at, &mut bytes).unwrap();
        let same = bytes == precision::narrow(&weights[param.range()], cx.precision);
        assert!(same, "{what}: the copy of the weights from {} on", param.offset);
    }
}

/// Lengths near that of a thread's vector and near that of a block's chunk.
const LENGTHS: [(usize, usize); 6] = [(1, 1), (7, 9), (8, 300), (1000, 1037), (2048, 2049), (5001, 5601)];

fn three_steps_on_cuda_agree_with_the_oracle<G: TestGpu>() {
    for (trainable, total) in LENGTHS {
        for rule in rules() {
            for (weight_decay, ema) in
                [(NO_DECAY, false), (DECAY, false), (DECAY, true), (BY_PARAMETER, true)]
            {
                let update = Update { rule, weight_decay, clip_norm: None, ema, frozen: Frozen::NOTHING };
                let mut reference = Reference::new(trainable, total);
                three_steps(&mut reference, &update, trainable, total);
                for precision in Precision::ALL {
                    let what = format!("{update:?} over {trainable} of {total} in {precision}");
                    let scale = if precision == Precision::Fp16 { step::INITIAL_SCALE } else { 1.0 };
                    let run = |way| {
                        let mut ops = cuda::<G>(precision, trainable, total, way);
                        three_scaled_steps(&mut ops, &update, trainable, total, scale);
                        let state = state(&mut ops, trainable, total);
                        expect_copy(&what, &mut ops, &state[0]);
                        state
                    };
                    let got = run(G::WAYS[0]);
                    expect_close(&what, &got, &mut reference);
                    let last: Vec<f32> = gradient(2, trainable).iter().map(|g| g * scale).collect();
                    assert!(equal_bits(&got[1], &last), "{what}: gradients were changed");
                    let mut running = vec![f32::NAN; total];
                    running.copy_from_slice(&Formula::of("parameters").values(total, -1.0, 1.0));
                    let kept = equal_bits(&got[0][trainable..], &running[trainable..]);
                    assert!(kept, "{what}: running statistics that did not move");
                    for way in G::WAYS {
                        let same = run(*way).iter().zip(&got).all(|(a, b)| equal_bits(a, b));
                        assert!(same, "{what}: {way:?} gives other bits");
                    }
                }
            }
        }
    }
}
on_cuda!(three_steps_on_cuda_agree_with_the_oracle);

/// With the rate 0 the body stays as it is, bit by bit; the head moves as it does alone; and equal rates are one rate.
fn expect_the_body_to_rest<O: Ops>(mut device: impl FnMut(usize, usize) -> O) {
    for (trainable, total) in LENGTHS {
        for rule in rules() {
            let update =
                Update { rule, weight_decay: DECAY, clip_norm: None, ema: false, frozen: Frozen::NOTHING };
            let start = Formula::of("parameters").values(total, -1.0, 1.0);
            let mut moved = |body: usize, body_rate: f32| {
                let mut ops = device(trainable, total);
                ops.write_state(Buffer::Parameters, &start).unwrap();
                for (number, slot) in update.rule.slots().iter().enumerate() {
                    ops.write_state(Buffer::Slot(number), &vec![slot.initial; trainable]).unwrap();
                }
                for step in 0..3 {
                    ops.set_step(StepParams { body, body_rate, ..params(step) }).unwrap();
                    ops.write_state(Buffer::Gradients, &gradient(step, trainable)).unwrap();
                    ops.run(&update.into()).unwrap();
                }
                let mut values = vec![f32::NAN; total];
                ops.read_state(Buffer::Parameters, &mut values).unwrap();
                values
            };
            let body = trainable * 3 / 7;
            let (rests, all) = (moved(body, 0.0), moved(0, 0.0));
            assert!(equal_bits(&rests[..body], &start[..body]), "{rule:?} over {trainable}: the body moved");
            assert!(equal_bits(&rests[body..], &all[body..]), "{rule:?} over {trainable}: the head differs");
            assert!(equal_bits(&moved(body, 0.02), &all), "{rule:?} over {trainable}: equal rates differ");
            assert!(!equal_bits(&all[..trainable], &start[..trainable]), "{rule:?} over {trainable}");
        }
    }
}

#[test]
fn body_rests_at_rate_zero() {
    expect_the_body_to_rest(|trainable, total| {
        CpuOps::new(StateSize::new(trainable, total), &[], CpuDevice::fp32(2)).unwrap()
    });
}

fn body_rests_at_rate_zero_in_kernels<G: TestGpu>() {
    expect_the_body_to_rest(|trainable, total| {
        engine::<G>(G::WAYS[0], trainable, total, &[], Precision::Fp32).unwrap()
    });
}

on_cuda!(body_rests_at_rate_zero_in_kernels);
