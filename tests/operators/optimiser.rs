//! The optimiser against the oracle: three steps of each rule over buffers of awkward lengths.

use crate::common::fixture::{UNIT, doubles, equal_bits, norm, tolerance};
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use crate::common::reference::Reference;
use effnet::ops::cpu::CpuOps;
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision, optimiser, precision, reduction, step};
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

/// Three steps with the gradients of the loss times `scale`, a power of two.
fn params(step: u64) -> StepParams {
    StepParams { step, learning_rate: 0.02, ema_decay: 0.7 + 0.1 * step as f32, ..StepParams::default() }
}

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
        ops.set_step(params(step)).unwrap();
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
                let update = Update { rule, weight_decay, clip_norm: None, ema };
                let what = format!("{update:?} over {trainable} of {total}");
                let mut reference = Reference::new(trainable, total);
                three_steps(&mut reference, &update, trainable, total);
                let read = |threads: usize| {
                    let mut ops = CpuOps::new(StateSize::new(trainable, total), &[], threads).unwrap();
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
                    let update = Update { rule, weight_decay, clip_norm: None, ema: true };
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
    expect_uniform_decay(|trainable, total| CpuOps::new(StateSize::new(trainable, total), &[], 2).unwrap());
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
        |trainable, total| CpuOps::new(StateSize::new(trainable, total), &[], 2).unwrap(),
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
        let update = Update { rule, weight_decay: WeightDecay::uniform(rate), clip_norm: None, ema: false };
        reference.run(&update.into()).unwrap();
        reference.parameters[0]
    };
    // g = 0.5 + 0.2; Nesterov: 0.7 + 0.9·0.7.
    assert!((first(Rule::Sgd { momentum: 0.9, nesterov: true }, 0.2) - (1.0 - 0.133)).abs() < 1e-12);
    // 1·(1 − 0.1·0.2) − 0.1·0.5/(0.5 + 0.5): both moments are corrected to g and g².
    let adamw = Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 0.5 };
    assert!((first(adamw, 0.2) - (0.98 - 0.05)).abs() < 1e-12);
}

/// Clips to half of the norm, or not at all: then the bits are those of an update that does not clip. The norm is that of
/// the gradients without the loss scale.
fn expect_clipping<O: Ops>(mut device: impl FnMut(usize, usize) -> O, scale: f32) {
    for (trainable, total) in LENGTHS.into_iter().chain([(70_001, 70_501)]) {
        let gradients = doubles(&gradient(2, trainable));
        let full = norm(&gradients);
        for rule in rules() {
            for (what, most) in [("half", 0.5 * full as f32), ("ample", 1e3), ("none", f32::NAN)] {
                let clip_norm = (what != "none").then_some(most);
                let update = Update { rule, weight_decay: BY_PARAMETER, clip_norm, ema: false };
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
    expect_clipping(|trainable, total| CpuOps::new(StateSize::new(trainable, total), &[], 2).unwrap(), 1.0);
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
    let update = Update { rule: rules()[0], weight_decay: DECAY, clip_norm: Some(0.7), ema: true };
    let run = |threads| {
        let mut ops = CpuOps::new(StateSize::new(trainable, total), &[], threads).unwrap();
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
    let update = Update { rule: rules()[2], weight_decay: NO_DECAY, clip_norm: Some(0.7), ema: false };
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
    let mut ops = CpuOps::new(StateSize::new(10, 12), &[], 2).unwrap();
    let update = Update { rule: rules()[0], weight_decay: DECAY, clip_norm: Some(1.0), ema: true };
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

/// The optimiser must not change the running statistics, nor, without `ema`, the EMA buffer.
#[test]
fn running_statistics_and_an_unused_average_keep_their_bits() {
    let (trainable, total) = (100, 150);
    for rule in rules() {
        for ema in [false, true] {
            let mut ops = CpuOps::new(StateSize::new(trainable, total), &[], 2).unwrap();
            three_steps(
                &mut ops,
                &Update { rule, weight_decay: DECAY, clip_norm: None, ema },
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
    let device = CudaDevice { precision };
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
                let update = Update { rule, weight_decay, clip_norm: None, ema };
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

/// Sets the running statistics as a forward pass would update them.
fn move_statistics<G: TestGpu>(ops: &mut CudaOps<G>, values: &[f32]) {
    let cx = ops.context();
    cx.gpu.write(cx.state.running, bytemuck::cast_slice(values)).unwrap();
}

/// Adds one more term to a gradient, as the second stage of a pass does.
fn complete_gradient<G: TestGpu>(ops: &mut CudaOps<G>, at: usize, term: f32) {
    let cx = ops.context();
    let partial = cx.gpu.allocate(4).unwrap();
    cx.gpu.write(partial, &term.to_ne_bytes()).unwrap();
    reduction::add_gradient(cx, partial, 1, Param { offset: at, elements: 1 }).unwrap();
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
        let update = Update { rule, weight_decay: DECAY, clip_norm, ema: true };
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
                optimiser::look_at_gradients(cx).unwrap();
                let raised = step::read(cx).unwrap().not_finite;
                let mut after = vec![0.0; trainable];
                ops.read_state(Buffer::Gradients, &mut after).unwrap();
                assert!(equal_bits(&after, gradients), "{trainable} of {total}: gradients were changed");
                // The update skips the step and lowers the flag.
                let update = Update { rule: rules()[3], weight_decay: NO_DECAY, clip_norm: None, ema: false };
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
