//! `effnet-train`: flags to a job, the job carried out, an error told in one line.
//!
//! Exit status: 0, 1 if something failed, 2 if the command line asked for what cannot be done, 130 after Ctrl-C or
//! SIGTERM (the run is saved, if it had begun).

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use effnet::cli::execute::{Done, is_closed_pipe, is_told, is_usage};
use effnet::cli::flags::Flags;
use effnet::cli::{Parsed, parse, signals, survive_file_size_limits};
use effnet::train::saved_recipe;

fn main() -> ExitCode {
    survive_file_size_limits();
    match run() {
        Ok(Done::Finished) => ExitCode::SUCCESS,
        Ok(Done::Interrupted) => ExitCode::from(130),
        Ok(Done::Ranks(status)) => ExitCode::from(status),
        // Whoever read our output has gone; there is nobody to tell.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if is_told(&error) => ExitCode::FAILURE,
        Err(error) => {
            let line = format!("{error:#}").replace('\n', " ");
            let _ = writeln!(io::stderr(), "error: {line}");
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
    let job = flags.job::<anyhow::Error>(|out| Ok(saved_recipe(out)?))?;
    let stop = Arc::new(AtomicBool::new(false));
    if job.launches().is_some() {
        // Signals are the launcher's, which passes them on.
        return job.execute(&stop);
    }
    signals::watch(&stop)?;
    job.execute(&stop)
}
