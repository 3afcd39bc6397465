//! Stochastic-depth and dropout factors: pure functions of (seed, position of the sample, step).

use super::context::{Context, OnCpu};
use super::simd::Element;
use crate::ops::{DropPathMask, DropoutMask};
use crate::random::{Purpose, draw, unit};

/// 0 if the draw is below the rate, else 1/(1−rate).
fn factor(bits: u32, rate: f32) -> f32 {
    if unit(bits) < rate { 0.0 } else { 1.0 / (1.0 - rate) }
}

impl OnCpu for DropPathMask {
    unsafe fn run<E: Element>(&self, cx: &Context) {
        let step = cx.step;
        // SAFETY: the caller's promise, and the pass takes it once.
        let out = unsafe { cx.write(self.keep) };
        for (image, keep) in out.iter_mut().enumerate() {
            let position = step.first_position + image as u64;
            *keep = factor(
                draw(step.seed, position, step.step as u32, Purpose::DropPath, self.block)[0],
                self.rate,
            );
        }
    }
}

impl OnCpu for DropoutMask {
    unsafe fn run<E: Element>(&self, cx: &Context) {
        let step = cx.step;
        // SAFETY: the caller's promise, and the pass takes it once.
        let out = unsafe { cx.write(self.mask) };
        for (image, features) in out.chunks_exact_mut(self.channels).enumerate() {
            let position = step.first_position + image as u64;
            for (group, four) in features.chunks_mut(4).enumerate() {
                let bits = draw(step.seed, position, step.step as u32, Purpose::Dropout, group as u32);
                for (mask, bits) in four.iter_mut().zip(bits) {
                    *mask = factor(bits, self.rate);
                }
            }
        }
    }
}
