//! The training loop.
//!
//! A step takes its batch from the loader and submits it to the device, which adds up the gradients of the
//! micro-batches and updates the weights if all gradients are finite. A GPU's results arrive one step late; a step is
//! logged when they arrive, and in any case before an evaluation or a checkpoint. What follows a step (a log line, an
//! evaluation, a checkpoint) depends only on the number of the step. So a run that was killed and resumed gives the
//! same result as an uninterrupted run.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::engine::Engine;
use super::session::{Inspection, Session, inspect, prepare};
use super::{StepInFlight, Trainer};
use crate::data::{Loader, Source, Split};
use crate::model::ParamTable;
use crate::ops::Ops;
use crate::train::checkpoint::Metadata;
use crate::train::device::{self, Hardware, Selected};
use crate::train::error::TrainError;
use crate::train::options::RunOptions;
use crate::train::program::{command, quoted};
use crate::train::progressive::Stage;
use crate::train::recipe::Recipe;
use crate::train::report::events::{End, Event, Header, Outcome, Reporter, Silent};
use crate::train::team::Team;

/// Steps before the first step that `--profile` times: they allocate memory, record launches and fill caches.
const PROFILE_WARM_UP: u64 = 3;

/// Trains until the schedule ends, `max_steps` is reached or `stop` is set, and saves.
///
/// # Errors
/// [`TrainError`]; checkpoints saved before remain intact.
pub fn train(
    recipe: &Recipe,
    options: &RunOptions,
    source: Source,
    reporter: &mut dyn Reporter,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    train_selected(recipe, options, source, device::select_for(options)?, reporter, stop)
}

/// [`train`] on a device that was [selected](device::select_for) before. Selecting a GPU makes its context, which takes
/// a large part of a second.
///
/// # Errors
/// As [`train`].
pub fn train_selected(
    recipe: &Recipe,
    options: &RunOptions,
    source: Source,
    selected: Selected,
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
    selected.with(Train(recipe, options, source, reporter, stop))
}

/// [`train`] on hardware that the caller has chosen.
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
    let inspection = inspect(recipe, options, &source)?;
    let team = Team::join(options.ranks.membership(), || inspection.identity(options, &source), stop)?;
    // Only rank 0 reports.
    let mut silent = Silent;
    let reporter: &mut dyn Reporter = if team.leads() { reporter } else { &mut silent };
    let outcome = team.conclude(train_as(&team, inspection, options, source, hardware, reporter, stop))?;
    reporter.report(Event::Finished(&outcome));
    Ok(outcome)
}

/// [`train_on`] as a member of a team.
fn train_as<H: Hardware>(
    team: &Team,
    inspection: Inspection,
    options: &RunOptions,
    source: Source,
    hardware: H,
    reporter: &mut dyn Reporter,
    stop: &AtomicBool,
) -> Result<Outcome, TrainError> {
    team.doing(0, "getting ready");
    let session = prepare(inspection, options, &source, hardware, team, reporter)?;
    let header = header(&session, options, &source, team);
    let Session { recipe, arch, schedule, hardware, directory, metadata, state, resumed, extension, memory } =
        session;
    let processors = hardware.processors();
    let mut engine = Engine::new(&recipe, &arch, metadata.normalise, hardware, team)?;
    engine.class_weights = recipe.weights_of_classes(&source)?;
    engine.load(&state, metadata.loss_scale)?;
    reporter.report(Event::Started(&header));
    let mut trainer = Trainer {
        engine,
        options,
        source,
        team,
        loader_threads: memory.loader_threads,
        processors,
        reporter,
        log: None,
        stages: recipe.stages(),
        body: ParamTable::new(&arch).get("classifier.weight").map_or(0, |entry| entry.offset),
        recipe,
        schedule,
        directory,
        stop,
        stopping: false,
        asked: false,
        first_step: metadata.step,
        last_step: header.last_step.max(metadata.step),
        saved_step: metadata.step,
        last_evaluation: None,
        in_flight: VecDeque::with_capacity(2),
        timer: Instant::now(),
        train_seconds: 0.0,
        wait_seconds: 0.0,
        metadata,
        state,
    };
    if !resumed {
        trainer.save(false)?;
    }
    trainer.open_log(extension)?;
    if resumed {
        trainer.note_length(extension)?;
    }
    // The error is sent before the device and its connections close: other ranks would report these first.
    trainer.run_steps().inspect_err(|error| team.fail(error))?;
    Ok(trainer.outcome())
}

fn header<H: Hardware>(session: &Session<H>, options: &RunOptions, source: &Source, team: &Team) -> Header {
    let Session { recipe, arch, schedule, metadata, hardware, memory, .. } = session;
    Header {
        recipe: recipe.clone(),
        classes: source.classes(),
        parameters: ParamTable::new(arch).trainable(),
        train_images: source.samples(Split::Train),
        val_images: source.samples(Split::Val),
        data: options.data.to_string(),
        fingerprint: source.fingerprint(),
        out: options.out.clone(),
        device: hardware.line(),
        ranks: team.world().size,
        threads: hardware.threads(),
        loader_threads: memory.loader_threads,
        steps: schedule.steps(),
        warmup_steps: schedule.warmup(),
        first_step: metadata.step,
        last_step: schedule.steps().min(options.max_steps.unwrap_or(u64::MAX)),
        memory: memory.total(),
    }
}

