//! Stochastic-depth and dropout factors: pure functions of (seed, position of the sample, step).

use super::OnCpu;
use super::context::Context;
use crate::ops::{DropPathMask, DropoutMask};
use crate::random::{Purpose, draw, unit};

/// 0 where a draw falls below the rate, else 1/(1−rate).
fn factor(bits: u32, rate: f32) -> f32 {
    if unit(bits) < rate { 0.0 } else { 1.0 / (1.0 - rate) }
}

impl OnCpu for DropPathMask {
    fn run(&self, cx: &Context) {
        let (step, out) = (cx.step, cx.write(self.keep));
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
    fn run(&self, cx: &Context) {
        let (step, out) = (cx.step, cx.write(self.mask));
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

#[cfg(test)]
mod tests {
    use super::super::testing::Setup;
    use super::*;
    use crate::ops::StepParams;

    const STEP: StepParams =
        StepParams { seed: 7, step: 11, first_position: 640, learning_rate: 0.0, ema_decay: 0.0 };

    fn keep(step: StepParams, images: usize, block: u32, rate: f32) -> Vec<f32> {
        let mut s = Setup::default();
        s.step = step;
        let pass = DropPathMask { images, block, rate, keep: s.output(images) };
        s.run(&[pass.into()]).get(pass.keep).to_vec()
    }

    fn mask(step: StepParams, images: usize, channels: usize, rate: f32) -> Vec<f32> {
        let mut s = Setup::default();
        s.step = step;
        let pass = DropoutMask { images, channels, rate, mask: s.output(images * channels) };
        s.run(&[pass.into()]).get(pass.mask).to_vec()
    }

    fn check_rate(factors: &[f32], rate: f32) {
        assert!(factors.iter().all(|&f| f == 0.0 || f == 1.0 / (1.0 - rate)), "rate {rate}");
        let (count, rate) = (factors.len() as f64, rate as f64);
        let dropped = factors.iter().filter(|&&f| f == 0.0).count() as f64;
        let sigma = (count * rate * (1.0 - rate)).sqrt();
        assert!((dropped - count * rate).abs() <= 5.0 * sigma, "rate {rate}: {dropped} of {count} dropped");
    }

    #[test]
    fn the_rate_is_honoured() {
        for rate in [0.0, 0.0125, 0.2, 0.5] {
            check_rate(&keep(STEP, 20_000, 3, rate), rate);
            check_rate(&mask(STEP, 40, 1282, rate), rate);
        }
    }

    #[test]
    fn a_sample_s_factors_do_not_depend_on_how_the_batch_is_cut() {
        let later = StepParams { first_position: STEP.first_position + 24, ..STEP };
        assert_eq!(keep(STEP, 64, 3, 0.3)[24..], keep(later, 40, 3, 0.3));
        assert_eq!(mask(STEP, 64, 100, 0.3)[24 * 100..], mask(later, 40, 100, 0.3));
    }

    /// Two independent masks of rate 1/2 agree in half of the places.
    #[test]
    fn seed_step_block_and_position_each_make_another_mask() {
        let steps = [
            StepParams { seed: 8, ..STEP },
            StepParams { step: 12, ..STEP },
            StepParams { first_position: 641, ..STEP },
        ];
        let count = 4000;
        let (path, features) = (keep(STEP, count, 3, 0.5), mask(STEP, 4, 1000, 0.5));
        let mut others: Vec<_> = steps.map(|step| (&path, keep(step, count, 3, 0.5))).into();
        others.push((&path, keep(STEP, count, 4, 0.5)));
        others.extend(steps.map(|step| (&features, mask(step, 4, 1000, 0.5))));
        for (number, (one, other)) in others.iter().enumerate() {
            let same = one.iter().zip(other).filter(|(a, b)| a == b).count() as f64;
            let sigma = (count as f64 / 4.0).sqrt();
            assert!((same - count as f64 / 2.0).abs() <= 5.0 * sigma, "mask {number}: {same} the same");
        }
    }
}
