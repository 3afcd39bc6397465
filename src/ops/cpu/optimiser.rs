//! The optimiser step: one sweep over the flat buffers, including the EMA. Memory bounds its speed, so each buffer
//! is read once and written once.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::context::{Context, OnCpu};
use super::memory::Shared;
use super::simd::{Element, Vector, dispatch};
use super::sweep::{each_vector, read, write};
use crate::ops::optimiser::MOST_SLOTS;
use crate::ops::{RmsPropForm, Rule, Update};

/// Elements of a task: its five pieces fit in L2 and are long enough for the prefetchers.
const CHUNK: usize = 1 << 14;

/// The L2 norm of all gradients: squares in f64, summed by chunk, then chunk by chunk. No number of fp32 overflows this,
/// so it is finite exactly if all gradients are.
///
/// # Safety
/// Nothing writes gradients meanwhile.
pub unsafe fn gradient_norm(cx: &Context) -> f64 {
    // SAFETY: the caller's promise.
    let gradients = unsafe { cx.state.gradients.floats(0, cx.state.trainable) };
    let sums: Vec<AtomicU64> = gradients.chunks(CHUNK).map(|_| AtomicU64::new(0)).collect();
    cx.parallel(sums.len(), |task, _| {
        let range = task * CHUNK..gradients.len().min((task + 1) * CHUNK);
        sums[task].store(sum_of_squares(&gradients[range]).to_bits(), Ordering::Relaxed);
    });
    sums.into_iter().map(|sum| f64::from_bits(sum.into_inner())).sum::<f64>().sqrt()
}

