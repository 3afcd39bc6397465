//! The log of a run, and how it becomes few enough points for a page.
//!
//! A log of 300,000 steps is cut into [`COLUMNS`] columns of equally many steps. Each keeps the least, the largest and
//! the mean value of its steps, so that no extreme is lost, however long the run was.

use std::fs;
use std::io;
use std::path::Path;

use crate::train::report::events::{Best, EvaluationRecord, ExtensionRecord, LogLine, StepRecord};

/// The most columns of a curve: about as many as a screen has pixels for it.
pub const COLUMNS: usize = 1000;

/// The records of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    pub steps: Vec<StepRecord>,
    pub evaluations: Vec<EvaluationRecord>,
    pub extensions: Vec<ExtensionRecord>,
    /// Lines that are no records.
    pub damaged: u64,
}

impl History {
    /// The log of the run in a directory; none if there is no log.
    ///
    /// # Errors
    /// If the log is there and cannot be read.
    pub fn read(run: &Path) -> io::Result<Option<History>> {
        match fs::read(run.join("log.jsonl")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => Ok(Some(History::parse(&text))),
        }
    }

    fn parse(text: &[u8]) -> History {
        let mut history = History::default();
        for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(LogLine::Step(record)) => history.steps.push(record),
                Ok(LogLine::Evaluation(record)) => history.evaluations.push(record),
                Ok(LogLine::Extension(record)) => history.extensions.push(record),
                Err(_) => history.damaged += 1,
            }
        }
        history
    }

    pub fn last_step(&self) -> u64 {
        let steps = self.steps.iter().map(|record| record.step);
        steps.chain(self.evaluations.iter().map(|record| record.step)).max().unwrap_or(0)
    }

    /// Epochs of a step; none before the first record.
    pub fn epochs_per_step(&self) -> Option<f64> {
        let steps = self.steps.iter().map(|record| (record.step, record.epoch));
        let records = steps.chain(self.evaluations.iter().map(|record| (record.step, record.epoch)));
        let (step, epoch) = records.max_by_key(|(step, _)| *step)?;
        (step > 0 && epoch.is_finite()).then(|| epoch / step as f64)
    }

    /// Seconds of all steps, without evaluations and saving.
    pub fn seconds(&self, batch: usize) -> f64 {
        self.steps.iter().map(|record| step_seconds(record, batch)).sum()
    }

    /// Seconds in which the steps waited for images.
    pub fn waited(&self) -> f64 {
        self.steps.iter().map(|record| record.data_wait).filter(|wait| wait.is_finite()).sum()
    }

    /// The best evaluation with its accuracy, by the rule that chooses best.bin; the first one of equals.
    pub fn best(&self, classes: usize) -> Option<(&EvaluationRecord, Best)> {
        let found = self.evaluations.iter().filter_map(|record| Some((record, record.best(classes)?)));
        found.reduce(|best, next| if next.1.top1 > best.1.top1 { next } else { best })
    }

    /// A value of each step, thinned.
    pub fn curve(&self, value: impl Fn(&StepRecord) -> Option<f64>) -> Vec<Column> {
        let points = self.steps.iter().filter_map(|record| Some((record.step, value(record)?)));
        thin(&points.filter(|(_, value)| value.is_finite()).collect::<Vec<_>>(), COLUMNS)
    }

    /// A value of each evaluation. They are few; if not, thinned too.
    pub fn evaluated(&self, value: impl Fn(&EvaluationRecord) -> Option<f64>) -> Vec<Column> {
        let points = self.evaluations.iter().filter_map(|record| Some((record.step, value(record)?)));
        thin(&points.filter(|(_, value)| value.is_finite()).collect::<Vec<_>>(), COLUMNS)
    }
}

/// Seconds of a step with so many images; 0 if the log does not say.
pub fn step_seconds(record: &StepRecord, batch: usize) -> f64 {
    let seconds = batch as f64 / record.images_per_second;
    if seconds.is_finite() { seconds } else { 0.0 }
}

