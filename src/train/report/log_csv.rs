//! `log.csv`: the lines of `log.jsonl` for a spreadsheet, in the same order.
//!
//! Each line is a step, an evaluation or an extension, as its first column says. Figures of different kinds have columns
//! of their own, so that a column can be drawn over `step` as it is; cells that mean nothing for a line are empty. At the
//! first line of a call the whole file is made anew from `log.jsonl`, which a resumed run has cut back to its checkpoint,
//! and replaces the old one; further lines are appended. So the file always has exactly the lines of the log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::events::{EvaluationRecord, Event, ExtensionRecord, LogLine, StepRecord};
use super::log;
use super::run_files::RunFile;
use crate::files::{self, FileError};

pub const FILE: &str = "log.csv";

/// A line; the names of the fields are the first line of the file.
#[derive(Debug, Default, Serialize)]
struct Row {
    kind: &'static str,
    step: u64,
    epoch: f64,
    images_per_second: Option<f64>,
    train_loss: Option<f64>,
    train_accuracy: Option<f64>,
    lr: Option<f64>,
    gradient_norm: Option<f64>,
    data_wait: Option<f64>,
    skipped: Option<bool>,
    eval_top1: Option<f64>,
    eval_top5: Option<f64>,
    eval_loss: Option<f64>,
    eval_images: Option<u64>,
    ema_top1: Option<f64>,
    ema_top5: Option<f64>,
    ema_loss: Option<f64>,
    extended_from: Option<f64>,
    extended_to: Option<f64>,
}

/// A number, unless it is null in the log too.
fn finite(value: f64) -> Option<f64> {
    Some(value).filter(|value| value.is_finite())
}

impl From<&LogLine> for Row {
    fn from(line: &LogLine) -> Row {
        match line {
            LogLine::Step(record) => {
                let StepRecord { step, epoch, .. } = *record;
                Row {
                    kind: "step",
                    step,
                    epoch,
                    images_per_second: finite(record.images_per_second),
                    train_loss: finite(record.loss),
                    train_accuracy: finite(record.accuracy),
                    lr: finite(record.lr),
                    gradient_norm: record.gradient_norm.and_then(finite),
                    data_wait: finite(record.data_wait),
                    skipped: Some(record.skipped),
                    ..Row::default()
                }
            }
            LogLine::Evaluation(record) => {
                let EvaluationRecord { step, epoch, .. } = *record;
                Row {
                    kind: "evaluation",
                    step,
                    epoch,
                    images_per_second: finite(record.images_per_second),
                    eval_top1: finite(record.top1),
                    eval_top5: finite(record.top5),
                    eval_loss: finite(record.loss),
                    eval_images: Some(record.images),
                    ema_top1: record.ema_top1.and_then(finite),
                    ema_top5: record.ema_top5.and_then(finite),
                    ema_loss: record.ema_loss.and_then(finite),
                    ..Row::default()
                }
            }
            LogLine::Extension(record) => {
                let ExtensionRecord { step, epoch, extended_from, extended_to } = *record;
                let (extended_from, extended_to) = (Some(extended_from), Some(extended_to));
                Row { kind: "extension", step, epoch, extended_from, extended_to, ..Row::default() }
            }
        }
    }
}

/// The lines as CSV.
fn csv<'a>(lines: impl Iterator<Item = &'a LogLine>, with_names: bool) -> io::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().has_headers(with_names).from_writer(Vec::new());
    for line in lines {
        writer.serialize(Row::from(line)).map_err(io::Error::from)?;
    }
    writer.into_inner().map_err(|error| error.into_error())
}

/// Keeps the file.
#[derive(Default)]
pub struct LogCsv {
    run: Option<PathBuf>,
    file: Option<File>,
}

impl RunFile for LogCsv {
    fn record(&mut self, event: Event) -> Result<(), FileError> {
        if let Event::Started(header) = event {
            self.run = Some(header.out.clone());
        }
        let Some(run) = &self.run else { return Ok(()) };
        let path = run.join(FILE);
        let line = LogLine::of(event);
        let done = match (&mut self.file, line) {
            (Some(file), Some(line)) => {
                csv([&line].into_iter(), false).and_then(|line| file.write_all(&line))
            }
            // The log has the line already.
            (None, Some(_)) => begin(run, &path).map(|file| self.file = Some(file)),
            (None, None) if matches!(event, Event::Finished(_)) => begin(run, &path).map(|_| ()),
            _ => Ok(()),
        };
        done.map_err(|error| FileError { path, error })
    }
}

/// Makes the file anew, as far as the log is.
fn begin(run: &Path, path: &Path) -> io::Result<File> {
    let lines = log::read(&run.join("log.jsonl"))?;
    files::replace(path, &csv(lines.iter(), true)?).map_err(|failed| failed.error)?;
    OpenOptions::new().append(true).open(path)
}
