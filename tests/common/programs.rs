//! The project's programs as child processes: what they print, how they end, and signals to them.

use std::borrow::BorrowMut;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Environment variables that the programs read.
const VARIABLES: [&str; 7] = [
    "EFFNET_DATA",
    "NO_COLOR",
    "RANK",
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "SLURM_STEP_ID",
];

/// A program of this package, without these variables and without input.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin(name));
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// How a process ended, and what it printed.
#[derive(Debug)]
pub struct Ran {
    pub status: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs a command to its end.
pub fn run(mut command: impl BorrowMut<Command>) -> Ran {
    command.borrow_mut().output().unwrap().into()
}

/// Waits for the end of a process.
pub fn ended(child: Child) -> Ran {
    child.wait_with_output().unwrap().into()
}

impl Ran {
    /// Both outputs.
    pub fn printed(&self) -> String {
        format!("{}{}", self.out, self.err)
    }

    #[track_caller]
    pub fn good(self) -> Ran {
        assert_eq!(self.status, Some(0), "{}", self.printed());
        self
    }

    /// Expects this status and, on standard error, one line only: an error with all of these parts.
    #[track_caller]
    pub fn refused(&self, status: i32, parts: &[&str]) {
        let printed = self.printed();
        assert_eq!((self.status, self.err.lines().count()), (Some(status), 1), "{printed}");
        assert!(self.err.starts_with("error: ") && !printed.contains("panicked"), "{printed}");
        for part in parts {
            assert!(self.err.contains(part), "no {part:?} in: {}", self.err);
        }
    }

    /// The error lines of a process that failed.
    #[track_caller]
    pub fn errors(&self) -> Vec<&str> {
        assert!(matches!(self.status, Some(1 | 2)), "{:?}: {}", self.status, self.printed());
        self.err.lines().filter(|line| line.contains("error: ")).collect()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.printed()))
    }
}

/// Waits until `ready` is true.
#[track_caller]
pub fn until(what: &str, limit: Duration, ready: impl Fn() -> bool) {
    let since = Instant::now();
    while !ready() {
        assert!(since.elapsed() < limit, "waited too long until {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until `ready` is true. False if the process ends before.
#[track_caller]
pub fn wait_for(child: &mut Child, limit: Duration, ready: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(since.elapsed() < limit, "waited too long");
        sleep(Duration::from_micros(200));
    }
    true
}

/// The state of a process in one letter, and nothing after its end.
pub fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether a process runs. A process that has ended and is not reaped does not.
pub fn runs(pid: i32) -> bool {
    !matches!(state(pid), None | Some('Z' | 'X'))
}

/// Signals a process that runs.
pub fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Signals a process, which may have ended.
pub fn try_signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Random numbers from a fixed seed, in [0, 1): when to kill a process, and which.
pub struct Moments(pub u64);

impl Moments {
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}
