//! `effnet-eval`: see [`effnet::cli::eval`].
//!
//! Exit status: 0, 1 after an error, 2 if the command line cannot be carried out, 130 after Ctrl-C or SIGTERM.

use std::io::{self, Write};
use std::process::ExitCode;

use effnet::cli::eval::{EvalError, EvalFlags};
use effnet::cli::{Parsed, parse, signals};

fn main() -> ExitCode {
    signals::survive_file_size_limits();
    let mut out = io::stdout().lock();
    // Not locked: the thread that waits for signals writes there too.
    let mut err = io::stderr();
    let flags = match parse::<EvalFlags>(std::env::args_os()) {
        Ok(Parsed::Flags(flags)) => flags,
        Ok(Parsed::Text(text)) => {
            let _ = write!(out, "{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let _ = writeln!(err, "error: {error}");
            return ExitCode::from(2);
        }
    };
    match flags.run(&mut out, &mut err).and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the output has closed it, and wants nothing more.
        Err(EvalError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(err, "error: {error}");
            match error {
                EvalError::Stopped { .. } => ExitCode::from(130),
                EvalError::Usage(_) => ExitCode::from(2),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
