//! The loop.
//!
//! A step takes its batch from the loader and hands it to the device, which adds up the gradients of its
//! micro-batches and moves the weights, if all is finite. A GPU runs a step behind, so a step is told of (its log
//! line) when its figures are there, and before anything is evaluated or saved. What follows a step (a log line, an
//! evaluation, a checkpoint: `after_step`) depends on the step alone, so a run that was killed
//! and resumed does what an uninterrupted one would have done.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::engine::Engine;
use super::schedule::Schedule;
use super::session::{Draft, Session, draft, prepare};
use crate::data::{Batch, Loader, Source, Split};
use crate::ops::{Ops, StepParams};
use crate::train::checkpoint::{Metadata, RunDirectory, Snapshot};
use crate::train::device::{self, Hardware};
use crate::train::error::TrainError;
use crate::train::loading::Loading;
use crate::train::recipe::{Recipe, RunOptions};
use crate::train::report::events::*;
use crate::train::report::log::Log;
use crate::train::team::Team;

/// Steps before those that `--profile` times: the first allocate, capture and fill caches.
const PROFILE_WARM_UP: u64 = 3;

/// Trains until the schedule ends, `max_steps` is reached or `stop` is raised, and saves.
///
/// # Errors
/// [`TrainError`]; whatever was saved before is intact.
pub fn train(
    recipe: &Recipe,
    options: &RunOptions,
    source: Source,
    reporter: &mut dyn Reporter,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    struct Train<'a>(&'a Recipe, &'a RunOptions, Source, &'a mut dyn Reporter, &'a AtomicBool);
    impl device::With for Train<'_> {
        type Output = Result<Outcome, TrainError>;
        fn with<H: Hardware>(self, hardware: H) -> Self::Output {
            let Train(recipe, options, source, reporter, stop) = self;
            train_on(recipe, options, source, hardware, reporter, stop)
        }
    }
    let selected = device::select_for(options)?;
    selected.with(Train(recipe, options, source, reporter, stop))
}

/// [`train`] on hardware that was chosen already.
///
/// # Errors
/// As [`train`].
pub fn train_on<H: Hardware>(
    recipe: &Recipe,
    options: &RunOptions,
    source: Source,
    hardware: H,
    reporter: &mut dyn Reporter,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    let draft = draft(recipe, options, &source)?;
    let team = Team::join(options.ranks.membership(), || draft.identity(options, &source), stop)?;
    // The first rank tells for all.
    let (mut silent, leads) = (Silent, team.leads());
    let reporter: &mut dyn Reporter = if leads { reporter } else { &mut silent };
    let outcome = team.conclude(train_as(&team, draft, options, source, hardware, reporter, stop))?;
    reporter.finished(&outcome);
    Ok(outcome)
}

/// [`train_on`] as one of a team.
fn train_as<H: Hardware>(
    team: &Team,
    draft: Draft,
    options: &RunOptions,
    source: Source,
    hardware: H,
    reporter: &mut dyn Reporter,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    team.doing(0, "getting ready");
    let session = prepare(draft, options, &source, hardware, team, reporter)?;
    let mut header = header(&session, options, &source, team);
    let Session { recipe, arch, schedule, hardware, run, metadata, state, resumed, .. } = session;
    let processors = hardware.processors();
    let mut engine = Engine::new(&recipe, &arch, source.normalise(), hardware, team)?;
    engine.load(&state, metadata.loss_scale)?;
    header.parameters = engine.table.trainable();
    reporter.started(&header);
    let mut trainer = Trainer {
        end: schedule.steps().min(options.max_steps.unwrap_or(u64::MAX)).max(metadata.step),
        saved: metadata.step,
        log: None,
        last: None,
        seconds: 0.0,
        waited: 0.0,
        first: metadata.step,
        behind: VecDeque::with_capacity(2),
        since: Instant::now(),
        team,
        processors,
        stopping: false,
        asked: false,
        engine,
        recipe,
        options,
        source,
        reporter,
        stop,
        schedule,
        run,
        metadata,
        state,
    };
    if !resumed {
        trainer.save(false)?;
    }
    if team.leads() {
        let Metadata { step, evaluated, .. } = trainer.metadata;
        trainer.log = Some(Log::open(&trainer.run.log(), step, evaluated)?);
    }
    // Told before the device and its connections end: those at their other side would be the first to say so.
    trainer.run_steps().inspect_err(|error| team.fail(error))?;
    Ok(trainer.outcome())
}

fn header<H: Hardware>(session: &Session<H>, options: &RunOptions, source: &Source, team: &Team) -> Header {
    let Session { recipe, schedule, metadata, hardware, memory, .. } = session;
    Header {
        recipe: recipe.clone(),
        classes: source.classes(),
        parameters: 0,
        train_images: source.samples(Split::Train),
        val_images: source.samples(Split::Val),
        data: options.data.to_string(),
        fingerprint: source.fingerprint(),
        out: options.out.clone(),
        device: hardware.line(),
        ranks: team.world().size,
        threads: hardware.threads(),
        loader_threads: options.loader_threads,
        steps: schedule.steps(),
        warmup_steps: schedule.warmup(),
        first_step: metadata.step,
        last_step: schedule.steps().min(options.max_steps.unwrap_or(u64::MAX)),
        memory: memory.total(),
    }
}

/// A step that was handed to the device and has not been told of.
pub(super) struct Behind {
    pub step: u64,
    pub epoch: f64,
    pub lr: f64,
    pub data_wait: f64,
}

