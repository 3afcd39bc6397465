//! Which samples make a step's batch.
//!
//! Batches run over the endless concatenation of the epochs' permutations: step s takes positions
//! [s·B, (s+1)·B), and position p is sample π_e[p mod N] of epoch e = p / N. So every sample comes exactly once per
//! epoch, every batch is full, and the order is a pure function of (seed, position): a resumed run needs no state
//! except the step. If ranks share the work, a step's positions are cut into one consecutive piece per rank, so that a
//! step has the same samples whatever the number of ranks; an evaluation's batches are given to the ranks in turn.
//!
//! π_e is a Fisher-Yates shuffle drawn from Philox with purpose [`Purpose::Order`], index the place in the
//! shuffle and time the epoch.

use std::ops::Range;

use crate::random::{Purpose, below, draw};

/// A sample's place in a run: its number in the split, and the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub index: u32,
    pub epoch: u32,
}

/// This process's part of every batch, one of several equal parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub part: usize,
    pub parts: usize,
}

impl Share {
    /// Everything.
    pub const WHOLE: Share = Share { part: 0, parts: 1 };
}

/// Shuffles 0..`permutation.len()` into `permutation`; a function of (seed, epoch, length).
pub fn permute(seed: u64, epoch: u32, permutation: &mut [u32]) {
    for (index, place) in permutation.iter_mut().enumerate() {
        *place = index as u32;
    }
    let mut bits = [0; 4];
    for left in (1..permutation.len()).rev() {
        // One Philox block is enough for four exchanges.
        if left % 4 == 3 || left == permutation.len() - 1 {
            bits = draw(seed, (left / 4) as u64, epoch, Purpose::Order, 0);
        }
        permutation.swap(left, below(bits[left % 4], left as u32 + 1) as usize);
    }
}

/// Gives the places of each step. Holds the permutation of one epoch, four bytes a sample.
#[derive(Debug)]
pub struct Sampler {
    seed: u64,
    batch: u64,
    share: Share,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// 0..n once; the last batch may be partial.
    Fixed { samples: u64 },
    /// Endless epochs.
    Shuffled { epoch: Option<u32>, permutation: Vec<u32> },
}

impl Sampler {
    /// For training: endless, with a new order in each epoch. `samples` is below 2^32.
    pub fn shuffled(seed: u64, samples: usize, batch: usize) -> Sampler {
        let order = Order::Shuffled { epoch: None, permutation: vec![0; samples] };
        Sampler { seed, batch: batch as u64, share: Share::WHOLE, order }
    }

    /// For evaluation: in order, once.
    pub fn fixed(samples: usize, batch: usize) -> Sampler {
        let order = Order::Fixed { samples: samples as u64 };
        Sampler { seed: 0, batch: batch as u64, share: Share::WHOLE, order }
    }

    /// The same for one of several processes: `batch` is then the part of each of them.
    pub fn shared(self, share: Share) -> Sampler {
        Sampler { share, ..self }
    }

    /// Positions of a step's batch, or of this process's share of it.
    pub fn positions(&self, step: u64) -> Range<u64> {
        let Share { part, parts } = self.share;
        let start = (step * parts as u64 + part as u64) * self.batch;
        match self.order {
            Order::Fixed { samples } => start.min(samples)..(start + self.batch).min(samples),
            Order::Shuffled { .. } => start..start + self.batch,
        }
    }

    /// Writes the places of a step's batch to `places`. Steps in rising order shuffle once an epoch.
    pub fn fill(&mut self, step: u64, places: &mut Vec<Place>) {
        places.clear();
        let positions = self.positions(step);
        match &mut self.order {
            Order::Fixed { .. } => {
                places.extend(positions.map(|position| Place { index: position as u32, epoch: 0 }));
            }
            Order::Shuffled { epoch: shuffled, permutation } => {
                let samples = permutation.len() as u64;
                for position in positions {
                    let epoch = (position / samples) as u32;
                    if *shuffled != Some(epoch) {
                        permute(self.seed, epoch, permutation);
                        *shuffled = Some(epoch);
                    }
                    places.push(Place { index: permutation[(position % samples) as usize], epoch });
                }
            }
        }
    }
}
