//! What goes wrong while ranks meet and afterwards, each as one line with its remedy.

use std::fmt;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Why a rank cannot join, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The first error of the group; it ended every rank's work.
    #[error("{0}")]
    Stopped(Stopped),
    /// Rank 0 does not take this rank, or the group did not come together. The line says which ranks and why; `told`
    /// where it is for rank 0 to print it.
    #[error("{why}")]
    Refused { why: String, told: bool },
    /// This rank or another one was asked to stop before all were there.
    #[error("interrupted before all ranks were there; nothing was begun")]
    Interrupted,
    #[error("`{0}` is no address of rank 0: write host:port, for example node1:29500 or [fd00::1]:29500")]
    Address(String),
    #[error("rank {rank} of {size} ranks cannot be: ranks count from 0")]
    Rank { rank: usize, size: usize },
    #[error("the host of rank 0's address {address} cannot be found ({error}); check the name")]
    Unresolved { address: String, error: io::Error },
    #[error(
        "port {port} is in use; choose another one: --rendezvous {host}:PORT, or MASTER_PORT where a launcher sets it"
    )]
    PortInUse { host: String, port: u16 },
    #[error("cannot listen at {address} for the other ranks: {error}")]
    Listen { address: String, error: io::Error },
    #[error("nobody answers at {address} for {}; does rank 0 run there, and is the port open?", seconds(*.timeout))]
    NobodyAnswers { address: String, timeout: Duration },
    #[error("what answers at {0} is not effnet; is another program using the port?")]
    Foreign(String),
    #[error("rank 0 at {0} went away before all ranks were there; its own error says why")]
    Lost(String),
    #[error("{bytes} bytes are too many for `{what}`: ranks exchange at most {limit}")]
    TooLarge { what: &'static str, bytes: usize, limit: usize },
    #[error("`{0}` cannot start: the exchange before it is not collected")]
    Outstanding(&'static str),
    #[error("there is nothing to collect: post comes first")]
    NothingPosted,
    #[error("rank {rank} gave {found} bytes for `{what}`, not {expected}")]
    Length { rank: usize, what: &'static str, found: usize, expected: usize },
    #[error("this rank has left the group")]
    Left,
    #[error("cannot set up the connection to rank 0: {0}")]
    Io(#[from] io::Error),
}

impl GroupError {
    /// The group's first error, where this is it.
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
    /// Whose error it is.
    pub rank: usize,
    pub host: String,
    pub pid: u32,
    /// What that rank did, as far as it is known.
    pub step: u64,
    pub what: String,
    pub cause: Cause,
    /// `Failed`: that rank's own words. Otherwise a line that names the rank itself.
    pub message: String,
}

impl Stopped {
    /// What is left to do, to be said after the error, where a rank went without a word: one that spoke has said it.
    pub fn remedy(&self) -> &'static str {
        match self.cause {
            Cause::Ended | Cause::Stalled if self.step > 0 => {
                "; the last checkpoint is intact: go on with --resume"
            }
            _ => "",
        }
    }
}

/// How the first error came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The rank said so.
    Failed,
    /// Its connection ended without a word.
    Ended,
    /// It stood still, or was not heard of, longer than the watchdog allows.
    Stalled,
    /// Ranks are at different places of the program.
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

/// Whole seconds where it is whole seconds.
pub(super) fn seconds(time: Duration) -> String {
    if time.subsec_millis() == 0 || time.as_secs() >= 10 {
        format!("{} s", time.as_secs())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
