//! The events of a run, and who receives them.
//!
//! The loop does not know terminals or files. It makes [`Event`]s; each [`Reporter`] writes those that concern it.
//! [`StepRecord`], [`EvaluationRecord`] and [`ExtensionRecord`] are also, field for field, the lines of `log.jsonl`, and
//! an event as JSON is a line of `--json`.
//!
//! `step` counts optimiser steps done: the record of the first step says 1, and a checkpoint's step is that of the last
//! step in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::ops::ProfileReport;
use crate::train::recipe::Recipe;

/// One event of a run.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    Started(&'a Header),
    Step(&'a StepRecord),
    /// An evaluation begins, over this many images (counted once for each set of weights).
    Evaluating {
        images: u64,
    },
    Evaluation {
        #[serde(flatten)]
        record: &'a EvaluationRecord,
        /// Whether it is the best so far.
        best: bool,
    },
    /// The run goes on to more epochs than before.
    Extended(&'a ExtensionRecord),
    /// Times measured by `--profile` over this many steps.
    Profile {
        #[serde(flatten)]
        report: &'a ProfileReport,
        steps: u64,
    },
    /// A checkpoint is safely on disk.
    Saved {
        checkpoint: &'a Path,
        step: u64,
    },
    /// One line for the user: which device was chosen and why, which weights `--init-from` did not match.
    Notice {
        text: &'a str,
    },
    Finished(&'a Outcome),
}

/// Receives the events of a run.
pub trait Reporter {
    fn report(&mut self, event: Event);

    fn notice(&mut self, text: &str) {
        self.report(Event::Notice { text });
    }
}

/// Ignores all events.
pub struct Silent;

impl Reporter for Silent {
    fn report(&mut self, _: Event) {}
}

/// Passes every event on to several reporters, in order.
pub struct All(pub Vec<Box<dyn Reporter>>);

impl Reporter for All {
    fn report(&mut self, event: Event) {
        self.0.iter_mut().for_each(|reporter| reporter.report(event));
    }
}

/// A run that is about to start or to resume.
#[derive(Clone, Debug, Serialize)]
pub struct Header {
    pub recipe: Recipe,
    pub classes: usize,
    /// Trainable parameters.
    pub parameters: usize,
    pub train_images: usize,
    pub val_images: usize,
    /// The name of the data: a directory, synthetic, demo.
    pub data: String,
    pub fingerprint: String,
    pub out: PathBuf,
    /// The device, and why it was chosen.
    pub device: String,
    /// Processes that share every step.
    pub ranks: usize,
    /// Threads of each process.
    pub threads: usize,
    pub loader_threads: usize,
    /// Steps of the whole schedule.
    pub steps: u64,
    pub warmup_steps: u64,
    /// Steps already done: above 0 after a resume.
    pub first_step: u64,
    /// The step at which this call stops: `steps`, or fewer with `--max-steps`.
    pub last_step: u64,
    /// Bytes of the memory plan.
    pub memory: u64,
}

impl Header {
    /// "EfficientNet-B0".
    pub fn model_name(&self) -> String {
        format!("EfficientNet-{}", self.recipe.model.name().to_uppercase())
    }
}

/// One optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, including this one.
    pub step: u64,
    /// Epochs done: step × batch / images.
    pub epoch: f64,
    /// Mean over the images of the step, with label smoothing and the weights of classes; null in the log if the loss of
    /// a skipped step is not finite.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Share of the step's images (augmented, with dropout) whose largest logit is that of their label.
    pub accuracy: f64,
    pub lr: f64,
    pub images_per_second: f64,
    /// L2 norm of the step's gradients before they were clipped, if --clip-norm is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f64>,
    /// Seconds that the step waited for its images.
    pub data_wait: f64,
    /// Whether the weights stayed unchanged because a gradient overflowed fp16; the loss scale was then halved.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// One evaluation of the validation split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    pub step: u64,
    pub epoch: f64,
    /// Accuracies as shares of `images`.
    pub top1: f64,
    pub top5: f64,
    /// Mean cross-entropy without smoothing.
    pub loss: f64,
    pub images: u64,
    /// The results of the moving average, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_top1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_top5: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_loss: Option<f64>,
    pub images_per_second: f64,
}

/// A validation loss so many times that of guessing is that of weights that have diverged, whatever their accuracy.
const ABSURD: f64 = 1000.0;

/// Whether a validation loss says that the weights have diverged: it is not finite, or absurd.
fn diverged(loss: f64, classes: usize) -> bool {
    // The negation counts NaN too.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    let absurd = !(loss <= ABSURD * (classes.max(2) as f64).ln());
    absurd
}

impl EvaluationRecord {
    /// The top-1 that decides which checkpoint becomes `best.bin`: the moving average's where there is one, otherwise the raw
    /// weights'. Of two sets of weights the better one of each evaluation would be a choice by luck; the average is what a
    /// recipe with one is for. Weights that have diverged do not count.
    pub fn best(&self, classes: usize) -> Option<Best> {
        let of = |top1: f64, loss: f64, ema: bool| {
            (!diverged(loss, classes)).then_some(Best { top1, step: self.step, ema })
        };
        let average = self.ema_top1.zip(self.ema_loss);
        average.and_then(|(top1, loss)| of(top1, loss, true)).or_else(|| of(self.top1, self.loss, false))
    }

    /// Whether the trained weights have diverged.
    pub fn diverged(&self, classes: usize) -> bool {
        diverged(self.loss, classes)
    }
}

/// An extension of the run by `--extend`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExtensionRecord {
    /// Steps and epochs done before it.
    pub step: u64,
    pub epoch: f64,
    /// The epochs of the schedule before and now.
    pub extended_from: f64,
    pub extended_to: f64,
}

/// A line of `log.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogLine {
    Evaluation(EvaluationRecord),
    Step(StepRecord),
    Extension(ExtensionRecord),
}

impl LogLine {
    /// The line of an event; none of one that is not logged.
    pub fn of(event: Event) -> Option<LogLine> {
        match event {
            Event::Step(record) => Some(LogLine::Step(*record)),
            Event::Evaluation { record, .. } => Some(LogLine::Evaluation(*record)),
            Event::Extended(record) => Some(LogLine::Extension(*record)),
            _ => None,
        }
    }

    pub fn step(&self) -> u64 {
        match self {
            LogLine::Evaluation(record) => record.step,
            LogLine::Step(record) => record.step,
            LogLine::Extension(record) => record.step,
        }
    }
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub top1: f64,
    pub step: u64,
    /// Whether the moving average reached it.
    pub ema: bool,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The schedule is complete.
    Finished,
    /// As many evaluations as `--patience` says were not better than the best.
    Patience,
    /// `--max-steps` was reached.
    MaxSteps,
    /// Ctrl-C or SIGTERM: the step was finished and saved.
    Interrupted,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub end: End,
    /// Steps done, and steps of the whole schedule.
    pub step: u64,
    pub steps: u64,
    pub epoch: f64,
    pub classes: usize,
    /// The last evaluation of this call.
    pub last: Option<EvaluationRecord>,
    /// Whether the weights had diverged by then.
    pub diverged: bool,
    pub best: Option<Best>,
    /// Seconds of this call's steps, without evaluations and saving, and images per such second.
    pub train_seconds: f64,
    pub images_per_second: f64,
    /// Share of those seconds in which the steps waited for images.
    pub data_wait: f64,
    pub out: PathBuf,
    /// The latest checkpoint.
    pub checkpoint: PathBuf,
    /// The command that continues the run, unless it is finished.
    pub resume: Option<String>,
}
