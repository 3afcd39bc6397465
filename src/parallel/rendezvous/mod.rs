//! The control path: how ranks find each other, agree, and stop together.
//!
//! The process of rank 0 runs a small service: one thread and a TCP port. Every rank, including rank 0, keeps one
//! connection to it. Ranks exchange data on this path by one operation, an all-gather: every rank gives some bytes, and
//! when all have, every rank gets the bytes of all in rank order. Flags and broadcasts are built from it.
//!
//! A group is formed completely or not at all. If ranks do not join in time, the error lists them. If a rank differs
//! from rank 0 (another world size, version, recipe or data set), the error names it and the difference. A connection
//! that is not from a rank, for example of a port scanner, is dropped and disturbs no rank.
//!
//! Once the group is formed, the first error stops all ranks. A rank reports its own errors. A connection that closes
//! without a goodbye means that the rank died. A rank that makes no progress for longer than the watchdog allows is
//! named together with what it was doing. Every rank has a thread for this. It receives the stop even if the rank's main
//! thread is busy or blocked, and runs the hooks that unblock it.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | frames: what is sent over a connection |
//! | `connect` | listening, and how a rank connects and joins |
//! | `connection` | one connection of the service, which never blocks |
//! | `service` | rank 0's thread: one loop over all connections |
//! | `running` | what the service does once the group is formed |
//! | `seats` | which ranks have joined, which are refused and why |
//! | `watch` | which rank holds the others up |
//! | `member` | a rank's own thread: heartbeats, results, the stop |
//! | `group` | [`Group`], the interface to the rest of the program |

mod connect;
mod connection;
mod error;
mod group;
mod member;
mod running;
mod seats;
mod service;
mod watch;
mod wire;

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::{Cause, GroupError, Stopped, print_error};
pub use group::Group;
use wire::Heartbeat;
pub use wire::LIMIT;

use super::{Address, World};

/// How to join a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    pub world: World,
    /// Where the service of rank 0 listens.
    pub address: Address,
    /// For rank 0: the listening socket that its parent process has opened. Without one, rank 0 listens at the port of
    /// `address`: on the loopback if the host is a loopback address, else on all interfaces.
    pub listener: Option<InheritedListener>,
    /// How long the ranks wait for each other at the start.
    pub timeout: Duration,
    /// How long a rank may make no progress.
    pub watchdog: Duration,
    /// Whether a stop ends the process if it has not ended by itself within `grace`.
    pub hard_exit: bool,
    pub grace: Duration,
}

impl Membership {
    /// With the usual limits: the ranks have two minutes to join, and five to make progress.
    pub fn new(world: World, address: Address) -> Membership {
        Membership {
            world,
            address,
            listener: None,
            timeout: Duration::from_secs(120),
            watchdog: Duration::from_secs(300),
            hard_exit: false,
            grace: Duration::from_secs(5),
        }
    }

    /// A group within one machine, with a listener at any port. Rank 0 uses a duplicate of it.
    ///
    /// # Errors
    /// If the socket cannot be duplicated or has no address.
    pub fn local(rank: usize, size: usize, listener: &TcpListener) -> io::Result<Membership> {
        let world = World { rank, size, local_rank: rank, local_size: size };
        let at = listener.local_addr()?;
        let mut membership = Membership::new(world, Address::new(&at.ip().to_string(), at.port()));
        if world.leads() {
            membership.listener = Some(listener.try_clone()?.into());
        }
        Ok(membership)
    }
}

/// A listening socket for rank 0. The first group that joins with it takes it out, since the port must be closed when
/// that group ends.
#[derive(Clone, Debug)]
pub struct InheritedListener(Arc<Mutex<Option<TcpListener>>>);

impl InheritedListener {
    fn take(&self) -> Option<TcpListener> {
        lock(&self.0).take()
    }
}

impl From<TcpListener> for InheritedListener {
    fn from(listener: TcpListener) -> InheritedListener {
        InheritedListener(Arc::new(Mutex::new(Some(listener))))
    }
}

impl PartialEq for InheritedListener {
    fn eq(&self, other: &InheritedListener) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// What must be equal at all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the program.
    pub version: String,
    /// Names and values in the order in which they are compared: the fields of the recipe, the fingerprint of the data.
    pub facts: Vec<(String, String)>,
}

/// What identifies a rank in messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RankId {
    rank: usize,
    host: String,
    pid: u32,
}

impl std::fmt::Display for RankId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} (host {}, pid {})", self.rank, self.host, self.pid)
    }
}

impl RankId {
    /// The group's first error, caused by this rank.
    fn stopped(&self, cause: Cause, (step, what): (u64, &str), message: String) -> Stopped {
        let RankId { rank, host, pid } = self.clone();
        Stopped { rank, host, pid, step, what: what.into(), cause, message }
    }

    /// The same for an error that others observe: `how` says what, "ended without a message" for example.
    fn observed(&self, cause: Cause, how: &str, last: &Heartbeat) -> Stopped {
        let (step, what) = last.doing();
        self.stopped(cause, (step, what), format!("{self} {how}; it was in step {step}: {what}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data under these locks is consistent at any time, so a panic of another thread does no harm to it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
