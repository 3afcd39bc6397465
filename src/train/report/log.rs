//! `log.jsonl`: one JSON object a line, for every step and every evaluation.
//!
//! A line is handed to the system in one piece as soon as its step is done, so a killed process loses at most a
//! torn last line; it is forced to disk before each checkpoint, so the log always reaches as far as the
//! checkpoint. A resumed run cuts it back to the checkpoint's step, and every step stands in it once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::events::LogLine;
use crate::files::{self, FileError};

/// The log cannot be written.
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
    /// Opens the log and cuts it to the lines of steps up to `step` and of evaluations up to `evaluated`; both 0
    /// start it anew. The lines go to a new file that takes the old one's place, so that a kill loses none.
    pub fn open(path: &Path, step: u64, evaluated: u64) -> Result<Log, LogError> {
        let failed = |error| LogError { path: path.to_owned(), error };
        let old = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(failed)?,
        };
        let kept = cut(&old, step, evaluated);
        if kept != old || !path.exists() {
            files::replace(path, &kept).map_err(|FileError { error, .. }| failed(error))?;
        }
        let file = OpenOptions::new().append(true).open(path).map_err(failed)?;
        Ok(Log { path: path.to_owned(), file, line: Vec::new() })
    }

    /// Appends a line.
    pub fn append(&mut self, line: &LogLine) -> Result<(), LogError> {
        self.line.clear();
        let written = serde_json::to_writer(&mut self.line, line).map_err(io::Error::from);
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

/// The whole lines that a run resumed at `step` has behind it.
fn cut(log: &[u8], step: u64, evaluated: u64) -> Vec<u8> {
    let whole = log.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let behind = whole.filter(|line| match serde_json::from_slice(line) {
        Ok(LogLine::Evaluation(record)) => record.step <= evaluated,
        Ok(LogLine::Step(record)) => record.step <= step,
        Err(_) => false,
    });
    behind.flatten().copied().collect()
}

/// All lines of a log; one that is torn or no record is left out.
pub fn read(path: &Path) -> io::Result<Vec<LogLine>> {
    let text = fs::read(path)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::events::{EvaluationRecord, StepRecord};
    use super::*;

    fn step(step: u64) -> LogLine {
        let (epoch, loss, accuracy, lr) = (0.5, 1.25, 0.1, 1e-3);
        LogLine::Step(StepRecord {
            step,
            epoch,
            loss,
            accuracy,
            lr,
            images_per_second: 9.0,
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

    #[test]
    fn a_resumed_log_is_cut_to_the_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        let mut log = Log::open(&path, 0, 0).unwrap();
        let lines = [step(1), step(2), evaluation(2), step(3), step(4), evaluation(4)];
        lines.iter().for_each(|line| log.append(line).unwrap());
        drop(log);
        assert_eq!(read(&path).unwrap(), lines);
        let whole = fs::read(&path).unwrap();
        // A kill within the last line.
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let mut log = Log::open(&path, 3, 2).unwrap();
        log.append(&step(4)).unwrap();
        assert_eq!(read(&path).unwrap(), lines[..5]);
        // An evaluation that the checkpoint does not know of is done again.
        Log::open(&path, 2, 0).unwrap();
        assert_eq!(read(&path).unwrap(), lines[..2]);
        Log::open(&path, 0, 0).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn foreign_lines_do_not_survive_a_cut() {
        assert_eq!(cut(b"\xff\xfe\n{}\n{\"step\":1}\n", 9, 9), b"");
    }
}
