//! `effnet-eval --report`: a page about a run and one of its checkpoints.

use std::path::{Path, PathBuf};

use super::{EvalError, EvalFlags};
use crate::data::{DataError, Split};
use crate::train::checkpoint;
use crate::train::device::Selected;
use crate::train::evaluate::Evaluation;
use crate::train::page::facts::Facts;
use crate::train::page::history::History;
use crate::train::page::writer::evaluate;
use crate::train::page::{FILE, Page, is_page};
use crate::train::whole::Whole;
use crate::train::{DataChoice, TrainError};

impl EvalFlags {
    /// Where the page goes. A page of before may be replaced.
    ///
    /// # Errors
    /// A folder; a file that is no such page, without --force; a checkpoint in any case.
    pub(super) fn page_file(&self, given: Option<&Path>) -> Result<PathBuf, EvalError> {
        let file = match (given, self.split) {
            (Some(file), _) => file.to_owned(),
            (None, Split::Val) => self.checkpoint.with_file_name(FILE),
            (None, split) => self.checkpoint.with_file_name(format!("report-{split}.html")),
        };
        self.may_write(&file)?;
        Ok(file)
    }

    /// Whether a page may be written to this file.
    pub(super) fn may_write(&self, file: &Path) -> Result<(), EvalError> {
        if file.is_dir() {
            return Err(EvalError::ReportFolder(file.to_owned()));
        }
        if checkpoint::is_checkpoint(file) {
            return Err(EvalError::PageOntoCheckpoint(file.to_owned()));
        }
        if file.exists() && !self.force && !is_page(file) {
            return Err(EvalError::OntoOther(file.to_owned()));
        }
        Ok(())
    }

    /// Evaluates the checkpoint and writes the page. Returns the figures and the images evaluated in a second.
    pub(super) fn report(
        &self,
        whole: Whole,
        selected: Selected,
        choice: &DataChoice,
        page: &Path,
    ) -> Result<(Vec<Evaluation>, f64), EvalError> {
        let run = self.checkpoint.parent().unwrap_or(Path::new(""));
        let log = run.join("log.jsonl");
        let history = History::read(run).map_err(DataError::io(&log)).map_err(TrainError::from)?;
        // Nobody sets the flag that would stop it.
        let Some((shown, rate)) = evaluate(whole, selected)? else { return Ok((Vec::new(), 0.0)) };
        let figures = shown.figures.clone();
        // What the run's own page says of it.
        let last = history.as_ref().map_or(0, History::last_step);
        let mut facts = Facts::of_page(&run.join(FILE)).unwrap_or_default().at(last);
        if facts.data.is_empty() {
            facts.data = choice.to_string();
        }
        let source = whole.source;
        let own = source.fingerprint() == whole.read.metadata.data;
        if own {
            facts.train_images = source.samples(Split::Train) as u64;
        }
        let mut made = Page::new(&self.checkpoint, whole.read, facts, history, Some(shown), source)?;
        made.other_data = (!own).then(|| choice.to_string());
        made.write(page).map_err(|error| TrainError::from(DataError::from(error)))?;
        Ok((figures, rate))
    }
}
