//! `log.jsonl`: one JSON object a line, for every step and every evaluation, and where a run was extended.
//!
//! A line is written in one system call as soon as its step is done, so a killed process leaves at most an incomplete
//! last line. The log is forced to disk before each checkpoint, so it always reaches at least as far as the checkpoint.
//! A resumed run cuts the log back to the checkpoint's step, so every step occurs in it exactly once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::events::{Event, LogLine};
use crate::files::{self, FileError};

/// The log could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}; the last checkpoint is intact: make room, then go on with --resume", path.display())]
pub struct LogError {
    path: PathBuf,
    error: io::Error,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
}

impl Log {
    /// Opens the log and keeps only the lines that belong to a checkpoint: steps up to `step`, evaluations up to
    /// `evaluated`, extensions to no more than `epochs`. With the first two 0 and no extension the log is emptied. The kept
    /// lines go to a new file that replaces the old one, so a kill loses no line.
    pub fn open(path: &Path, step: u64, evaluated: u64, epochs: f64) -> Result<Log, LogError> {
        let failed = |error| LogError { path: path.to_owned(), error };
        let old = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed)?,
        };
        let kept = cut(&old, step, evaluated, epochs);
        if kept != old || !path.exists() {
            files::replace(path, &kept).map_err(|FileError { error, .. }| failed(error))?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Log { path: path.to_owned(), file, line: Vec::new() })
    }

    /// Appends a step, an evaluation or an extension; other events are not logged.
    pub fn append(&mut self, event: Event) -> Result<(), LogError> {
        let Some(line) = LogLine::of(event) else { return Ok(()) };
        self.line.clear();
        let written = serde_json::to_writer(&mut self.line, &line).map_err(io::Error::from);
        let written = written.and_then(|()| {
            self.line.push(b'\n');
            self.file.write_all(&self.line)
        });
        written.map_err(|error| LogError { path: self.path.clone(), error })
    }

    /// Forces the lines to disk.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|error| LogError { path: self.path.clone(), error })
    }
}

/// The complete lines up to `step`, of evaluations up to `evaluated`, and of extensions up to `epochs`: one that the
/// checkpoint does not know did not come about.
fn cut(log: &[u8], step: u64, evaluated: u64, epochs: f64) -> Vec<u8> {
    let whole = log.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let kept = whole.filter(|line| match serde_json::from_slice(line) {
        Ok(LogLine::Evaluation(record)) => record.step <= evaluated,
        Ok(LogLine::Step(record)) => record.step <= step,
        Ok(LogLine::Extension(record)) => record.step <= step && record.extended_to <= epochs,
        Err(_) => false,
    });
    kept.flatten().copied().collect()
}

/// All records of a log; a line that is incomplete or not a record is skipped.
pub fn read(path: &Path) -> io::Result<Vec<LogLine>> {
    let text = fs::read(path)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::events::{EvaluationRecord, ExtensionRecord, StepRecord};
    use super::*;

    fn step(step: u64) -> LogLine {
        LogLine::Step(StepRecord {
            step,
            epoch: 0.5,
            loss: 1.25,
            accuracy: 0.1,
            lr: 1e-3,
            images_per_second: 9.0,
            gradient_norm: None,
            data_wait: 0.0,
            skipped: false,
        })
    }

    fn evaluation(step: u64) -> LogLine {
        LogLine::Evaluation(EvaluationRecord {
            step,
            epoch: 1.0,
            top1: 0.5,
            top5: 0.75,
            loss: 1.5,
            images: 8,
            ema_top1: None,
            ema_top5: None,
            ema_loss: None,
            images_per_second: 1.0,
        })
    }

    fn append(log: &mut Log, line: &LogLine) {
        log.append(match line {
            LogLine::Step(record) => Event::Step(record),
            LogLine::Evaluation(record) => Event::Evaluation { record, best: false },
            LogLine::Extension(record) => Event::Extended(record),
        })
        .unwrap();
    }

    #[test]
    fn log_is_cut_to_the_checkpoint_on_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = Log::open(&path, 0, 0, 1.0).unwrap();
        let lines = [step(1), step(2), evaluation(2), step(3), step(4), evaluation(4)];
        lines.iter().for_each(|line| append(&mut log, line));
        drop(log);
        assert_eq!(read(&path).unwrap(), lines);
        let whole = fs::read(&path).unwrap();
        // As if the process had been killed within the last line.
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let mut log = Log::open(&path, 3, 2, 1.0).unwrap();
        append(&mut log, &step(4));
        assert_eq!(read(&path).unwrap(), lines[..5]);
        // An evaluation that is not in the checkpoint is repeated by the run.
        Log::open(&path, 2, 0, 1.0).unwrap();
        assert_eq!(read(&path).unwrap(), lines[..2]);
        Log::open(&path, 0, 0, 1.0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn cut_removes_lines_that_are_not_records() {
        assert_eq!(cut(b"\xff\xfe\n{}\n{\"step\":1}\n", 9, 9, 1.0), b"");
    }
    /// A run that was killed between noting an extension and saving it was not extended.
    #[test]
    fn log_keeps_the_extensions_that_the_checkpoint_knows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let extension = |step, extended_from, extended_to| {
            LogLine::Extension(ExtensionRecord { step, epoch: 1.0, extended_from, extended_to })
        };
        let lines = [step(1), extension(1, 1.0, 2.0), step(2), extension(2, 2.0, 3.5)];
        let mut log = Log::open(&path, 0, 0, 1.0).unwrap();
        lines.iter().for_each(|line| append(&mut log, line));
        for (epochs, kept) in [(3.5, 4), (2.0, 3)] {
            Log::open(&path, 2, 0, epochs).unwrap();
            assert_eq!(read(&path).unwrap(), lines[..kept], "{epochs}");
        }
    }
}
