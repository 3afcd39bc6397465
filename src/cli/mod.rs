//! From flags to a recipe.
//!
//! Three layers of settings lie over each other: the command line, a file (`--config`), and the preset of the demo.
//! What none of them says is the reference recipe's or, after `--resume`, the checkpoint's. The result, a [`Job`], is
//! complete and checked; below this floor nobody knows of flags.

pub mod config;
pub mod demo;
pub mod eval;
pub mod execute;
pub mod flags;
pub mod job;
mod ranks;
pub mod signals;

use clap::Parser;
use clap::error::ErrorKind;

pub use flags::Flags;
pub use job::{Action, Job};

/// A command line or a configuration file that asks for what cannot be done: one line. Programs end with status 2.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("{0}")]
pub struct UsageError(pub String);

/// What parsing arguments comes to.
#[derive(Debug)]
pub enum Parsed<T> {
    Flags(Box<T>),
    /// The text that --help or --version asked for.
    Text(String),
}

/// Parses a command line, program name first.
///
/// # Errors
/// What clap has to say, folded into one line.
pub fn parse<T: Parser>(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
) -> Result<Parsed<T>, UsageError> {
    match T::try_parse_from(arguments) {
        Ok(flags) => Ok(Parsed::Flags(Box::new(flags))),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Parsed::Text(error.to_string()))
        }
        Err(error) => Err(UsageError(one_line(&error.to_string()))),
    }
}

/// Makes a file-size limit an error of the write that meets it, told like a full disk, not a sudden death.
pub fn survive_file_size_limits() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal calls no code of ours.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Clap's message without its usage lines: "invalid value 'x' for '--lr <RATE>': must be a number".
fn one_line(message: &str) -> String {
    let parts = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let parts = parts.filter(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let line = parts.collect::<Vec<_>>().join("; ");
    line.trim_start_matches("error: ").to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;

    fn refused(arguments: &[&str]) -> String {
        let all = ["effnet-train"].iter().chain(arguments).map(|a| a.into());
        parse::<Flags>(all).unwrap_err().0
    }

    #[test]
    fn the_command_is_well_formed() {
        Flags::command().debug_assert();
    }

    #[test]
    fn a_mistake_is_one_line_that_names_the_flag_and_the_value() {
        for (arguments, parts) in [
            (["--lr", "fast"], ["fast", "--lr"]),
            (["--batch-size", "-1"], ["-1", "--batch-size"]),
            (["--model", "b9"], ["b9", "b0 … b7"]),
            (["--optimizer", "adam"], ["adam", "rmsprop-tf"]),
            (["--device", "tpu"], ["tpu", "cuda"]),
            (["--learning-rate", "1"], ["--learning-rate", "unexpected"]),
        ] {
            let line = refused(&arguments);
            assert!(parts.iter().all(|part| line.contains(part)) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn every_flag_has_a_heading_and_help() {
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
