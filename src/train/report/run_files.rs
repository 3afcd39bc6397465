//! Files of a run that repeat `log.jsonl` for other programs: [`log_csv`](super::log_csv) and
//! [`tensorboard`](super::tensorboard).
//!
//! `log.jsonl` is the record of the run; an error there ends it. These files hold nothing that is not there, so an error in
//! one of them ends only that file: a warning says so once, and the run goes on.

use super::events::{Event, Reporter};
use crate::files::FileError;

/// A file that is made of a run's events.
pub trait RunFile {
    /// Takes an event into the file.
    ///
    /// # Errors
    /// If the file cannot be written. It then gets no further events.
    fn record(&mut self, event: Event) -> Result<(), FileError>;
}

/// A reporter, and files beside it.
pub struct WithFiles {
    pub reporter: Box<dyn Reporter>,
    pub files: Vec<Box<dyn RunFile>>,
}

impl Reporter for WithFiles {
    fn report(&mut self, event: Event) {
        let WithFiles { reporter, files } = self;
        reporter.report(event);
        files.retain_mut(|file| match file.record(event) {
            Ok(()) => true,
            Err(error) => {
                reporter.notice(&format!(
                    "warning: {error}; the run goes on without this file, log.jsonl has the same figures"
                ));
                false
            }
        });
    }
}
