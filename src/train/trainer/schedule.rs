//! The learning rate, the decay of the moving average and the evaluations, as pure functions of the step.
//!
//! With N images, batches of B, E epochs and W epochs of warm-up, there are T = round(E·N/B) steps, of which
//! round(W·N/B) are warm-up. The rate of step s (from 0) is base·(s+1)/W during warm-up, or, if the recipe says where
//! the warm-up begins, start + (base − start)·s/W. After it, with done = (s−W)/(T−W) and never below min:
//!
//! | schedule | rate |
//! |---|---|
//! | cosine | min + (base − min)·½(1 + cos π·done) |
//! | linear | min + (base − min)·(1 − done) |
//! | exponential | base·r^⌊s/d⌋, d = steps of `decay-epochs` |
//! | steps | base·r^k, k = milestones whose round(epochs·N/B) steps are done |
//! | constant | base |
//!
//! The rate is that of the classifier. All other parameters have `body-lr` times this rate, but none in the first
//! round(`classifier-epochs`·N/B) steps.
//!
//! The schedule has no state, so a resumed run has the same rates as an uninterrupted one.

use crate::train::checkpoint::Metadata;
use crate::train::recipe::Recipe;
use crate::train::schedule_kind::ScheduleKind;

/// The schedule of a recipe over a number of images.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    base: f64,
    warmup_start: Option<f64>,
    falls: Falls,
    min: f64,
    steps: u64,
    warmup: u64,
    ema: f64,
    /// Steps in which only the classifier moves, and the share of the rate that all else has after them.
    classifier_only: u64,
    body: f64,
    /// Steps of an epoch and steps between evaluations; may be fractions.
    steps_per_epoch: f64,
    evaluate_every: f64,
}

/// How the rate falls after the warm-up; lengths are in steps.
#[derive(Clone, Debug, PartialEq)]
enum Falls {
    Cosine,
    Linear,
    Exponential { rate: f64, every: f64 },
    Steps { rate: f64, milestones: Vec<u64> },
    Not,
}

impl Falls {
    fn new(recipe: &Recipe, steps_per_epoch: f64) -> Falls {
        let rate = recipe.decay_rate.unwrap_or(1.0);
        match recipe.schedule {
            ScheduleKind::Cosine => Falls::Cosine,
            ScheduleKind::Linear => Falls::Linear,
            ScheduleKind::Exponential => {
                let every = recipe.decay_epochs.unwrap_or(f64::INFINITY) * steps_per_epoch;
                Falls::Exponential { rate, every }
            }
            ScheduleKind::Steps => {
                let steps = |epochs: &f64| (epochs * steps_per_epoch).round() as u64;
                Falls::Steps { rate, milestones: recipe.milestones.iter().map(steps).collect() }
            }
            ScheduleKind::Constant => Falls::Not,
        }
    }
}

/// A quotient so little below a whole number is that number, and was rounded.
const ROUNDED: f64 = 1e-9;

/// Too few images or epochs for one step.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error(
    "--epochs {epochs} of {images} images are less than half a step of --batch-size {batch}: nothing to do"
)]
pub struct NoSteps {
    epochs: f64,
    images: usize,
    batch: usize,
}

impl Schedule {
    /// # Errors
    /// [`NoSteps`] if the epochs round to no step.
    pub fn new(recipe: &Recipe, images: usize) -> Result<Schedule, NoSteps> {
        let steps_per_epoch = images as f64 / recipe.batch_size as f64;
        let steps = (recipe.epochs * steps_per_epoch).round() as u64;
        if steps == 0 {
            return Err(NoSteps { epochs: recipe.epochs, images, batch: recipe.batch_size });
        }
        Ok(Schedule {
            base: recipe.lr,
            warmup_start: recipe.warmup_lr,
            falls: Falls::new(recipe, steps_per_epoch),
            min: recipe.min_lr,
            steps,
            warmup: ((recipe.warmup_epochs * steps_per_epoch).round() as u64).min(steps),
            ema: recipe.ema,
            classifier_only: (recipe.classifier_epochs.unwrap_or(0.0) * steps_per_epoch).round() as u64,
            body: recipe.body_lr.unwrap_or(1.0),
            steps_per_epoch,
            evaluate_every: recipe.eval_every * steps_per_epoch,
        })
    }

    /// Steps in all: T.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The stage of the step that follows `step` steps, of so many: they divide the run evenly.
    pub fn stage(&self, step: u64, stages: usize) -> usize {
        (1..stages).take_while(|&number| self.stage_begins(number, stages) <= step).count()
    }

    /// The steps before a stage: round(number·T/stages).
    pub fn stage_begins(&self, number: usize, stages: usize) -> u64 {
        (self.steps as f64 * number as f64 / stages as f64).round() as u64
    }

    /// Steps of the warm-up.
    pub fn warmup(&self) -> u64 {
        self.warmup
    }

    /// The share of the learning rate that parameters before the classifier have in the step that follows `step` steps.
    pub fn body_share(&self, step: u64) -> f64 {
        if step < self.classifier_only { 0.0 } else { self.body }
    }

