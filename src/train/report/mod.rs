//! Reports of a run: one kind of [event](events), and a writer for each form.
//!
//! | writer | form |
//! |---|---|
//! | [`plain`] | lines, for a pipe or a file |
//! | [`terminal`] | a table and a progress bar |
//! | [`json`] | an object a line, for programs |
//! | [`curves`] | `curves.svg` in the run directory |
//! | [`card`] | the model card beside exported weights |
//! | [`page`] | `report.html` in the run directory, at the end |
//! | [`log`] | `log.jsonl` in the run directory: the record that a resumed run continues, so errors end the run |
//! | [`log_csv`] | `log.csv`, the same for a spreadsheet; see [`run_files`] |
//! | [`tensorboard`] | event files in the run directory; see [`run_files`] |
//!
//! If the reader of standard output goes away (a closed pipe), the report ends but the run continues.

pub mod card;
pub mod curves;
pub mod event_file;
pub mod events;
pub mod json;
pub mod log;
pub mod log_csv;
pub mod page;
pub mod plain;
pub mod preview;
pub mod profile;
pub mod rows;
pub mod run_files;
pub mod tensorboard;
pub mod terminal;

use std::io::{self, IsTerminal};

use events::Reporter;

/// The reporter for standard output.
pub fn for_stdout(json: bool) -> Box<dyn Reporter> {
    let stdout = io::stdout();
    if json {
        Box::new(json::Json(stdout))
    } else if stdout.is_terminal() {
        Box::new(terminal::Terminal::new())
    } else {
        Box::new(plain::Plain::new(stdout))
    }
}

#[cfg(test)]
mod tests;
