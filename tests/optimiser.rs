//! The optimiser against the oracle: three steps of each rule over buffers of awkward lengths.

mod common;

use common::fixture::{doubles, equal_bits, norm, tolerance};
use common::formula::Formula;
use common::reference::Reference;
use effnet::ops::cpu::CpuOps;
use effnet::ops::*;

const BUFFERS: [Buffer; 5] =
    [Buffer::Parameters, Buffer::Gradients, Buffer::MeanSquare, Buffer::Momentum, Buffer::Ema];

fn rules() -> [Rule; 4] {
    let rms = |form, eps| Rule::RmsProp { form, alpha: 0.9, momentum: 0.9, eps };
    [
        rms(RmsPropForm::PyTorch, 0.01),
        rms(RmsPropForm::TensorFlow, 0.001),
        Rule::Sgd { momentum: 0.9 },
        Rule::Sgd { momentum: 0.0 },
    ]
}

/// Elements of a buffer: gradients, mean-square and momentum have only the trainable ones.
fn elements(buffer: Buffer, trainable: usize, total: usize) -> usize {
    if matches!(buffer, Buffer::Parameters | Buffer::Ema) { total } else { trainable }
}

/// Gradients around the square root of eps, where eps matters most.
fn gradient(step: u64, trainable: usize) -> Vec<f32> {
    Formula::of(&format!("gradient {step}")).values(trainable, -0.05, 0.05)
}

fn three_steps<O: Ops>(ops: &mut O, update: &Update, trainable: usize, total: usize) {
    let start = |name: &str, count| Formula::of(name).values(count, -1.0, 1.0);
    ops.write_state(Buffer::Parameters, &start("parameters", total)).unwrap();
    ops.write_state(Buffer::Ema, &start("ema", total)).unwrap();
    ops.write_state(Buffer::Momentum, &start("momentum", trainable)).unwrap();
    ops.write_state(Buffer::MeanSquare, &vec![update.rule.initial_mean_square(); trainable]).unwrap();
    for step in 0..3 {
        let params = StepParams {
            step,
            learning_rate: 0.02,
            ema_decay: 0.7 + 0.1 * step as f32,
            ..StepParams::default()
        };
        ops.set_step(params).unwrap();
        ops.write_state(Buffer::Gradients, &gradient(step, trainable)).unwrap();
        ops.update(update).unwrap();
    }
}

#[test]
fn three_steps_agree_with_the_oracle() {
    for (trainable, total) in [(1, 1), (7, 9), (1000, 1037), (70_001, 70_501)] {
        for rule in rules() {
            for (weight_decay, ema) in [(0.0, false), (1e-2, false), (1e-2, true)] {
                let update = Update { rule, weight_decay, ema };
                let what = format!("{update:?} over {trainable} of {total}");
                let mut reference = Reference::new(trainable, total);
                three_steps(&mut reference, &update, trainable, total);
                let read = |threads: usize| {
                    let mut ops = CpuOps::new(trainable, total, &[], threads).unwrap();
                    three_steps(&mut ops, &update, trainable, total);
                    BUFFERS.map(|buffer| {
                        let mut values = vec![f32::NAN; elements(buffer, trainable, total)];
                        ops.read_state(buffer, &mut values).unwrap();
                        values
                    })
                };
                let got = read(1);
                for (buffer, values) in BUFFERS.into_iter().zip(&got) {
                    let expected = reference.state(buffer).clone();
                    let difference: Vec<f64> =
                        doubles(values).iter().zip(&expected).map(|(g, e)| g - e).collect();
                    let (error, bound) = (norm(&difference), tolerance(3) * norm(&expected));
                    assert!(error <= bound, "{what}: {buffer:?} is off by {error:e}, bound {bound:e}");
                }
                assert!(equal_bits(&got[1], &gradient(2, trainable)), "{what}: gradients were changed");
                for threads in [2, 3] {
                    let same = read(threads).iter().zip(&got).all(|(a, b)| equal_bits(a, b));
                    assert!(same, "{what}: {threads} threads give other bits than one");
                }
            }
        }
    }
}

/// What the optimiser must leave alone: running statistics, and without `ema` the EMA buffer.
#[test]
fn running_statistics_and_an_unused_average_keep_their_bits() {
    let (trainable, total) = (100, 150);
    for rule in rules() {
        for ema in [false, true] {
            let mut ops = CpuOps::new(trainable, total, &[], 2).unwrap();
            three_steps(&mut ops, &Update { rule, weight_decay: 1e-2, ema }, trainable, total);
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
