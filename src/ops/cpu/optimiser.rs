//! The optimiser step: one sweep over the flat buffers, the EMA taken along. Bound by memory, so each buffer
//! is read once and written once.

use super::context::{Context, Shared};
use super::simd::Vector;
use super::sweep::{each_vector, read, write};
use crate::dispatch;
use crate::ops::{RmsPropForm, Rule, Update};

/// Elements of a task: its five pieces fit in L2 and keep the prefetchers going.
const CHUNK: usize = 1 << 14;

pub fn update(cx: &Context, p: &Update) {
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
    let swept = if p.ema { total } else { trainable };
    cx.parallel(swept.div_ceil(CHUNK), |task, _| {
        let range = task * CHUNK..swept.min((task + 1) * CHUNK);
        // Running statistics have no gradient: they only move the EMA.
        let moved = range.start.min(trainable)..range.end.min(trainable);
        // SAFETY: each task has its own chunk of every buffer.
        let (parameters, mean_square, momentum) = unsafe {
            (parameters.part(range.clone()), mean_square.part(moved.clone()), momentum.part(moved.clone()))
        };
        let ema = if p.ema {
            // SAFETY: as above.
            unsafe { ema.part(range) }
        } else {
            &mut []
        };
        let factors = Factors {
            rule: p.rule,
            learning_rate: cx.step.learning_rate,
            weight_decay: p.weight_decay,
            ema_decay: cx.step.ema_decay,
        };
        sweep(factors, parameters, &gradients[moved], mean_square, momentum, ema);
    });
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
