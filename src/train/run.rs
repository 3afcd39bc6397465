//! The loop.
//!
//! A step takes its batch from the loader and hands it to the device, which adds up the gradients of its
//! micro-batches and moves the weights, if all is finite. A GPU runs a step behind, so a step is told of (its log
//! line) when its figures are there, and before anything is evaluated or saved. What follows a step (a log line, an evaluation, a checkpoint) depends on the
//! step alone, so a run that was killed and resumed does what an uninterrupted one would have done.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::checkpoint::{Metadata, RunDirectory, Snapshot};
use super::device::{self, Hardware};
use super::engine::Engine;
use super::error::TrainError;
use super::evaluate::rate;
use super::events::*;
use super::log::Log;
use super::memory::LOADER_AHEAD;
use super::recipe::{Recipe, RunOptions};
use super::schedule::Schedule;
use super::session::{Draft, Session, draft, prepare};
use super::team::Team;
use crate::data::loader::evaluation_steps;
use crate::data::{Batch, Form, Loader, LoaderConfig, Share, Source, Split};
use crate::ops::{Ops, StepFigures, StepParams};

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
struct Behind {
    step: u64,
    epoch: f64,
    lr: f64,
    data_wait: f64,
}

struct Trainer<'a, O: Ops> {
    engine: Engine<O>,
    recipe: Recipe,
    options: &'a RunOptions,
    source: Source,
    team: &'a Team,
    /// Near the device; for the loader's threads.
    processors: Vec<usize>,
    reporter: &'a mut dyn Reporter,
    stop: &'a AtomicBool,
    /// Whether any rank was asked to stop, as all have heard; and whether they are being asked again.
    stopping: bool,
    asked: bool,
    schedule: Schedule,
    run: RunDirectory,
    metadata: Metadata,
    state: Snapshot,
    log: Option<Log>,
    /// Stops after this many steps.
    end: u64,
    /// Step of the last checkpoint, and of this call's start.
    saved: u64,
    first: u64,
    last: Option<EvaluationRecord>,
    /// Of this call's steps.
    seconds: f64,
    waited: f64,
    /// Steps under way: at most one between two steps, where the device runs behind.
    behind: VecDeque<Behind>,
    /// When the last step was told of, or whatever came after it had ended.
    since: Instant,
}

