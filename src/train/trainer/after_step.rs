//! What follows a step: its results are reported, the weights are evaluated and saved.

use std::time::Instant;

use super::{StepInFlight, Trainer};
use crate::data::{DataError, Loader, Split};
use crate::ops::{Ops, StepFigures};
use crate::train::checkpoint::Metadata;
use crate::train::error::TrainError;
use crate::train::evaluation::evaluate::{Evaluation, rate};
use crate::train::recipe_file::RecipeFile;
use crate::train::report::events::{EvaluationRecord, Event, ExtensionRecord, StepRecord};
use crate::train::report::log::Log;
use crate::train::report::rows::decimals;

impl<O: Ops> Trainer<'_, O> {
    /// Reports the steps whose results have arrived, and gives their batches back; with `all`, waits for the results of
    /// every submitted step.
    pub(super) fn report_steps(&mut self, all: bool, loader: &mut Loader) -> Result<(), TrainError> {
        while let Some(figures) = self.engine.take_figures(all)? {
            let Some(step) = self.in_flight.pop_front() else { break };
            if figures.skipped && !self.may_skip()? {
                return Err(self.not_finite_step(&step, figures));
            }
            let seconds = self.timer.elapsed().as_secs_f64();
            self.timer = Instant::now();
            self.train_seconds += seconds;
            self.wait_seconds += step.data_wait;
            let images = self.recipe.batch_size as f64;
            let record = StepRecord {
                step: step.step,
                epoch: step.epoch,
                loss: figures.loss / images,
                accuracy: figures.correct as f64 / images,
                lr: step.lr,
                images_per_second: images / seconds.max(1e-9),
                gradient_norm: figures.gradient_norm.map(f64::from),
                data_wait: step.data_wait,
                skipped: figures.skipped,
            };
            self.emit(Event::Step(&record))?;
            loader.recycle(step.batch);
        }
        Ok(())
    }

    /// Loss scaling finds its scale by skipping steps. If the scale cannot fall any further, a skipped step is an
    /// error.
    fn may_skip(&mut self) -> Result<bool, TrainError> {
        Ok(self.engine.loss_scale()?.is_some_and(|state| state.scale > 1.0))
    }

    fn not_finite_step(&mut self, step: &StepInFlight, figures: StepFigures) -> TrainError {
        let what = if figures.loss.is_finite() {
            "gradients are not finite".to_string()
        } else {
            format!("loss is {}", figures.loss / self.recipe.batch_size as f64)
        };
        let first = match self.first_not_finite(step) {
            Ok(first) => first.unwrap_or_else(|| "nothing when the step was run again".into()),
            // The user needs the original problem, even if it cannot be examined.
            Err(error) => format!("unknown, {error}"),
        };
        self.not_finite(step.step, what, first)
    }

    /// Loads the step's batch again and runs the step pass by pass.
    fn first_not_finite(&mut self, step: &StepInFlight) -> Result<Option<String>, TrainError> {
        let index = step.step - 1;
        // The step's own: it may have been the last of its stage.
        let stage = self.stages[self.schedule.stage(index, self.stages.len())];
        let mut loader = self.loading().training(stage, index, step.step)?;
        let batch = loader.next()?.ok_or(TrainError::DataEnded { step: step.step })?;
        let params = self.step_params(index, &batch, step.lr);
        let own = self.engine.first_not_finite(&batch, params)?;
        // The first bad value may be in the images of another rank.
        self.receive_stop()?;
        let all = self.team.gather("what is not finite", own.unwrap_or_default().as_bytes())?;
        let first = all.iter().enumerate().find(|(_, found)| !found.is_empty());
        Ok(first.map(|(rank, found)| match self.team.world().size {
            1 => String::from_utf8_lossy(found).into_owned(),
            _ => format!("{} at rank {rank}", String::from_utf8_lossy(found)),
        }))
    }

    /// Evaluates the validation split. Returns false if the run was stopped during the evaluation.
    pub(super) fn evaluate(&mut self) -> Result<bool, TrainError> {
        let since = Instant::now();
        let samples = self.source.samples(Split::Val) as u64;
        let mut loader = self.loading().evaluation(Split::Val)?;
        let images = samples * if self.recipe.ema > 0.0 { 2 } else { 1 };
        self.emit(Event::Evaluating { images })?;
        self.team.doing(self.metadata.step, "evaluating");
        let Some(figures) = self.engine.evaluate(&mut loader, samples, self.stop)? else {
            self.stopping = true;
            return Ok(false);
        };
        let record = self.evaluation_record(&figures, rate(images, since));
        self.metadata.evaluated = record.step;
        let found = record.best(self.source.classes());
        let before = self.metadata.best;
        let best = found.filter(|found| before.is_none_or(|before| found.top1 > before.top1));
        self.metadata.best = best.or(before);
        let earlier = self.last_evaluation.replace(record);
        self.emit(Event::Evaluation { record: &record, best: best.is_some() })?;
        self.warn_of_divergence(&record, earlier);
        Ok(true)
    }

    /// Says once that the weights have diverged.
    fn warn_of_divergence(&mut self, record: &EvaluationRecord, earlier: Option<EvaluationRecord>) {
        let diverged = |record: &EvaluationRecord| record.diverged(self.source.classes());
        if diverged(record) && !earlier.as_ref().is_some_and(diverged) {
            self.reporter.notice(&format!(
                "warning: a validation loss of {} means that the weights have diverged; a lower --lr or a longer \
                 --warmup-epochs may prevent it",
                decimals(record.loss)
            ));
        }
    }

    fn evaluation_record(&self, figures: &[Evaluation], images_per_second: f64) -> EvaluationRecord {
        let raw = figures[0];
        let ema = figures.get(1);
        EvaluationRecord {
            step: self.metadata.step,
            epoch: self.metadata.epoch,
            top1: raw.top1,
            top5: raw.top5,
            loss: raw.loss,
            images: raw.images,
            ema_top1: ema.map(|e| e.top1),
            ema_top5: ema.map(|e| e.top5),
            ema_loss: ema.map(|e| e.loss),
            images_per_second,
        }
    }

    /// Whether the weights are those of the best evaluation.
    pub(super) fn is_best(&self) -> bool {
        self.metadata.best.is_some_and(|best| best.step == self.metadata.step)
    }

    /// Writes the checkpoint of this step, unless a weight is not finite. All ranks have the same state; rank 0 writes
    /// it.
    pub(super) fn save(&mut self, best: bool) -> Result<(), TrainError> {
        let step = self.metadata.step;
        self.team.doing(step, "saving");
        if !self.team.leads() {
            self.saved_step = step;
            return Ok(());
        }
        self.engine.store(&mut self.state)?;
        self.metadata.loss_scale = self.engine.loss_scale()?.or(self.metadata.loss_scale);
        if let Some(tensor) = self.state.first_not_finite(&self.engine.table) {
            return Err(self.not_finite(step, "weights are not finite".into(), tensor));
        }
        if let Some(log) = &self.log {
            log.sync()?;
        }
        self.directory.save(&self.metadata, &self.engine.table, &self.state, best, self.options.keep)?;
        self.saved_step = step;
        self.emit(Event::Saved { checkpoint: &self.directory.checkpoint(), step })
    }

    /// Opens the log at rank 0, as far as the checkpoint knows it.
    pub(super) fn open_log(&mut self, extension: Option<ExtensionRecord>) -> Result<(), TrainError> {
        if self.team.leads() {
            let Metadata { step, evaluated, .. } = self.metadata;
            let epochs = extension.map_or(self.recipe.epochs, |extension| extension.extended_from);
            self.log = Some(Log::open(&self.directory.log(), step, evaluated, epochs)?);
        }
        Ok(())
    }

    /// Notes an extension in the log and in the checkpoint, before the next step; then `recipe.toml` says the same length
    /// as the checkpoint. A run that is killed in between is extended if its checkpoint says so.
    pub(super) fn note_length(&mut self, extension: Option<ExtensionRecord>) -> Result<(), TrainError> {
        if let Some(record) = extension {
            self.emit(Event::Extended(&record))?;
            self.save(false)?;
        }
        if self.team.leads() {
            RecipeFile::set_epochs(&self.directory.recipe(), self.recipe.epochs).map_err(DataError::from)?;
        }
        Ok(())
    }

    fn not_finite(&self, step: u64, what: String, tensor: String) -> TrainError {
        let checkpoint = self.directory.checkpoint();
        TrainError::NotFinite { step, what, tensor, saved: self.saved_step, checkpoint }
    }
}
