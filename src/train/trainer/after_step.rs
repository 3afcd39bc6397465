//! What follows a step: it is told of, looked into where its numbers are not finite, evaluated after, saved.

use std::time::Instant;

use super::run::{Behind, Trainer};
use crate::data::Split;
use crate::ops::{Ops, StepFigures};
use crate::train::error::TrainError;
use crate::train::evaluation::evaluate::rate;
use crate::train::report::events::{Best, EvaluationRecord, LogLine, StepRecord};

impl<O: Ops + Send> Trainer<'_, O> {
    /// Tells of the steps whose figures are there; with `all`, of every step handed over, waiting for it.
    pub(super) fn tell(&mut self, all: bool) -> Result<(), TrainError> {
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
        let mut loader = self.loading().training(index, step.step)?;
        let batch = loader.next()?.ok_or(TrainError::DataEnded { step: step.step })?;
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

    fn write_log(&mut self, line: LogLine) -> Result<(), TrainError> {
        match &mut self.log {
            Some(log) => Ok(log.append(&line)?),
            None => Ok(()),
        }
    }

    /// Evaluates the validation split; false if the run was stopped meanwhile.
    pub(super) fn evaluate(&mut self) -> Result<bool, TrainError> {
        let since = Instant::now();
        let samples = self.source.samples(Split::Val);
        let mut loader = self.loading().evaluation(Split::Val)?;
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
    pub(super) fn is_best(&self) -> bool {
        self.metadata.best.is_some_and(|best| best.step == self.metadata.step)
    }

    /// Writes the checkpoint of this step, unless the weights are beyond saving. Every rank has the same state: the
    /// first writes it.
    pub(super) fn save(&mut self, best: bool) -> Result<(), TrainError> {
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
}