impl<O: Ops + Send> Trainer<'_, O> {
    fn run_steps(&mut self) -> Result<(), TrainError> {
        self.stopping = self.team.any("stop requests", self.stop.load(Ordering::Relaxed))?;
        // Interrupted while it evaluated: that comes first.
        if self.evaluation_is_due() && self.evaluate()? {
            let best = self.is_best();
            self.save(best)?;
        }
        let mut loader = self.loader(self.metadata.step, self.end)?;
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

    /// The batches of the steps from `first_step` to before `end`.
    fn loader(&self, first_step: u64, end: u64) -> Result<Loader, TrainError> {
        Ok(Loader::start(
            self.source.clone(),
            LoaderConfig {
                split: Split::Train,
                batch: self.recipe.batch_size / self.team.world().size,
                share: self.team.share(),
                resolution: self.recipe.resolution,
                crop: self.recipe.crop,
                form: self.engine.form,
                train: true,
                seed: self.recipe.seed,
                first_step,
                steps: end - first_step,
                threads: self.options.loader_threads,
                ahead: LOADER_AHEAD,
                processors: self.processors.clone(),
            },
        )?)
    }

    fn stopped(&self) -> bool {
        self.stopping
    }

    /// Hears whether any rank was asked to stop, if that was asked.
    fn hear(&mut self) -> Result<(), TrainError> {
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

    /// Tells of the steps whose figures are there; with `all`, of every step handed over, waiting for it.
    fn tell(&mut self, all: bool) -> Result<(), TrainError> {
        while let Some(figures) = self.engine.take_figures(all)? {
            let Some(step) = self.behind.pop_front() else { break };
            if figures.skipped && !self.may_skip()? {
                return Err(self.not_finite_step(&step, figures));
            }
            let seconds = self.since.elapsed().as_secs_f64();
            self.since = Instant::now();
            self.seconds += seconds;
            self.waited += step.data_wait;
            let images = self.recipe.batch_size as f64;
            let record = StepRecord {
                step: step.step,
                epoch: step.epoch,
                loss: figures.loss / images,
                accuracy: figures.correct as f64 / images,
                lr: step.lr,
                images_per_second: images / seconds.max(1e-9),
                data_wait: step.data_wait,
                skipped: figures.skipped,
            };
            self.write_log(LogLine::Step(record))?;
            self.reporter.step(&record);
        }
        Ok(())
    }

    /// Skipped steps are how loss scaling finds its scale; once it cannot fall any more, something is wrong.
    fn may_skip(&mut self) -> Result<bool, TrainError> {
        Ok(self.engine.loss_scale()?.is_some_and(|state| state.scale > 1.0))
    }

    fn not_finite_step(&mut self, step: &Behind, figures: StepFigures) -> TrainError {
        let what = match figures.loss.is_finite() {
            true => "gradients are not finite".to_string(),
            false => format!("loss is {}", figures.loss / self.recipe.batch_size as f64),
        };
        let first = match self.first_not_finite(step) {
            Ok(first) => first.unwrap_or_else(|| "nothing when the step was run again".into()),
            // What happened comes first, also where it cannot be looked into.
            Err(error) => format!("unknown, {error}"),
        };
        self.not_finite(step.step, what, first)
    }

    /// Loads the step's batch again, and looks into the step.
    fn first_not_finite(&mut self, step: &Behind) -> Result<Option<String>, TrainError> {
        let index = step.step - 1;
        let batch =
            self.loader(index, step.step)?.next()?.ok_or(TrainError::DataEnded { step: step.step })?;
        let params = self.params(index, &batch, step.lr);
        let own = self.engine.first_not_finite(&batch, params)?;
        // It may have begun in the images of another rank.
        self.hear()?;
        let all = self.team.gather("what is not finite", own.unwrap_or_default().as_bytes())?;
        let first = all.iter().enumerate().find(|(_, found)| !found.is_empty());
        Ok(first.map(|(rank, found)| match self.team.world().size {
            1 => String::from_utf8_lossy(found).into_owned(),
            _ => format!("{} at rank {rank}", String::from_utf8_lossy(found)),
        }))
    }

    fn params(&self, step: u64, batch: &Batch, learning_rate: f64) -> StepParams {
        StepParams {
            seed: self.recipe.seed,
            step,
            first_position: batch.first_position,
            learning_rate: learning_rate as f32,
            ema_decay: self.schedule.ema_decay(step) as f32,
        }
    }

    fn write_log(&mut self, line: LogLine) -> Result<(), TrainError> {
        match &mut self.log {
            Some(log) => Ok(log.append(&line)?),
            None => Ok(()),
        }
    }

    /// Evaluates the validation split; false if the run was stopped meanwhile.
    fn evaluate(&mut self) -> Result<bool, TrainError> {
        let since = Instant::now();
        let samples = self.source.samples(Split::Val);
        let mut loader = evaluation_loader(
            &self.source,
            &self.recipe,
            (Split::Val, self.team.share()),
            self.engine.form,
            self.options.loader_threads,
        )?;
        let passes = if self.recipe.ema > 0.0 { 2 } else { 1 };
        self.reporter.evaluating(samples as u64 * passes);
        self.team.doing(self.metadata.step, "evaluating");
        let Some(figures) = self.engine.evaluate(&mut loader, samples as u64, self.stop)? else {
            self.stopping = true;
            return Ok(false);
        };
        let (raw, ema) = (figures[0], figures.get(1));
        let record = EvaluationRecord {
            step: self.metadata.step,
            epoch: self.metadata.epoch,
            top1: raw.top1,
            top5: raw.top5,
            loss: raw.loss,
            images: raw.images,
            ema_top1: ema.map(|e| e.top1),
            ema_top5: ema.map(|e| e.top5),
            ema_loss: ema.map(|e| e.loss),
            images_per_second: rate(samples as u64 * passes, since),
        };
        let top1 = record.best_top1();
        self.metadata.evaluated = record.step;
        let better = self.metadata.best.is_none_or(|best| top1 > best.top1);
        if better {
            self.metadata.best = Some(Best { top1, step: record.step, ema: top1 > record.top1 });
        }
        self.last = Some(record);
        self.write_log(LogLine::Evaluation(record))?;
        self.reporter.evaluation(&record, better);
        Ok(true)
    }

    /// Whether the weights are those of the best evaluation.
    fn is_best(&self) -> bool {
        self.metadata.best.is_some_and(|best| best.step == self.metadata.step)
    }

    /// Writes the checkpoint of this step, unless the weights are beyond saving. Every rank has the same state: the
    /// first writes it.
    fn save(&mut self, best: bool) -> Result<(), TrainError> {
        self.team.doing(self.metadata.step, "saving");
        if !self.team.leads() {
            self.saved = self.metadata.step;
            return Ok(());
        }
        self.engine.store(&mut self.state)?;
        self.metadata.loss_scale = self.engine.loss_scale()?.or(self.metadata.loss_scale);
        if let Some(tensor) = self.state.first_not_finite(&self.engine.table) {
            return Err(self.not_finite(self.metadata.step, "weights are not finite".into(), tensor));
        }
        if let Some(log) = &self.log {
            log.sync()?;
        }
        self.run.save(&self.metadata, &self.engine.table, &self.state, best, self.options.keep)?;
        self.saved = self.metadata.step;
        self.reporter.saved(&self.run.checkpoint(), self.saved);
        Ok(())
    }

    fn not_finite(&self, step: u64, what: String, tensor: String) -> TrainError {
        let checkpoint = self.run.checkpoint();
        TrainError::NotFinite { step, what, tensor, saved: self.saved, checkpoint }
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

/// A split in order, or a share of its batches, in the batches that an evaluation of this recipe takes: its micro-batches.
pub fn evaluation_loader(
    source: &Source,
    recipe: &Recipe,
    (split, share): (Split, Share),
    form: Form,
    threads: usize,
) -> Result<Loader, TrainError> {
    let batch = recipe.micro_batch;
    Ok(Loader::start(
        source.clone(),
        LoaderConfig {
            split,
            batch,
            share,
            resolution: recipe.resolution,
            crop: recipe.crop,
            form,
            train: false,
            seed: recipe.seed,
            first_step: 0,
            steps: evaluation_steps(source.samples(split), batch, share),
            threads,
            ahead: LOADER_AHEAD,
            processors: Vec::new(),
        },
    )?)
}
