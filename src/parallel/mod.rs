//! Ranks: the processes that train one network together.
//!
//! Every rank computes the gradients of its own share of a step's images. The gradients are summed over the ranks, and
//! every rank updates its own copy of the weights in the same way. Two paths connect the ranks:
//!
//! - The *control* path, [`Group`], is a small TCP service in the process of rank 0. It checks that all ranks are there
//!   and run the same training, carries counts, stop requests and the first error, and detects ranks that died or hang.
//! - The *data* path carries the gradients: NCCL between GPUs, a [`Chain`] of TCP connections in rank order between
//!   CPUs.
//!
//! This module moves bytes and sums numbers. It knows no device and no network, and imports nothing of the other
//! modules of this crate.

mod address;
pub(crate) mod chain;
pub(crate) mod environment;
pub mod launch;
pub mod nccl;
mod rendezvous;

pub use address::{Address, AddressError};
pub(crate) use chain::Chain;
use launch::Launch;
pub use rendezvous::{
    Cause, Group, GroupError, Identity, InheritedListener, LIMIT, Membership, Stopped, print_error,
};

/// The place of a rank among all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// Counts from 0.
    pub rank: usize,
    /// The number of all ranks.
    pub size: usize,
    /// This rank's number among the ranks of its machine, from 0.
    pub local_rank: usize,
    /// The number of ranks on its machine.
    pub local_size: usize,
}

impl World {
    /// The place of a process that trains without others.
    pub const ALONE: World = World { rank: 0, size: 1, local_rank: 0, local_size: 1 };

    /// Whether this is rank 0, which writes files and reports.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }
}

impl Default for World {
    fn default() -> World {
        World::ALONE
    }
}

/// Which ranks train.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Ranks {
    /// Only this process.
    #[default]
    One,
    /// The processes that this process starts. It does not train itself.
    Launch(Launch),
    /// This process is one of several ranks.
    Given(Membership),
}

impl Ranks {
    /// The place of this rank, or of the first rank that this process starts.
    pub fn world(&self) -> World {
        match self {
            Ranks::One => World::ALONE,
            Ranks::Launch(launch) => launch.world(0),
            Ranks::Given(membership) => membership.world,
        }
    }

    /// How this process joins the others if it is one of several.
    pub fn membership(&self) -> Option<&Membership> {
        match self {
            Ranks::Given(membership) => Some(membership),
            _ => None,
        }
    }
}
