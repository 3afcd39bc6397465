//! What a run tells, and to whom.
//!
//! The loop knows no terminal. It hands records to a [`Reporter`]; [`StepRecord`] and [`EvaluationRecord`] are
//! also, field for field, the lines of `log.jsonl`.
//!
//! `step` counts optimiser steps done: the record of the first step says 1, and a checkpoint's step is that of
//! the last step in it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use super::profile;
use crate::ops::ProfileReport;
use crate::train::program::{command, quoted};
use crate::train::recipe::Recipe;

/// A run about to start or to go on.
#[derive(Clone, Debug)]
pub struct Header {
    pub recipe: Recipe,
    pub classes: usize,
    /// Trainable parameters.
    pub parameters: usize,
    pub train_images: usize,
    pub val_images: usize,
    /// What the data calls itself: a directory, synthetic, demo.
    pub data: String,
    pub fingerprint: String,
    pub out: PathBuf,
    /// The device, and why it was taken.
    pub device: String,
    /// Processes that share every step.
    pub ranks: usize,
    /// Of each process.
    pub threads: usize,
    pub loader_threads: usize,
    /// Steps of the whole schedule, and of its warm-up.
    pub steps: u64,
    pub warmup_steps: u64,
    /// Steps already done: above 0 after a resume.
    pub first_step: u64,
    /// Where this call stops: `steps`, or fewer with `--max-steps`.
    pub last_step: u64,
    /// Bytes of the memory plan.
    pub memory: u64,
}

/// One optimiser step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps done, this one included.
    pub step: u64,
    /// Epochs done: step × batch / images.
    pub epoch: f64,
    /// Mean over the step's images, label smoothing included; null in the log where a skipped step's is not finite.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Share of the step's images (augmented, dropout on) whose largest logit is their label's.
    pub accuracy: f64,
    pub lr: f64,
    pub images_per_second: f64,
    /// Seconds that the step waited for its images.
    pub data_wait: f64,
    /// Whether the weights stayed as they were, because a gradient overflowed fp16: the loss scale has halved.
    #[serde(default, skip_serializing_if = "is_false")]
    pub skipped: bool,
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One evaluation of the validation split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    pub step: u64,
    pub epoch: f64,
    /// Shares of `images`.
    pub top1: f64,
    pub top5: f64,
    /// Mean cross-entropy without smoothing.
    pub loss: f64,
    pub images: u64,
    /// The moving average's figures, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_top1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_top5: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema_loss: Option<f64>,
    pub images_per_second: f64,
}

impl EvaluationRecord {
    /// The better of the raw weights' and the moving average's top-1: what `best.bin` goes by.
    pub fn best_top1(&self) -> f64 {
        self.ema_top1.map_or(self.top1, |ema| ema.max(self.top1))
    }
}

/// A line of `log.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogLine {
    Evaluation(EvaluationRecord),
    Step(StepRecord),
}

impl LogLine {
    pub fn step(&self) -> u64 {
        match self {
            LogLine::Evaluation(record) => record.step,
            LogLine::Step(record) => record.step,
        }
    }
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    pub top1: f64,
    pub step: u64,
    /// Whether the figure is the moving average's.
    pub ema: bool,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The schedule is done.
    Finished,
    /// `--max-steps` was reached.
    MaxSteps,
    /// Ctrl-C or SIGTERM: the step was finished and saved.
    Interrupted,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    /// Steps done, of how many.
    pub step: u64,
    pub steps: u64,
    pub epoch: f64,
    /// The last evaluation of this call.
    pub last: Option<EvaluationRecord>,
    pub best: Option<Best>,
    /// Seconds of this call's steps (evaluation and saving left out), and its images per such second.
    pub train_seconds: f64,
    pub images_per_second: f64,
    /// Share of those seconds that the steps waited for images.
    pub data_wait: f64,
    pub out: PathBuf,
    /// The latest checkpoint.
    pub checkpoint: PathBuf,
    /// Flags that start as many ranks again.
    pub started_with: Option<String>,
}

impl Outcome {
    /// The command that goes on from here, where there is something left to do.
    pub fn resume_command(&self) -> Option<String> {
        let flags = self.started_with.as_ref().map_or(String::new(), |flags| format!(" {flags}"));
        (self.end != End::Finished)
            .then(|| format!("{} --resume --out {}{flags}", command("effnet-train"), quoted(&self.out)))
    }
}

/// Listens to a run. Every method does nothing unless it is written.
pub trait Reporter {
    fn started(&mut self, _header: &Header) {}
    fn step(&mut self, _record: &StepRecord) {}
    /// An evaluation begins, over this many images (both weights together).
    fn evaluating(&mut self, _images: u64) {}
    fn evaluation(&mut self, _record: &EvaluationRecord, _best: bool) {}
    /// What `--profile` has timed over this many steps.
    fn profile(&mut self, report: &ProfileReport, steps: u64) {
        profile::lines(report, steps).iter().for_each(|line| self.notice(line));
    }
    /// A checkpoint is safe on disk.
    fn saved(&mut self, _checkpoint: &Path, _step: u64) {}
    /// One line for the user: which device and why, what `--init-from` did not match.
    fn notice(&mut self, _line: &str) {}
    fn finished(&mut self, _outcome: &Outcome) {}
}

/// Says nothing.
pub struct Silent;

impl Reporter for Silent {}