/// What is kept of some steps in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// The first step and the last.
    pub first: u64,
    pub last: u64,
    pub least: f64,
    pub most: f64,
    pub mean: f64,
}

/// Cuts points in rising order into at most `columns` columns.
pub fn thin(points: &[(u64, f64)], columns: usize) -> Vec<Column> {
    let count = points.len().min(columns);
    let column = |number: usize| {
        let own = &points[number * points.len() / count..(number + 1) * points.len() / count];
        let values = || own.iter().map(|point| point.1);
        Column {
            first: own[0].0,
            last: own[own.len() - 1].0,
            least: values().fold(f64::INFINITY, f64::min),
            most: values().fold(f64::NEG_INFINITY, f64::max),
            mean: values().sum::<f64>() / own.len() as f64,
        }
    };
    (0..count).map(column).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thin_keeps_every_extreme() {
        for length in [0usize, 1, 7, 1000, 1001, 2999, 300_000] {
            let value = |n: usize| {
                ((n * 7919) % 1009) as f64 + if n == length / 3 { 5e6 } else { 0.0 }
                    - if n == 2 * length / 3 { 7e6 } else { 0.0 }
            };
            let points: Vec<(u64, f64)> = (0..length).map(|n| (n as u64 + 1, value(n))).collect();
            let thinned = thin(&points, 1000);
            assert_eq!(thinned.len(), length.min(1000));
            // Every step is in one column, and within its column's range.
            let mut next = 1;
            for column in &thinned {
                assert_eq!(column.first, next);
                next = column.last + 1;
                let own = &points[column.first as usize - 1..column.last as usize];
                assert!(own.iter().any(|p| p.1 == column.least) && own.iter().any(|p| p.1 == column.most));
                assert!(own.iter().all(|p| (column.least..=column.most).contains(&p.1)));
                assert!((column.least..=column.most).contains(&column.mean));
            }
            assert_eq!(next, length as u64 + 1);
            let extremes = |values: &mut dyn Iterator<Item = f64>| {
                values.fold((f64::MAX, f64::MIN), |(l, m), v| (l.min(v), m.max(v)))
            };
            let kept = extremes(&mut thinned.iter().flat_map(|c| [c.least, c.most]));
            assert_eq!(kept, extremes(&mut points.iter().map(|p| p.1)), "{length}");
        }
    }

    #[test]
    fn parse_counts_damaged_lines_and_keeps_the_others() {
        let text = b"{\"step\":1,\"epoch\":0.5,\"loss\":null,\"accuracy\":0.25,\"lr\":0.1,\"images_per_second\":8.0,\
            \"data_wait\":0.5,\"skipped\":true}\n\
            {\"step\":1,\"epoch\":0.5,\"top1\":0.5,\"top5\":1.0,\"loss\":1.5,\"images\":8,\"images_per_second\":1.0}\n\
            \xff\xfe\n{}\n\n{\"step\":2,\"epoch\":1.0,\"lo";
        let history = History::parse(text);
        assert_eq!((history.steps.len(), history.evaluations.len(), history.damaged), (1, 1, 3));
        assert_eq!((history.seconds(16), history.waited()), (2.0, 0.5));
        assert_eq!((history.epochs_per_step(), history.last_step()), (Some(0.5), 1));
        // A loss that is not finite is no point of a curve.
        assert_eq!(history.curve(|record| Some(record.loss)), []);
        assert_eq!(History::parse(b""), History::default());
        assert_eq!(History::default().epochs_per_step(), None);
    }

    #[test]
    fn read_tells_a_missing_log_from_one_that_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(History::read(dir.path()).unwrap(), None);
        fs::create_dir(dir.path().join("log.jsonl")).unwrap();
        assert!(History::read(dir.path()).is_err());
    }
}
