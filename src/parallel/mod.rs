//! Ranks: the processes that train one network together.
//!
//! Every rank computes the gradients of its own share of a step's images, the gradients are summed over the ranks,
//! and every rank moves its own copy of the weights the same way. Two paths join them. The *control* path, [`Group`],
//! is a small TCP service on rank 0: it finds out whether all are there and want the same, carries counts, stop
//! requests and the first error, and notices who has gone or stands still. The *data* path carries gradients: NCCL
//! between GPUs, a [`Chain`] of TCP connections in rank order between CPUs.
//!
//! This floor knows no device and no network: it moves bytes and sums numbers.

pub mod chain;
pub mod environment;
pub mod launch;
pub mod nccl;
mod rendezvous;

pub use chain::Chain;
use launch::Launch;
pub use rendezvous::{Cause, Group, GroupError, Identity, LIMIT, Membership, Stopped};

/// A rank's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// From 0.
    pub rank: usize,
    /// Ranks in all.
    pub size: usize,
    /// This rank's number among those of its machine, from 0, and how many those are.
    pub local_rank: usize,
    pub local_size: usize,
}

impl World {
    /// A process by itself.
    pub const ALONE: World = World { rank: 0, size: 1, local_rank: 0, local_size: 1 };

    /// Whether this is rank 0, which writes and tells.
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
    /// This process by itself.
    #[default]
    One,
    /// Those that this process starts. It trains nothing itself.
    Launch(Launch),
    /// This process is one of several.
    Given(Membership),
}

impl Ranks {
    /// This rank's place; that of the first rank to be started where they are still to be.
    pub fn world(&self) -> World {
        match self {
            Ranks::One => World::ALONE,
            Ranks::Launch(launch) => launch.world(0),
            Ranks::Given(membership) => membership.world,
        }
    }

    /// How this process joins the others, where it is one of several.
    pub fn membership(&self) -> Option<&Membership> {
        match self {
            Ranks::Given(membership) => Some(membership),
            _ => None,
        }
    }
}
