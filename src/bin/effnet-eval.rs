//! `effnet-eval`: see [`effnet::cli::eval`].

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use effnet::cli::eval::{EvalError, EvalFlags};

fn main() -> ExitCode {
    let flags = EvalFlags::parse();
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    match flags.run(&mut out, &mut err).and_then(|()| Ok(out.flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has seen enough.
        Err(EvalError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(err, "error: {error}");
            ExitCode::FAILURE
        }
    }
}
