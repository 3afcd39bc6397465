//! The optimiser step: one sweep over the flat buffers, the EMA taken along. Bound by memory, so each buffer
//! is read once and written once.

use super::OnCpu;
use super::context::{Context, Shared};
use super::simd::Vector;
use super::sweep::{each_vector, read, write};
use crate::dispatch;
use crate::ops::{RmsPropForm, Rule, Update};

/// Elements of a task: its five pieces fit in L2 and keep the prefetchers going.
const CHUNK: usize = 1 << 14;

impl OnCpu for Update {
    fn run(&self, cx: &Context) {
        let state = &cx.state;
        let (trainable, total) = (state.trainable, state.total);
        // SAFETY: the update is the only pass that runs, and takes each buffer once.
        let [parameters, mean_square, momentum, ema] = unsafe {
            [
                Shared::new(state.parameters.floats_mut(0, total)),
                Shared::new(state.mean_square.floats_mut(0, trainable)),
                Shared::new(state.momentum.floats_mut(0, trainable)),
                Shared::new(state.ema.floats_mut(0, total)),
            ]
        };
        // SAFETY: nobody writes gradients during the update.
        let gradients = unsafe { state.gradients.floats(0, trainable) };
        let swept = if self.ema { total } else { trainable };
        cx.parallel(swept.div_ceil(CHUNK), |task, _| {
            let range = task * CHUNK..swept.min((task + 1) * CHUNK);
            // Running statistics have no gradient: they only move the EMA.
            let moved = range.start.min(trainable)..range.end.min(trainable);
            // SAFETY: each task has its own chunk of every buffer.
            let (parameters, mean_square, momentum) = unsafe {
                (
                    parameters.part(range.clone()),
                    mean_square.part(moved.clone()),
                    momentum.part(moved.clone()),
                )
            };
            let ema = if self.ema {
                // SAFETY: as above.
                unsafe { ema.part(range) }
            } else {
                &mut []
            };
            let factors = Factors {
                rule: self.rule,
                learning_rate: cx.step.learning_rate,
                weight_decay: self.weight_decay,
                ema_decay: cx.step.ema_decay,
            };
            sweep(factors, parameters, &gradients[moved], mean_square, momentum, ema);
        });
    }
}

#[derive(Clone, Copy)]
struct Factors {
    rule: Rule,
    learning_rate: f32,
    weight_decay: f32,
    ema_decay: f32,
}

dispatch! {
    /// Moves the parameters that have a gradient, then the EMA of all; an empty EMA is none.
    fn sweep(factors: Factors, parameters: &mut [f32], gradients: &[f32], mean_square: &mut [f32], momentum: &mut [f32], ema: &mut [f32])
        => sweep_body;
}

