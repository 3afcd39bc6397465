//! The control path: how ranks find each other, agree, and stop together.
//!
//! Rank 0's process runs a small service, one thread with a TCP port. Every rank, rank 0 too, keeps one connection
//! to it. All that ranks say to each other on this path is one all-gather: everybody gives some bytes, and when all
//! have, everybody gets all of them in rank order. Barriers, sums and broadcasts are made of it.
//!
//! A group comes together entirely or not at all. Ranks that do not come in time are listed; ranks that want
//! something else than rank 0 (another world size, version, recipe, data set) are named together with what differs.
//! Whoever connects without being a rank, a port scanner for example, is dropped and disturbs nobody.
//!
//! Afterwards the first error stops all. A rank reports its own; a connection that ends without a farewell is a rank
//! that died; a rank that stands still longer than the watchdog allows is named with what it was doing. Every rank has
//! a thread of its own for this, which hears of the stop however busy or blocked the rank's main thread is, and runs
//! the hooks that unblock it.
//!
//! | file | holds |
//! |---|---|
//! | `wire` | frames: what goes over a connection |
//! | `connect` | addresses, listening, the way from a connection to a seat |
//! | `connection` | one connection of the service, which never blocks |
//! | `service` | rank 0's thread: one loop over all connections, from strangers to seats |
//! | `running` | what it does once all are there |
//! | `seats` | who is there, who is refused and why |
//! | `watch` | who stands still |
//! | `member` | a rank's own thread: heartbeats, results, the stop |
//! | `group` | [`Group`], what the rest of the program sees |

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
use std::os::fd::{IntoRawFd, RawFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use error::{Cause, GroupError, Stopped};
pub use group::Group;
pub use wire::LIMIT;

use super::World;

/// How to join a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub world: World,
    /// `host:port` of rank 0's service.
    pub address: String,
    /// Rank 0: a socket that listens already, inherited from the process that started the ranks. The group takes it
    /// over. Without one, rank 0 listens at the port of `address`: on all interfaces, or only on the loopback where
    /// the host is that.
    pub listener: Option<RawFd>,
    /// How long ranks wait for each other at the start.
    pub timeout: Duration,
    /// How long a rank may stand still.
    pub watchdog: Duration,
    /// Whether a stop ends the process where it has not ended by itself within `grace`.
    pub hard_exit: bool,
    pub grace: Duration,
}

impl Membership {
    /// With the usual limits: two minutes to come, five minutes to stand still.
    pub fn new(world: World, address: impl Into<String>) -> Membership {
        Membership {
            world,
            address: address.into(),
            listener: None,
            timeout: Duration::from_secs(120),
            watchdog: Duration::from_secs(300),
            hard_exit: false,
            grace: Duration::from_secs(5),
        }
    }

    /// Of a group within one machine, around a listener at a port that the system chose. Rank 0 gets a descriptor of
    /// its own, so `listener` remains the caller's.
    ///
    /// # Errors
    /// Where the system has no descriptor or no address.
    pub fn local(rank: usize, size: usize, listener: &TcpListener) -> io::Result<Membership> {
        let world = World { rank, size, local_rank: rank, local_size: size };
        let mut membership = Membership::new(world, listener.local_addr()?.to_string());
        if world.leads() {
            membership.listener = Some(listener.try_clone()?.into_raw_fd());
        }
        Ok(membership)
    }
}

/// What must be the same at all ranks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the program.
    pub version: String,
    /// Names and values, in the order in which they are compared: the recipe's fields, the data set's fingerprint.
    pub facts: Vec<(String, String)>,
}

/// A rank, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Who {
    rank: usize,
    host: String,
    pid: u32,
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} (host {}, pid {})", self.rank, self.host, self.pid)
    }
}

impl Who {
    /// This rank's first error.
    fn stopped(&self, cause: Cause, (step, what): (u64, &str), message: String) -> Stopped {
        let Who { rank, host, pid } = self.clone();
        Stopped { rank, host, pid, step, what: what.into(), cause, message }
    }
}