impl<O: Ops> Trainer<'_, O> {
    fn run_steps(&mut self) -> Result<(), TrainError> {
        self.stopping = self.team.any("stop requests", self.stop.load(Ordering::Relaxed))?;
        // A run that was interrupted during an evaluation repeats it first.
        if self.evaluation_is_due() && self.evaluate()? {
            self.save(self.is_best())?;
        }
        let first_profiled = self.metadata.step + PROFILE_WARM_UP;
        let mut profiled = self.options.profile.map(|steps| first_profiled..first_profiled + steps);
        loop {
            // The loader of the stage before is gone: there is memory for one.
            let mut loader = self.begin_stage()?;
            self.timer = Instant::now();
            let over = self.run_stage(&mut loader, &mut profiled)?;
            if over || self.stopping || self.metadata.step >= self.last_step {
                return Ok(());
            }
        }
    }

    /// Takes the steps up to the end of the stage or of the run. Returns whether the run ends early, by its patience.
    fn run_stage(
        &mut self,
        loader: &mut Loader,
        profiled: &mut Option<Range<u64>>,
    ) -> Result<bool, TrainError> {
        let ends = self.stage_ends();
        let mut over = self.patience_is_over();
        while self.metadata.step < ends && !self.stopping && !over {
            if profiled.as_ref().is_some_and(|steps| steps.start == self.metadata.step) {
                self.report_steps(true, loader)?;
                self.engine.start_profile()?;
            }
            self.team.ask("stop requests", self.stop.load(Ordering::Relaxed))?;
            self.asked = true;
            self.step(loader)?;
            self.receive_stop()?;
            let step = self.metadata.step;
            // A profile is of one network, so it ends with the stage.
            let profile_ends =
                |steps: &mut Range<u64>| steps.start < step && (steps.end == step || ends == step);
            if let Some(steps) = profiled.take_if(profile_ends) {
                self.report_steps(true, loader)?;
                let report = self.engine.take_profile()?;
                self.emit(Event::Profile { report: &report, steps: step - steps.start })?;
                self.timer = Instant::now();
            }
            if self.evaluation_is_due() || self.checkpoint_is_due() {
                self.report_steps(true, loader)?;
                let evaluated = self.evaluation_is_due() && self.evaluate()?;
                self.save(evaluated && self.is_best())?;
                over = evaluated && self.patience_is_over();
                self.timer = Instant::now();
            }
        }
        // The next stage may begin only when the device has finished.
        self.report_steps(true, loader)?;
        Ok(over)
    }

    /// The stage of the next step, with its images.
    fn begin_stage(&mut self) -> Result<Loader, TrainError> {
        let stage = self.stage();
        let Stage { number, resolution, strength } = stage;
        self.engine.enter(number);
        if self.stages.len() > 1 {
            let of = self.stages.len();
            let weaker =
                if strength < 1.0 { format!(", augmentation at {strength:.2}") } else { String::new() };
            let ends = self.schedule.stage_begins(number + 1, of);
            self.reporter.notice(&format!(
                "stage {} of {of}: {resolution}×{resolution}{weaker}, up to step {ends}",
                number + 1
            ));
        }
        self.loading().training(stage, self.metadata.step, self.stage_ends())
    }

    fn checkpoint_is_due(&self) -> bool {
        let step = self.metadata.step;
        let every = self.options.checkpoint_every;
        let regular = every > 0 && step.is_multiple_of(every);
        regular || step == self.last_step || self.stopping
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
        self.engine.step(&batch, self.step_params(index, &batch, lr))?;
        self.metadata.step = index + 1;
        self.metadata.epoch = self.schedule.epoch(index + 1);
        let Metadata { step, epoch, .. } = self.metadata;
        self.in_flight.push_back(StepInFlight { step, epoch, lr, data_wait, batch });
        self.report_steps(false, loader)
    }

    fn outcome(&self) -> Outcome {
        let Metadata { step, epoch, best, .. } = self.metadata;
        let steps = self.schedule.steps();
        let end = if step == steps && !self.evaluation_is_due() {
            End::Finished
        } else if self.patience_is_over() && !self.evaluation_is_due() {
            End::Patience
        } else if self.stopping {
            End::Interrupted
        } else {
            End::MaxSteps
        };
        let images = ((step - self.first_step) * self.recipe.batch_size as u64) as f64;
        let seconds = self.train_seconds.max(1e-9);
        Outcome {
            end,
            step,
            steps,
            epoch,
            classes: self.source.classes(),
            last: self.last_evaluation,
            diverged: self.last_evaluation.is_some_and(|last| last.diverged(self.source.classes())),
            best,
            train_seconds: self.train_seconds,
            images_per_second: images / seconds,
            data_wait: self.wait_seconds / seconds,
            out: self.options.out.clone(),
            checkpoint: self.directory.checkpoint(),
            resume: (!matches!(end, End::Finished | End::Patience)).then(|| self.resume_command()),
        }
    }

    fn resume_command(&self) -> String {
        let flags = self.options.started_with.as_ref().map_or(String::new(), |flags| format!(" {flags}"));
        format!("{} --resume --out {}{flags}", command("effnet-train"), quoted(&self.options.out))
    }
}
