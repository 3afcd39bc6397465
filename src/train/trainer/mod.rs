//! Training: preparing a run, the loop over its steps, and what follows each step.
//!
//! | module | |
//! |---|---|
//! | `session` | from a recipe to a run that is ready for its next step |
//! | [`run`] | the loop |
//! | [`engine`] | a device with the networks on it: one step, one evaluation |
//! | `after_step` | the results of a step, evaluating, saving |
//! | [`schedule`] | learning rate, moving average and evaluations as functions of the step |
//! | [`not_finite`] | finds the layer where the first value became infinite or NaN |

mod after_step;
pub mod engine;
pub mod not_finite;
pub mod run;
pub mod schedule;
pub(super) mod session;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use engine::Engine;
use schedule::Schedule;

use super::checkpoint::{Metadata, RunDirectory, Snapshot};
use super::error::TrainError;
use super::loading::Loading;
use super::options::RunOptions;
use super::progressive::Stage;
use super::recipe::Recipe;
use super::report::events::{EvaluationRecord, Event, Reporter};
use super::report::log::Log;
use super::team::Team;
use crate::data::{Batch, Source};
use crate::ops::{Ops, StepParams};

/// A run in progress. [`run`] takes its steps, `after_step` does what follows them.
struct Trainer<'a, O: Ops> {
    engine: Engine<O>,
    recipe: Recipe,
    options: &'a RunOptions,
    source: Source,
    team: &'a Team,
    loader_threads: usize,
    /// Processors near the device, for the loader's threads.
    processors: Vec<usize>,
    reporter: &'a mut dyn Reporter,
    /// At rank 0.
    log: Option<Log>,
    schedule: Schedule,
    /// Elements of the parameters before the classifier.
    body: usize,
    stages: Vec<Stage>,
    directory: RunDirectory,
    metadata: Metadata,
    state: Snapshot,
    /// Set when this process is asked to stop.
    stop: &'a AtomicBool,
    /// Whether any rank was asked to stop, as all ranks have agreed.
    stopping: bool,
    /// Whether the ranks are being asked again, and the answer has not been received.
    asked: bool,
    /// The step before which this call began, and the step at which it ends.
    first_step: u64,
    last_step: u64,
    /// Step of the last checkpoint.
    saved_step: u64,
    last_evaluation: Option<EvaluationRecord>,
    /// Steps that the device computes: at most one between two steps, if the device is asynchronous.
    in_flight: VecDeque<StepInFlight>,
    /// When the results of the last step arrived, or when the work after it ended.
    timer: Instant,
    /// Seconds of this call's steps, and how many of them the steps waited for images.
    train_seconds: f64,
    wait_seconds: f64,
}

/// A step that was submitted to the device and whose results have not been reported.
struct StepInFlight {
    step: u64,
    epoch: f64,
    lr: f64,
    data_wait: f64,
    /// The device may still read it.
    batch: Batch,
}

impl<O: Ops> Trainer<'_, O> {
    /// Writes an event to the log and to the reporter.
    fn emit(&mut self, event: Event) -> Result<(), TrainError> {
        if let Some(log) = &mut self.log {
            log.append(event)?;
        }
        self.reporter.report(event);
        Ok(())
    }

    /// Receives the answer whether any rank was asked to stop, if the ranks are being asked.
    fn receive_stop(&mut self) -> Result<(), TrainError> {
        if std::mem::take(&mut self.asked) {
            self.stopping = self.team.answer()?.unwrap_or(self.stop.load(Ordering::Relaxed));
        }
        Ok(())
    }

    fn evaluation_is_due(&self) -> bool {
        let Metadata { step, evaluated, .. } = self.metadata;
        step > evaluated && self.schedule.evaluates(step)
    }

    /// Whether the run ends by its patience.
    fn patience_is_over(&self) -> bool {
        self.schedule.patience_is_over(self.recipe.patience, &self.metadata)
    }

    /// The stage of the next step.
    fn stage(&self) -> Stage {
        let number = self.schedule.stage(self.metadata.step, self.stages.len());
        self.stages[number]
    }

    /// The steps of this call that end with the stage of the next step.
    fn stage_ends(&self) -> u64 {
        self.schedule.stage_begins(self.stage().number + 1, self.stages.len()).min(self.last_step)
    }

    fn loading(&self) -> Loading<'_> {
        Loading {
            source: &self.source,
            recipe: &self.recipe,
            form: self.engine.form,
            share: self.team.share(),
            threads: self.loader_threads,
            memory: self.engine.host_memory(),
            processors: &self.processors,
        }
    }

    fn step_params(&self, step: u64, batch: &Batch, learning_rate: f64) -> StepParams {
        StepParams {
            seed: self.recipe.seed,
            step,
            first_position: batch.first_position,
            learning_rate: learning_rate as f32,
            body: self.body,
            body_rate: (learning_rate * self.schedule.body_share(step)) as f32,
            ema_decay: self.schedule.ema_decay(step) as f32,
        }
    }
}
