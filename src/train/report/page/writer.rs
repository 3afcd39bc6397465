//! Writes the page at the end of a run.
//!
//! The run's best weights are evaluated once more for it, on this process's device, when the run has ended and the log
//! and the checkpoints are safe. So the page is the same as that of `effnet-eval --report`, for any number of ranks and
//! after any number of resumptions, and training computes nothing that it would not compute without a page. The price
//! is one evaluation. A run that was interrupted or has diverged should end soon, so its page has only what the log
//! says, and the command that adds the rest.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::facts::{Base, Facts, Session};
use super::history::History;
use super::shown::{Collector, Shown, training};
use super::{FILE, Page};
use crate::data::{DataError, Source, Split};
use crate::model::ParamTable;
use crate::train::checkpoint::{self, Checkpoint};
use crate::train::device::{Selected, select_for};
use crate::train::error::TrainError;
use crate::train::evaluation::evaluate::rate;
use crate::train::evaluation::whole::Whole;
use crate::train::options::RunOptions;
use crate::train::report::events::{End, Event, Header, Outcome, Reporter};
use crate::train::report::rows::outcome_rows;

/// Passes all events on to another reporter, and writes the page before the last one. If it cannot be written, a line
/// says so, and the run's result is what it was.
pub struct Writer<R> {
    pub inner: R,
    job: Option<Job>,
    notes: Vec<String>,
    header: Option<Header>,
}

/// What a page needs beside the events.
pub struct Job {
    pub source: Source,
    pub options: RunOptions,
    /// What the recipe is compared with; none means the reference recipe.
    pub base: Option<Base>,
    /// Set when this process is asked to stop.
    pub stop: Arc<AtomicBool>,
}

impl<R: Reporter> Writer<R> {
    /// Writes no page until there is a [job](Writer::begin).
    pub fn new(inner: R) -> Writer<R> {
        Writer { inner, job: None, notes: Vec::new(), header: None }
    }

    pub fn begin(&mut self, job: Job) {
        self.job = Some(job);
    }

    fn finish(&mut self, outcome: &Outcome) {
        let (Some(job), Some(header)) = (self.job.take(), self.header.take()) else { return };
        if let Err(error) = self.write(&job, &header, outcome) {
            self.inner.notice(&format!("warning: there is no report: {error}"));
        }
    }

    fn write(&mut self, job: &Job, header: &Header, outcome: &Outcome) -> Result<(), TrainError> {
        let out = &header.out;
        let path = out.join(FILE);
        let history = History::read(out).map_err(DataError::io(&out.join("log.jsonl")))?;
        if history.as_ref().is_none_or(|history| history.evaluations.is_empty()) {
            return Ok(());
        }
        let mut facts = Facts::of_page(&path).filter(|_| header.first_step > 0).unwrap_or_default();
        facts.add(Session::of(header, outcome.step));
        facts.data.clone_from(&header.data);
        facts.train_images = header.train_images as u64;
        facts.base.clone_from(&job.base);
        facts.notes = std::mem::take(&mut self.notes);
        facts.end = outcome_rows(outcome).into_iter().find(|(name, _)| *name == "run").map(|(_, end)| end);
        facts.resume.clone_from(&outcome.resume);
        let file = checkpoint::of(out)?;
        let read = checkpoint::read(&file)?;
        let shown = match outcome.end {
            End::Interrupted => None,
            // All ranks then end with an error, and rank 0 should too.
            _ if outcome.diverged => None,
            _ => self.evaluate(job, &read)?,
        };
        let page = Page::new(&file, &read, facts, history, shown, &job.source)?;
        Ok(page.write(&path).map_err(DataError::from)?)
    }

    fn evaluate(&mut self, job: &Job, read: &Checkpoint) -> Result<Option<Shown>, TrainError> {
        let Job { source, options, stop, .. } = job;
        let sets = read.metadata.recipe.weights().len();
        self.inner.report(Event::Evaluating { images: (sets * source.samples(Split::Val)) as u64 });
        let batch = read.metadata.recipe.micro_batch;
        let whole = Whole { read, batch, source, split: Split::Val, threads: options.loader_threads, stop };
        Ok(evaluate(whole, select_for(options)?)?.map(|(shown, _)| shown))
    }
}

impl<R: Reporter> Reporter for Writer<R> {
    fn report(&mut self, event: Event) {
        match event {
            Event::Notice { text } => self.notes.push(text.into()),
            Event::Started(header) => self.header = Some(header.clone()),
            Event::Finished(outcome) => self.finish(outcome),
            _ => {}
        }
        self.inner.report(event);
    }
}

/// Evaluates a checkpoint for a page; none if it was stopped. Also returns the images evaluated in a second, by all
/// sets of weights together.
///
/// # Errors
/// [`TrainError`].
pub fn evaluate(whole: Whole, selected: Selected) -> Result<Option<(Shown, f64)>, TrainError> {
    let Whole { read, source, split, .. } = whole;
    let mut collector = Collector::new(&read.metadata);
    let since = Instant::now();
    let Some(figures) = whole.evaluate(selected, &mut |seen| collector.add(seen))? else { return Ok(None) };
    let rate = rate((source.samples(split) * figures.len()) as u64, since);
    Ok(Some((Shown::new(&read.metadata, source, split, figures, collector)?, rate)))
}

impl Page {
    /// The page of a checkpoint over a source.
    ///
    /// # Errors
    /// Those of reading the images that are shown.
    pub fn new(
        file: &Path,
        read: &Checkpoint,
        facts: Facts,
        history: Option<History>,
        shown: Option<Shown>,
        source: &Source,
    ) -> Result<Page, TrainError> {
        let own = source.fingerprint() == read.metadata.data;
        let (training, training_images) = match own {
            true => (training(&read.metadata.recipe, source)?, source.class_counts(Split::Train)),
            false => (Vec::new(), Vec::new()),
        };
        Ok(Page {
            checkpoint: file.to_owned(),
            metadata: read.metadata.clone(),
            parameters: ParamTable::new(&read.architecture).trainable(),
            facts,
            history,
            shown,
            other_data: None,
            training,
            training_images,
        })
    }
}
