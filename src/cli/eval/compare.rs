//! `effnet-eval --compare`: a page of several runs.

use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use super::{EvalError, EvalFlags};
use crate::cli::usage;
use crate::data::DataError;
use crate::train::TrainError;
use crate::train::page::compare::{self, Run};

impl EvalFlags {
    /// The names on the command line are the runs and, last, the page.
    pub(super) fn compare(&self, out: &mut dyn Write) -> Result<(), EvalError> {
        let mut runs: Vec<&PathBuf> = std::iter::once(&self.checkpoint).chain(&self.images).collect();
        let page = runs.pop().filter(|_| runs.len() > 1);
        let Some(page) = page else {
            return Ok(usage(
                "--compare: needs two runs or more, and the page to write: runs/a runs/b OUT.html",
            )?);
        };
        if page.is_dir() {
            let page = page.display();
            return Ok(usage(format!(
                "--compare: the last name is that of the page to write, and {page} is a folder; add OUT.html"
            ))?);
        }
        self.may_write(page)?;
        let runs = runs.into_iter().map(|run| Run::read(run)).collect::<Result<Vec<Run>, TrainError>>()?;
        compare::write(&runs, page).map_err(|error| TrainError::from(DataError::from(error)))?;
        if self.json {
            writeln!(out, "{}", json!({ "report": page.display().to_string(), "runs": runs.len() }))?;
        } else {
            writeln!(out, "report: {}", page.display())?;
        }
        Ok(())
    }
}
