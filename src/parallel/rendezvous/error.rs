//! What can go wrong while ranks join and afterwards, each as one line with its remedy.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::lock;
use crate::parallel::Address;

/// Why a rank cannot join, or cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The first error of the group. It has stopped all ranks.
    #[error("{0}")]
    Stopped(Stopped),
    /// Rank 0 refuses this rank, or the group was not formed. `told`: rank 0 prints the reason.
    #[error("{reason}")]
    Refused { reason: String, told: bool },
    /// This rank or another one was asked to stop before all ranks had joined.
    #[error("interrupted before all ranks had joined; training had not begun")]
    Interrupted,
    #[error("rank {rank} of {size} ranks is not possible: ranks count from 0")]
    Rank { rank: usize, size: usize },
    #[error("the host of rank 0's address {address} cannot be found ({error}); check the name")]
    Unresolved { address: Address, error: io::Error },
    #[error(
        "port {port} is in use; choose another one: --rendezvous {host}:PORT, or MASTER_PORT if a launcher sets it"
    )]
    PortInUse { host: String, port: u16 },
    #[error("cannot listen at {address} for the other ranks: {error}")]
    Listen { address: Address, error: io::Error },
    #[error("no answer from {address} for {}; does rank 0 run there, and is the port open?", seconds(*.timeout))]
    NoAnswer { address: Address, timeout: Duration },
    #[error("what answers at {0} is not effnet; is another program using the port?")]
    Foreign(Address),
    #[error("rank 0 at {0} closed the connection before all ranks had joined; its own error says why")]
    Lost(Address),
    #[error("{bytes} bytes are too many for `{what}`: ranks exchange at most {limit}")]
    TooLarge { what: &'static str, bytes: usize, limit: usize },
    #[error("`{0}` cannot start: the exchange before it is not collected")]
    Outstanding(&'static str),
    #[error("there is nothing to collect: call post first")]
    NothingPosted,
    #[error("this rank has left the group")]
    Left,
    #[error("cannot set up the connection to rank 0: {0}")]
    Io(#[from] io::Error),
}

impl GroupError {
    /// The group's first error, if this is it.
    pub fn stopped(&self) -> Option<&Stopped> {
        match self {
            GroupError::Stopped(stopped) => Some(stopped),
            _ => None,
        }
    }
}

/// The first error of a group, the same at every rank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// The rank that caused it.
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    /// The last known step and activity of that rank.
    pub step: u64,
    pub what: String,
    pub cause: Cause,
    /// For [`Cause::Failed`] the rank's own message, otherwise a line that names the rank.
    pub message: String,
}

impl Stopped {
    /// What the user can do, if the rank ended without a message of its own.
    pub fn remedy(&self) -> &'static str {
        match self.cause {
            Cause::Ended | Cause::Stalled if self.step > 0 => {
                "; the last checkpoint is intact: go on with --resume"
            }
            _ => "",
        }
    }
}

/// How the first error was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The rank reported it.
    Failed,
    /// Its connection closed without a message.
    Ended,
    /// It made no progress, or sent nothing, for longer than the watchdog allows.
    Stalled,
    /// Ranks are at different places in the program.
    Mismatch,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stopped { rank, host, pid, step, what, message, .. } = self;
        match self.cause {
            Cause::Failed => {
                write!(f, "rank {rank} (host {host}, pid {pid}) in step {step}, {what}: {message}")
            }
            _ => f.write_str(message),
        }
    }
}

/// Whether this process has printed its error. The lock is held while it prints.
static PRINTED: Mutex<bool> = Mutex::new(false);

/// Prints the error of this process on standard error, unless its group has done so.
///
/// Two threads may want to print it: the main thread, and the one that ends a process that hangs after a stop. Whichever
/// is first prints.
pub fn print_error(line: &str) {
    print(&mut lock(&PRINTED), line);
}

/// [`print_error`] for a thread that must not wait for long: the main thread may hold the lock because nothing reads
/// what it prints.
pub(super) fn print_error_or_give_up(line: &str) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let start = Instant::now();
    loop {
        match PRINTED.try_lock() {
            Ok(mut printed) => return print(&mut printed, line),
            Err(TryLockError::Poisoned(poisoned)) => return print(&mut poisoned.into_inner(), line),
            Err(TryLockError::WouldBlock) if start.elapsed() > PATIENCE => return,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn print(printed: &mut bool, line: &str) {
    if !*printed {
        // In one piece, so that lines of other ranks do not mix with it. A failure to print cannot be reported.
        let _ = io::stderr().write_all(format!("error: {line}\n").as_bytes());
        *printed = true;
    }
}

/// "5 s", or "1.5 s" for a short time that is not whole.
pub(super) fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 || time.as_secs() >= 10 {
        format!("{} s", time.as_secs())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
