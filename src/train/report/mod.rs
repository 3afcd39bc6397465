//! Reports of a run: one kind of [event](events), and a writer for each form.
//!
//! | writer | form |
//! |---|---|
//! | [`plain`] | lines, for a pipe or a file |
//! | [`terminal`] | a table and a progress bar |
//! | [`json`] | an object a line, for programs |
//! | [`curves`] | `curves.svg` in the run directory |
//! | [`page`] | `report.html` in the run directory, at the end |
//! | [`log`] | `log.jsonl` in the run directory: the record that a resumed run continues, so errors end the run |
//!
//! If the reader of standard output goes away (a closed pipe), the report ends but the run continues.

pub mod curves;
pub mod events;
pub mod json;
pub mod log;
pub mod page;
pub mod plain;
pub mod preview;
pub mod profile;
pub mod rows;
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