pub(super) struct Trainer<'a, O: Ops> {
    pub engine: Engine<O>,
    pub recipe: Recipe,
    pub options: &'a RunOptions,
    pub source: Source,
    pub team: &'a Team,
    /// Near the device; for the loader's threads.
    pub processors: Vec<usize>,
    pub reporter: &'a mut dyn Reporter,
    pub stop: &'a AtomicBool,
    /// Whether any rank was asked to stop, as all have heard; and whether they are being asked again.
    pub stopping: bool,
    pub asked: bool,
    pub schedule: Schedule,
    pub run: RunDirectory,
    pub metadata: Metadata,
    pub state: Snapshot,
    pub log: Option<Log>,
    /// Stops after this many steps.
    pub end: u64,
    /// Step of the last checkpoint, and of this call's start.
    pub saved: u64,
    pub first: u64,
    pub last: Option<EvaluationRecord>,
    /// Of this call's steps.
    pub seconds: f64,
    pub waited: f64,
    /// Steps under way: at most one between two steps, where the device runs behind.
    pub behind: VecDeque<Behind>,
    /// When the last step was told of, or whatever came after it had ended.
    pub since: Instant,
}

impl<O: Ops + Send> Trainer<'_, O> {
    fn run_steps(&mut self) -> Result<(), TrainError> {
        self.stopping = self.team.any("stop requests", self.stop.load(Ordering::Relaxed))?;
        // Interrupted while it evaluated: that comes first.
        if self.evaluation_is_due() && self.evaluate()? {
            let best = self.is_best();
            self.save(best)?;
        }
        let mut loader = self.loading().training(self.metadata.step, self.end)?;
        let profiled = self.options.profile.map(|steps| self.metadata.step + PROFILE_WARM_UP + steps);
        self.since = Instant::now();
        while self.metadata.step < self.end && !self.stopped() {
            if profiled.is_some_and(|end| self.metadata.step + self.options.profile.unwrap_or(0) == end) {
                self.tell(true)?;
                self.engine.start_profile()?;
            }
            self.team.ask("stop requests", self.stop.load(Ordering::Relaxed))?;
            self.asked = true;
            self.step(&mut loader)?;
            self.hear()?;
            if profiled == Some(self.metadata.step) {
                self.tell(true)?;
                let report = self.engine.take_profile()?;
                self.reporter.profile(&report, self.options.profile.unwrap_or(1));
                self.since = Instant::now();
            }
            let step = self.metadata.step;
            let every = self.options.checkpoint_every;
            let due = every > 0 && step.is_multiple_of(every);
            if self.evaluation_is_due() || due || step == self.end || self.stopped() {
                self.tell(true)?;
                let evaluated = self.evaluation_is_due() && self.evaluate()?;
                let best = evaluated && self.is_best();
                self.save(best)?;
                self.since = Instant::now();
            }
        }
        Ok(())
    }

    pub(super) fn loading(&self) -> Loading<'_> {
        Loading {
            source: &self.source,
            recipe: &self.recipe,
            form: self.engine.form,
            share: self.team.share(),
            threads: self.options.loader_threads,
            processors: &self.processors,
        }
    }

    fn stopped(&self) -> bool {
        self.stopping
    }

    /// Hears whether any rank was asked to stop, if that was asked.
    pub(super) fn hear(&mut self) -> Result<(), TrainError> {
        if std::mem::take(&mut self.asked) {
            self.stopping = self.team.answer()?.unwrap_or(self.stop.load(Ordering::Relaxed));
        }
        Ok(())
    }

    fn evaluation_is_due(&self) -> bool {
        let Metadata { step, evaluated, .. } = self.metadata;
        step > evaluated && self.schedule.evaluates(step)
    }

    /// One optimiser step, from the batch to the device.
    fn step(&mut self, loader: &mut Loader) -> Result<(), TrainError> {
        let waited = loader.waited();
        let index = self.metadata.step;
        self.team.doing(index + 1, "loading images");
        let batch = loader.next()?.ok_or(TrainError::DataEnded { step: index + 1 })?;
        let data_wait = (loader.waited() - waited).as_secs_f64();
        let lr = self.schedule.lr(index);
        self.team.doing(index + 1, "training");
        self.engine.step(&batch, self.params(index, &batch, lr))?;
        loader.recycle(batch);
        let epoch = self.schedule.epoch(index + 1);
        (self.metadata.step, self.metadata.epoch) = (index + 1, epoch);
        self.behind.push_back(Behind { step: index + 1, epoch, lr, data_wait });
        self.tell(false)
    }

    pub(super) fn params(&self, step: u64, batch: &Batch, learning_rate: f64) -> StepParams {
        StepParams {
            seed: self.recipe.seed,
            step,
            first_position: batch.first_position,
            learning_rate: learning_rate as f32,
            ema_decay: self.schedule.ema_decay(step) as f32,
        }
    }

    fn outcome(&self) -> Outcome {
        let Metadata { step, epoch, best, .. } = self.metadata;
        let steps = self.schedule.steps();
        let end = match step {
            _ if step == steps && !self.evaluation_is_due() => End::Finished,
            _ if self.stopped() => End::Interrupted,
            _ => End::MaxSteps,
        };
        let images = ((step - self.first) * self.recipe.batch_size as u64) as f64;
        let seconds = self.seconds.max(1e-9);
        let (out, checkpoint): (PathBuf, PathBuf) = (self.options.out.clone(), self.run.checkpoint());
        Outcome {
            end,
            step,
            steps,
            epoch,
            last: self.last,
            best,
            train_seconds: self.seconds,
            images_per_second: images / seconds,
            data_wait: self.waited / seconds,
            out,
            checkpoint,
            started_with: self.options.started_with.clone(),
        }
    }
}
