//! A report as lines of text, for a pipe or a file.

use std::io::Write;
use std::time::{Duration, Instant};

use super::events::{Event, Header, Reporter, StepRecord};
use super::profile;
use super::rows::{Row, StepMeans, evaluation_line, header_rows, outcome_rows};

pub struct Plain<W> {
    out: W,
    means: StepMeans,
    batch: usize,
    classes: usize,
    /// The step at which the run stops.
    steps: u64,
    /// Steps of a twentieth of an epoch.
    every: u64,
    last_line: Instant,
    last_step: u64,
}

impl<W: Write> Plain<W> {
    pub fn new(out: W) -> Self {
        let last_line = Instant::now();
        let means = StepMeans::default();
        Plain { out, means, batch: 1, classes: 0, steps: 0, every: 1, last_line, last_step: 0 }
    }

    fn line(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }

    fn rows(&mut self, rows: &[Row]) {
        rows.iter().for_each(|(name, value)| self.line(&format!("{name}: {value}")));
    }

    fn start(&mut self, header: &Header) {
        self.rows(&header_rows(header));
        self.batch = header.recipe.batch_size;
        self.classes = header.classes;
        self.steps = header.last_step;
        self.every = (header.train_images as u64 / self.batch.max(1) as u64 / 20).max(1);
        self.last_line = Instant::now();
    }

    fn step(&mut self, record: &StepRecord) {
        self.means.add(record, self.batch, 1.0);
        if self.due(record) {
            let means = std::mem::take(&mut self.means).line();
            self.line(&format!("step {}/{}, epoch {:.2}: {means}", record.step, self.steps, record.epoch));
            self.last_line = Instant::now();
            self.last_step = record.step;
        }
    }

    /// About twenty lines an epoch, at least one second and at most ten seconds apart.
    fn due(&self, record: &StepRecord) -> bool {
        let quiet = self.last_line.elapsed();
        let part = record.step.is_multiple_of(self.every) && quiet >= Duration::from_secs(1);
        part || quiet >= Duration::from_secs(10) || self.last_step == 0 || record.step == self.steps
    }
}

impl<W: Write> Reporter for Plain<W> {
    fn report(&mut self, event: Event) {
        match event {
            Event::Started(header) => self.start(header),
            Event::Step(record) => self.step(record),
            Event::Evaluation { record, best } => {
                self.line(&format!("validation, {}", evaluation_line(record, best, self.classes)));
                self.last_line = Instant::now();
            }
            Event::Profile { report, steps } => {
                profile::lines(report, steps).iter().for_each(|line| self.line(line));
            }
            Event::Notice { text } => self.line(text),
            Event::Finished(outcome) => self.rows(&outcome_rows(outcome)),
            // A notice says more of an extension.
            Event::Evaluating { .. } | Event::Saved { .. } | Event::Extended(_) => {}
        }
    }
}