/// In a fixed order that is the same on every processor; the compiler makes vectors of the lanes.
fn sum_of_squares(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let mut groups = values.chunks_exact(LANES);
    for group in &mut groups {
        for (lane, &value) in lanes.iter_mut().zip(group) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    let rest = groups.remainder().iter().map(|&value| f64::from(value) * f64::from(value));
    lanes.iter().sum::<f64>() + rest.sum::<f64>()
}

/// What gradients of this norm are multiplied by, so that their norm is at most `most`; as in PyTorch.
pub fn clip(norm: f64, most: f32) -> f32 {
    (f64::from(most) / (norm + 1e-6)).min(1.0) as f32
}

impl OnCpu for Update {
    unsafe fn run<E: Element>(&self, cx: &Context) {
        let state = &cx.state;
        let (trainable, total) = (state.trainable, state.total);
        // SAFETY: no other pass runs by the caller's promise, and this one takes each buffer once.
        let (parameters, ema) = unsafe {
            (Shared::new(state.parameters.floats_mut(0, total)), Shared::new(state.ema.floats_mut(0, total)))
        };
        let slots: [Shared; MOST_SLOTS] = std::array::from_fn(|number| match state.slots.get(number) {
            // SAFETY: as above.
            Some(slot) => Shared::new(unsafe { slot.floats_mut(0, trainable) }),
            None => Shared::new(&mut []),
        });
        // SAFETY: nothing writes gradients during the update.
        let gradients = unsafe { state.gradients.floats(0, trainable) };
        let factors = if self.weight_decay.by_parameter { trainable } else { 0 };
        // SAFETY: as above.
        let factors = unsafe { state.decay_factors.floats(0, factors) };
        // Running statistics have no gradient; they only enter the EMA.
        let trained = self.frozen.parameters..trainable;
        let averaged = if self.ema { trainable + self.frozen.statistics..total } else { total..total };
        let [first, second] = [&trained, &averaged].map(|range| range.len().div_ceil(CHUNK));
        cx.parallel(first + second, |task, _| {
            let range = if task < first { chunk(&trained, task) } else { chunk(&averaged, task - first) };
            let moved = range.start.min(trainable)..range.end.min(trainable);
            // SAFETY: each task has its own chunk of every buffer.
            let parameters = unsafe { parameters.part(range.clone()) };
            let slots = slots.map(|slot| match slot.is_empty() {
                true => &mut [],
                // SAFETY: as above.
                false => unsafe { slot.part(moved.clone()) },
            });
            let ema = if self.ema {
                // SAFETY: as above.
                unsafe { ema.part(range) }
            } else {
                &mut []
            };
            let scalars = Scalars {
                rule: self.rule,
                learning_rate: cx.step.learning_rate,
                corrections: Corrections::new(self.rule, cx.step.step.saturating_sub(cx.skipped.into()) + 1),
                clip: cx.clip,
                weight_decay: self.weight_decay.rate,
                ema_decay: cx.step.ema_decay,
            };
            let factors = if factors.is_empty() { factors } else { &factors[moved.clone()] };
            let body = Scalars { learning_rate: cx.step.body_rate, ..scalars };
            let border = cx.step.body.clamp(moved.start, moved.end) - moved.start;
            let whole = Piece { parameters, gradients: &gradients[moved], factors, slots, ema };
            let [first, rest] = whole.split(border);
            if border > 0 {
                first.sweep(body);
            }
            rest.sweep(scalars);
        });
    }
}

/// The `number`-th chunk of a range of elements.
fn chunk(range: &Range<usize>, number: usize) -> Range<usize> {
    let start = range.start + number * CHUNK;
    start..range.end.min(start + CHUNK)
}

/// A piece of every buffer. The parameters and their average may be longer than the rest: then running statistics follow.
struct Piece<'a> {
    parameters: &'a mut [f32],
    gradients: &'a [f32],
    factors: &'a [f32],
    slots: [&'a mut [f32]; MOST_SLOTS],
    ema: &'a mut [f32],
}

impl<'a> Piece<'a> {
    /// The first `at` elements and the rest. Buffers that a rule or recipe does not have stay empty.
    fn split(self, at: usize) -> [Piece<'a>; 2] {
        fn halves(buffer: &mut [f32], at: usize) -> [&mut [f32]; 2] {
            let at = at.min(buffer.len());
            <[_; 2]>::from(buffer.split_at_mut(at))
        }
        let [parameters, more_parameters] = halves(self.parameters, at);
        let (gradients, more_gradients) = self.gradients.split_at(at);
        let (factors, more_factors) = self.factors.split_at(at.min(self.factors.len()));
        let [slots, more_slots] = {
            let [a, b] = self.slots.map(|slot| halves(slot, at));
            let ([a, more_a], [b, more_b]) = (a, b);
            [[a, b], [more_a, more_b]]
        };
        let [ema, more_ema] = halves(self.ema, at);
        let rest = Piece {
            parameters: more_parameters,
            gradients: more_gradients,
            factors: more_factors,
            slots: more_slots,
            ema: more_ema,
        };
        [Piece { parameters, gradients, factors, slots, ema }, rest]
    }

    fn sweep(self, scalars: Scalars) {
        sweep(scalars, self.parameters, self.gradients, self.factors, self.slots, self.ema);
    }
}

#[derive(Clone, Copy)]
struct Scalars {
    rule: Rule,
    learning_rate: f32,
    corrections: Corrections,
    /// The factor of the gradients.
    clip: f32,
    weight_decay: f32,
    ema_decay: f32,
}

/// What AdamW multiplies m and √v by, because both begin at 0: 1/(1−β₁ᵗ) and 1/√(1−β₂ᵗ).
#[derive(Clone, Copy)]
struct Corrections {
    mean: f32,
    root: f32,
}

impl Corrections {
    /// For the `made`-th step that is not skipped, from 1.
    fn new(rule: Rule, made: u64) -> Corrections {
        let Rule::AdamW { beta1, beta2, .. } = rule else { return Corrections { mean: 1.0, root: 1.0 } };
        let left = |beta: f64| -(made as f64 * beta.ln()).exp_m1();
        Corrections { mean: (1.0 / left(beta1)) as f32, root: (1.0 / left(beta2).sqrt()) as f32 }
    }
}

dispatch! {
    /// Moves the parameters that have a gradient, then the EMA of all. No decay factors mean that all are 1, no EMA that
    /// there is none.
    fn sweep(
        scalars: Scalars,
        parameters: &mut [f32],
        gradients: &[f32],
        factors: &[f32],
        slots: [&mut [f32]; MOST_SLOTS],
        ema: &mut [f32],
    ) => sweep_body;
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn sweep_body<V: Vector>(
    scalars: Scalars,
    parameters: &mut [f32],
    gradients: &[f32],
    factors: &[f32],
    mut slots: [&mut [f32]; MOST_SLOTS],
    ema: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let with_ema = !ema.is_empty();
        let rate = V::splat(scalars.learning_rate);
        let (clip, weight_decay) = (V::splat(scalars.clip), V::splat(scalars.weight_decay));
        let (kept, new) = (V::splat(scalars.ema_decay), V::splat(1.0 - scalars.ema_decay));
        let moved = gradients.len();
        each_vector!(V, moved, |at, count| {
            let p = read::<V, _>(parameters, at, count);
            let decay = if factors.is_empty() {
                weight_decay
            } else {
                read::<V, _>(factors, at, count).mul(weight_decay)
            };
            let g = read::<V, _>(gradients, at, count).mul(clip);
            let (p, g) = match scalars.rule {
                Rule::AdamW { .. } => (p.neg_mul_add(decay.mul(rate), p), g),
                _ => (p, p.mul_add(decay, g)),
            };
            let p = p.sub(step::<V>(scalars, g, rate, &mut slots, at, count));
            write(parameters, at, count, p);
            if with_ema {
                write(ema, at, count, read::<V, _>(ema, at, count).mul_add(kept, p.mul(new)));
            }
        });
        if with_ema {
            let (tail, ema) = (&parameters[moved..], &mut ema[moved..]);
            each_vector!(V, tail.len(), |at, count| {
                let p = read::<V, _>(tail, at, count);
                write(ema, at, count, read::<V, _>(ema, at, count).mul_add(kept, p.mul(new)));
            });
        }
    }
}

/// What the rule takes off a vector of parameters whose gradient is `g`, and moves its slots.
/// # Safety
/// The instruction set of `V` is present, and the slots of the rule have `count` elements from `at` on.
#[inline(always)]
unsafe fn step<V: Vector>(
    scalars: Scalars,
    g: V,
    rate: V,
    slots: &mut [&mut [f32]; MOST_SLOTS],
    at: usize,
    count: usize,
) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        match scalars.rule {
            Rule::RmsProp { form, alpha, momentum, eps } => {
                let [mean_square, buffer] = slots;
                let v = read::<V, _>(mean_square, at, count).mul(V::splat(alpha));
                let v = g.mul(V::splat(1.0 - alpha)).mul_add(g, v);
                write(mean_square, at, count, v);
                let old = read::<V, _>(buffer, at, count).mul(V::splat(momentum));
                let new = match form {
                    RmsPropForm::PyTorch => old.add(g.div(v.sqrt().add(V::splat(eps)))),
                    RmsPropForm::TensorFlow => old.add(g.mul(rate).div(v.add(V::splat(eps)).sqrt())),
                };
                write(buffer, at, count, new);
                match form {
                    RmsPropForm::PyTorch => new.mul(rate),
                    RmsPropForm::TensorFlow => new,
                }
            }
            Rule::Sgd { momentum, nesterov } => {
                let [buffer, _] = slots;
                let new = read::<V, _>(buffer, at, count).mul_add(V::splat(momentum), g);
                write(buffer, at, count, new);
                let new = if nesterov { new.mul_add(V::splat(momentum), g) } else { new };
                new.mul(rate)
            }
            Rule::AdamW { beta1, beta2, eps } => {
                let [mean_square, mean] = slots;
                let v = read::<V, _>(mean_square, at, count);
                let v = V::splat((1.0 - beta2) as f32).mul_add(g.mul(g).sub(v), v);
                write(mean_square, at, count, v);
                let m = read::<V, _>(mean, at, count);
                let m = V::splat((1.0 - beta1) as f32).mul_add(g.sub(m), m);
                write(mean, at, count, m);
                let Corrections { mean, root } = scalars.corrections;
                let divisor = v.sqrt().mul_add(V::splat(root), V::splat(eps));
                m.mul(V::splat(mean)).div(divisor).mul(rate)
            }
        }
    }
}