    /// The learning rate of the step that follows `step` steps.
    pub fn lr(&self, step: u64) -> f64 {
        let Schedule { base, min, warmup, .. } = *self;
        if step < warmup {
            return match self.warmup_start {
                Some(start) => start + (base - start) * (step as f64 / warmup as f64),
                None => base * ((step + 1) as f64 / warmup as f64),
            };
        }
        let done = (step - warmup) as f64 / (self.steps - warmup).max(1) as f64;
        match &self.falls {
            Falls::Cosine => min + (base - min) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Falls::Linear => min + (base - min) * (1.0 - done),
            Falls::Exponential { rate, every } => {
                (base * rate.powf((step as f64 / every + ROUNDED).floor())).max(min)
            }
            Falls::Steps { rate, milestones } => {
                let passed = milestones.iter().filter(|&&milestone| milestone <= step).count();
                (base * rate.powi(passed as i32)).max(min)
            }
            Falls::Not => base,
        }
    }

    /// The decay of the moving average in that step: min(decay, (1+s)/(10+s)), so that the initial values do not
    /// dominate the first averages.
    pub fn ema_decay(&self, step: u64) -> f64 {
        self.ema.min((1.0 + step as f64) / (10.0 + step as f64))
    }

    /// The epochs of `done` steps.
    pub fn epoch(&self, done: u64) -> f64 {
        done as f64 / self.steps_per_epoch
    }

    /// Evaluations up to the one that follows `done` steps.
    pub fn evaluations(&self, done: u64) -> u64 {
        (1..=done).filter(|&step| self.evaluates(step)).count() as u64
    }

    /// Whether so many evaluations were not better than the best that the run ends. A function of the checkpoint, so a
    /// resumed run ends at the same step.
    pub fn patience_is_over(&self, patience: Option<u64>, metadata: &Metadata) -> bool {
        let (Some(patience), Some(best)) = (patience, metadata.best) else { return false };
        let since_best = self.evaluations(metadata.evaluated).saturating_sub(self.evaluations(best.step));
        since_best >= patience
    }

    /// Whether an evaluation follows `done` steps: the k-th follows step round(k·eval-every·N/B), and one follows the
    /// last step.
    pub fn evaluates(&self, done: u64) -> bool {
        let number = (done as f64 / self.evaluate_every).round().max(1.0);
        done == self.steps || (done > 0 && (number * self.evaluate_every).round() as u64 == done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    fn schedule(change: impl Fn(&mut Recipe), images: usize) -> Schedule {
        let mut recipe = Recipe::reference(Variant::B0, 10);
        change(&mut recipe);
        Schedule::new(&recipe, images).unwrap()
    }

    #[test]
    fn body_rests_in_the_first_epochs_and_then_has_its_share() {
        let s = schedule(|r| (r.epochs, r.classifier_epochs, r.body_lr) = (3.0, Some(1.0), Some(0.25)), 100);
        let before = s.steps() / 3;
        assert!(before > 1);
        assert_eq!(
            [0, before - 1, before, s.steps() - 1].map(|step| s.body_share(step)),
            [0.0, 0.0, 0.25, 0.25]
        );
        let plain = schedule(|r| r.epochs = 3.0, 100);
        assert_eq!([0, 1, 2].map(|step| plain.body_share(step)), [1.0; 3]);
    }

    #[test]
    fn rate_follows_hand_computed_values() {
        // 100 images, batch 10: 10 steps an epoch; 3 epochs, 1 of warm-up.
        let s = schedule(|r| (r.epochs, r.warmup_epochs, r.lr) = (3.0, 1.0, 0.4), 100);
        assert_eq!((s.steps(), s.warmup()), (30, 10));
        let expected = [
            (0, 0.04),
            (4, 0.2),
            (9, 0.4),
            (10, 0.4),                  // cos 0
            (15, 0.341_421_356_237_31), // 0.2·(1 + √½)
            (20, 0.2),                  // cos π/2
            (25, 0.058_578_643_762_69),
            (29, 0.002_462_331_880_97), // 0.2·(1 + cos 0.95π)
        ];
        for (step, rate) in expected {
            assert!((s.lr(step) - rate).abs() < 1e-13, "step {step}: {}", s.lr(step));
        }
    }

    #[test]
    fn stages_divide_the_steps_evenly() {
        // 10 steps in 4 stages: they begin at 0, 2.5, 5 and 7.5, rounded.
        let s = schedule(|r| (r.epochs, r.warmup_epochs) = (1.0, 0.0), 100);
        let stages: Vec<usize> = (0..10).map(|step| s.stage(step, 4)).collect();
        assert_eq!(stages, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]);
        assert_eq!([0, 1, 2, 3, 4].map(|number| s.stage_begins(number, 4)), [0, 3, 5, 8, 10]);
        assert!((0..10).all(|step| s.stage(step, 1) == 0));
        // More stages than steps: some are empty.
        let one = schedule(|r| (r.epochs, r.warmup_epochs) = (0.1, 0.0), 100);
        assert_eq!((one.steps(), one.stage(0, 3)), (1, 1));
    }

    #[test]
    fn steps_are_rounded_from_fractions() {
        // 95 images, batch 10: 9.5 steps an epoch; 2.5 epochs are 23.75 steps, 0.3 epochs 2.85.
        let s = schedule(|r| (r.epochs, r.warmup_epochs) = (2.5, 0.3), 95);
        assert_eq!((s.steps(), s.warmup()), (24, 3));
        assert_eq!(s.epoch(19), 2.0);
        let after: Vec<u64> = (0..=24).filter(|&done| s.evaluates(done)).collect();
        assert_eq!(after, [10, 19, 24]); // 9.5 and 19 rounded, and the last step
        assert!(s.lr(2) == s.lr(3) && s.lr(4) < s.lr(3));
    }

    #[test]
    fn rate_falls_no_lower_than_the_least() {
        let change = |kind, milestones: &[f64]| {
            let milestones = milestones.to_vec();
            move |r: &mut Recipe| {
                (r.epochs, r.warmup_epochs, r.lr, r.schedule) = (3.0, 0.0, 0.4, kind);
                (r.decay_rate, r.min_lr, r.milestones) = (Some(0.5), 0.15, milestones.clone());
                r.decay_epochs = Some(1.0);
            }
        };
        for kind in [ScheduleKind::Exponential, ScheduleKind::Steps] {
            let s = schedule(change(kind, &[1.0, 2.0]), 100);
            let rates = [0, 9, 10, 19, 20, 29].map(|step| s.lr(step));
            assert_eq!(rates, [0.4, 0.4, 0.2, 0.2, 0.15, 0.15], "{kind}");
        }
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear] {
            let s = schedule(change(kind, &[]), 100);
            assert!((0..30).all(|step| s.lr(step) > 0.15 && s.lr(step) <= 0.4), "{kind}");
            assert!((s.lr(30) - 0.15).abs() < 1e-15, "{kind}");
        }
    }

