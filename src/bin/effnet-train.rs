//! `effnet-train`: turns flags into a job and carries it out. An error is printed in one line.
//!
//! Exit status: 0, 1 after an error, 2 if the command line cannot be carried out, 130 after Ctrl-C or SIGTERM (the run
//! is saved, if it had begun).

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use effnet::cli::flags::Flags;
use effnet::cli::job::execute::{Done, is_closed_pipe, is_told, is_usage};
use effnet::cli::{Parsed, parse, signals};
use effnet::parallel::print_error;

fn main() -> ExitCode {
    signals::survive_file_size_limits();
    match run() {
        Ok(Done::Finished) => ExitCode::SUCCESS,
        Ok(Done::Interrupted) => ExitCode::from(130),
        Ok(Done::Ranks(status)) => ExitCode::from(status),
        // The reader of our output has closed it, and wants nothing more.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if is_told(&error) => ExitCode::FAILURE,
        Err(error) => {
            print_error(&format!("{error:#}").replace('\n', " "));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

fn run() -> Result<Done> {
    let flags = match parse::<Flags>(env::args_os())? {
        Parsed::Flags(flags) => flags,
        Parsed::Text(text) => {
            write!(io::stdout(), "{text}")?;
            return Ok(Done::Finished);
        }
    };
    if let Some(text) = flags.answer()? {
        write!(io::stdout(), "{text}")?;
        return Ok(Done::Finished);
    }
    let job = flags.job()?;
    let stop = Arc::new(AtomicBool::new(false));
    // A launcher handles signals itself and passes them on to its ranks.
    if job.launches().is_none() {
        signals::watch(&stop)?;
    }
    job.execute(&stop)
}