#[inline(always)]
fn sweep_body<V: Vector>(
    factors: Factors,
    parameters: &mut [f32],
    gradients: &[f32],
    mean_square: &mut [f32],
    momentum: &mut [f32],
    ema: &mut [f32],
) {
    let with_ema = !ema.is_empty();
    let rate = V::splat(factors.learning_rate);
    let weight_decay = V::splat(factors.weight_decay);
    let (kept, new) = (V::splat(factors.ema_decay), V::splat(1.0 - factors.ema_decay));
    let moved = gradients.len();
    each_vector!(V, moved, |at, count| {
        let p = read::<V>(parameters, at, count);
        let g = p.mul_add(weight_decay, read(gradients, at, count));
        let old = read::<V>(momentum, at, count);
        let (buffer, step) = match factors.rule {
            Rule::RmsProp { form, alpha, momentum, eps } => {
                let v = read::<V>(mean_square, at, count).mul(V::splat(alpha));
                let v = g.mul(V::splat(1.0 - alpha)).mul_add(g, v);
                write(mean_square, at, count, v);
                let old = old.mul(V::splat(momentum));
                match form {
                    RmsPropForm::PyTorch => {
                        let buffer = old.add(g.div(v.sqrt().add(V::splat(eps))));
                        (buffer, buffer.mul(rate))
                    }
                    RmsPropForm::TensorFlow => {
                        let buffer = old.add(g.mul(rate).div(v.add(V::splat(eps)).sqrt()));
                        (buffer, buffer)
                    }
                }
            }
            Rule::Sgd { momentum } => {
                let buffer = old.mul_add(V::splat(momentum), g);
                (buffer, buffer.mul(rate))
            }
        };
        write(momentum, at, count, buffer);
        let p = p.sub(step);
        write(parameters, at, count, p);
        if with_ema {
            write(ema, at, count, read::<V>(ema, at, count).mul_add(kept, p.mul(new)));
        }
    });
    if with_ema {
        let (tail, ema) = (&parameters[moved..], &mut ema[moved..]);
        each_vector!(V, tail.len(), |at, count| {
            let p = read::<V>(tail, at, count);
            write(ema, at, count, read::<V>(ema, at, count).mul_add(kept, p.mul(new)));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{THREADS, assert_close, values};
    use super::super::{CpuDevice, CpuOps};
    use super::*;
    use crate::ops::{Buffer, Ops, Plan, StepParams, Tensors};

    const STEPS: usize = 3;
    /// Several tasks, the border between trainable and not inside one of them and inside a vector.
    const TRAINABLE: usize = 2 * CHUNK + 1003;
    const TOTAL: usize = TRAINABLE + CHUNK + 13;
    const BUFFERS: [Buffer; 4] = [Buffer::Parameters, Buffer::MeanSquare, Buffer::Momentum, Buffer::Ema];

    fn step(number: usize) -> StepParams {
        let ema_decay = [0.1, 0.9, 0.999][number];
        StepParams { learning_rate: 0.1 / (1 + number) as f32, ema_decay, ..StepParams::default() }
    }

    fn gradients(number: usize) -> Vec<f32> {
        values(10 + number as u64, TRAINABLE, -1.0, 1.0)
    }

    /// What the buffers hold after the steps.
    fn run(pass: &Update, threads: usize) -> [Vec<f32>; 4] {
        let device = CpuDevice { threads };
        let plan = Plan::new(&device, &[], &Tensors::default(), &[]);
        let mut ops = CpuOps::new(TRAINABLE, TOTAL, &[&plan], threads).unwrap();
        ops.bind(&plan).unwrap();
        ops.write_state(Buffer::Parameters, &values(1, TOTAL, -1.0, 1.0)).unwrap();
        ops.write_state(Buffer::Ema, &values(2, TOTAL, -1.0, 1.0)).unwrap();
        ops.write_state(Buffer::MeanSquare, &vec![pass.rule.initial_mean_square(); TRAINABLE]).unwrap();
        for number in 0..STEPS {
            ops.set_step(step(number)).unwrap();
            ops.write_state(Buffer::Gradients, &gradients(number)).unwrap();
            ops.run(&(*pass).into()).unwrap();
        }
        BUFFERS.map(|buffer| {
            let length = if matches!(buffer, Buffer::Parameters | Buffer::Ema) { TOTAL } else { TRAINABLE };
            let mut out = vec![0.0; length];
            ops.read_state(buffer, &mut out).unwrap();
            out
        })
    }

    fn expected(pass: &Update) -> [Vec<f64>; 4] {
        let widen = |values: Vec<f32>| -> Vec<f64> { values.into_iter().map(f64::from).collect() };
        let (mut p, mut ema) = (widen(values(1, TOTAL, -1.0, 1.0)), widen(values(2, TOTAL, -1.0, 1.0)));
        let mut v = vec![pass.rule.initial_mean_square() as f64; TRAINABLE];
        let mut buf = vec![0.0; TRAINABLE];
        for number in 0..STEPS {
            let (lr, d) = (step(number).learning_rate as f64, step(number).ema_decay as f64);
            for (i, g) in widen(gradients(number)).into_iter().enumerate() {
                let g = g + pass.weight_decay as f64 * p[i];
                match pass.rule {
                    Rule::RmsProp { form, alpha, momentum, eps } => {
                        let (alpha, momentum, eps) = (alpha as f64, momentum as f64, eps as f64);
                        v[i] = alpha * v[i] + (1.0 - alpha) * g * g;
                        if form == RmsPropForm::PyTorch {
                            buf[i] = momentum * buf[i] + g / (v[i].sqrt() + eps);
                            p[i] -= lr * buf[i];
                        } else {
                            buf[i] = momentum * buf[i] + lr * g / (v[i] + eps).sqrt();
                            p[i] -= buf[i];
                        }
                    }
                    Rule::Sgd { momentum } => {
                        buf[i] = momentum as f64 * buf[i] + g;
                        p[i] -= lr * buf[i];
                    }
                }
            }
            if pass.ema {
                ema.iter_mut().zip(&p).for_each(|(ema, p)| *ema = d * *ema + (1.0 - d) * p);
            }
        }
        [p, v, buf, ema]
    }

    #[test]
    fn three_steps_of_every_rule_follow_the_formulas() {
        let rms = |form| Rule::RmsProp { form, alpha: 0.9, momentum: 0.8, eps: 1e-3 };
        let rules = [rms(RmsPropForm::PyTorch), rms(RmsPropForm::TensorFlow), Rule::Sgd { momentum: 0.9 }];
        for rule in rules {
            for (weight_decay, ema) in [(0.0, false), (1e-2, true)] {
                let pass = Update { rule, weight_decay, ema };
                let got = run(&pass, 1);
                for threads in &THREADS[1..] {
                    assert!(run(&pass, *threads) == got, "{pass:?} depends on the threads");
                }
                for ((buffer, got), expected) in BUFFERS.iter().zip(&got).zip(expected(&pass)) {
                    assert_close(&format!("{buffer:?} of {pass:?}"), got, &expected, 1e-6);
                }
            }
        }
    }
}