    /// 1.6 epochs of 3 steps are 4.8 steps, in binary a little more, so that 24 steps seem to be a little less than five times
    /// that.
    #[test]
    fn drop_at_a_whole_step_is_not_missed_by_rounding() {
        let every = |epochs: f64, images| {
            let change = move |r: &mut Recipe| {
                (r.epochs, r.warmup_epochs, r.lr, r.schedule) = (30.0, 0.0, 1.0, ScheduleKind::Exponential);
                (r.decay_rate, r.decay_epochs) = (Some(0.5), Some(epochs));
            };
            let s = schedule(change, images);
            (1..s.steps()).filter(|&step| s.lr(step) < s.lr(step - 1)).collect::<Vec<u64>>()
        };
        assert_eq!(every(1.6, 30)[..5], [5, 10, 15, 20, 24]);
        assert_eq!(every(2.4, 100), (1..=12).map(|k| 24 * k).collect::<Vec<u64>>());
    }

    #[test]
    fn rate_is_full_in_the_first_step_without_warmup() {
        let s = schedule(|r| (r.epochs, r.warmup_epochs, r.lr) = (1.0, 0.0, 0.4), 100);
        assert_eq!(s.lr(0), 0.4);
        assert!(s.lr(9) > 0.0);
    }

    #[test]
    fn evaluations_may_be_rarer_or_denser_than_epochs() {
        let every = |epochs| {
            let s = schedule(|r| (r.epochs, r.warmup_epochs, r.eval_every) = (3.0, 0.0, epochs), 100);
            (0..=30).filter(|&done| s.evaluates(done)).collect::<Vec<u64>>()
        };
        let counted = schedule(|r| (r.epochs, r.warmup_epochs, r.eval_every) = (3.0, 0.0, 1.25), 100);
        let counts = [0, 12, 13, 24, 25, 29, 30].map(|done| counted.evaluations(done));
        assert_eq!(counts, [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(every(1.0), [10, 20, 30]);
        assert_eq!(every(2.0), [20, 30]);
        assert_eq!(every(1.25), [13, 25, 30]);
        assert_eq!(every(100.0), [30]);
        assert_eq!(every(0.01), (1..=30).collect::<Vec<u64>>());
    }

    #[test]
    fn ema_decay_warms_up() {
        let s = schedule(|r| r.ema = 0.99, 100);
        assert_eq!(s.ema_decay(0), 0.1);
        assert_eq!(s.ema_decay(8), 0.5);
        assert_eq!(s.ema_decay(890), 0.99);
        assert_eq!(s.ema_decay(1_000_000), 0.99);
    }

    #[test]
    fn schedule_without_a_step_is_an_error() {
        let mut recipe = Recipe::reference(Variant::B0, 1000);
        recipe.epochs = 0.04;
        let line = Schedule::new(&recipe, 100).unwrap_err().to_string();
        assert!(line.contains("--epochs 0.04") && line.contains("--batch-size 1000"), "{line}");
    }
}
