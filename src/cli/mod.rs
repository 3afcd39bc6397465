//! The command lines of the programs.
//!
//! `effnet-train` has three layers of settings: the command line, a file (`--config`) and a preset (`--preset`, or that of
//! the demo). An upper layer replaces the values of a lower one. What no layer sets comes from the reference recipe or, after
//! `--resume`, from the checkpoint. The result is a [`Job`]: complete, checked and independent of flags.
//!
//! | module | |
//! |---|---|
//! | [`flags`] | the flags of `effnet-train`, how layers are merged, and which values are allowed |
//! | [`preset`] | published recipes by name |
//! | [`job`] | from flags to a job, and its execution |
//! | [`pack_bar`] | the progress of a pack |
//! | `unpacked` | images that are packed where `--data` names them |
//! | [`eval`] | `effnet-eval` |
//! | [`signals`] | Ctrl-C and SIGTERM |

pub mod eval;
pub mod flags;
pub mod job;
pub mod pack_bar;
pub mod preset;
pub mod signals;
mod unpacked;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

pub use flags::Flags;
pub use job::{Action, Job};
pub use signals::survive_file_size_limits;

/// A command line or a configuration file that cannot be carried out, described in one line. Programs exit with
/// status 2.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0}")]
pub struct UsageError(pub String);

fn usage<T>(text: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(text.into()))
}

/// The result of parsing arguments.
#[derive(Debug)]
pub enum Parsed<T> {
    Flags(Box<T>),
    /// The text of --help or --version.
    Text(String),
}

/// Parses a command line, which begins with the name of the program.
///
/// # Errors
/// Clap's message as one line.
pub fn parse<T: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed<T>, UsageError> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match T::try_parse_from(&arguments) {
        Ok(flags) => Ok(Parsed::Flags(Box::new(flags))),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Parsed::Text(error.to_string()))
        }
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            let which =
                arguments.iter().find(|argument| argument.to_str().is_none()).cloned().unwrap_or_default();
            usage(format!("{}: this name is no UTF-8 text; rename the file or folder", which.display()))
        }
        Err(error) => usage(one_line(&error.to_string())),
    }
}

/// Clap's message without its usage lines: "invalid value 'x' for '--lr <RATE>': must be a number".
fn one_line(message: &str) -> String {
    let parts = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let parts = parts.filter(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let line = parts.collect::<Vec<_>>().join("; ");
    // What follows a colon is the list that it announces.
    line.trim_start_matches("error: ").replace(":; ", ": ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_are_well_formed() {
        Flags::command().debug_assert();
        eval::EvalFlags::command().debug_assert();
    }

    #[test]
    fn parse_makes_one_line_of_an_error() {
        let line = |arguments: &[&str]| {
            let all = ["effnet-eval"].iter().chain(arguments).map(|argument| argument.into());
            parse::<eval::EvalFlags>(all).map(drop).unwrap_err().0
        };
        let missing = line(&[]);
        assert_eq!(missing, "the following required arguments were not provided: <CHECKPOINT>");
        let unknown = line(&["c.bin", "--batchsize", "4"]);
        assert!(unknown.contains("--batch-size") && !unknown.contains(":;"), "{unknown}");
    }

    #[test]
    fn flags_have_a_heading_and_help() {
        let headings: BTreeSet<String> = Flags::command()
            .get_arguments()
            .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
            .map(|argument| {
                assert!(argument.get_help().is_some(), "{argument}");
                argument.get_help_heading().unwrap_or_else(|| panic!("{argument} has no heading")).to_string()
            })
            .collect();
        assert_eq!(Vec::from_iter(headings), ["Data", "Model", "Output", "Recipe", "Run"]);
    }
}
