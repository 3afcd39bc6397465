//! Which samples make a step's batch.
//!
//! Batches run over the endless concatenation of the epochs' orders: step s takes positions [s·B, (s+1)·B), and position
//! p is place p mod N of the order of epoch e = p / N. So every batch is full, and the order is a pure function of (seed,
//! position): a resumed run needs no state except the step. If ranks share the work, a step's positions are cut into one
//! consecutive piece per rank, so that a step has the same samples whatever the number of ranks; an evaluation's batches
//! are given to the ranks in turn.
//!
//! An epoch draws every sample once, or every class equally often ([`balance`]). Its order is one of two
//! ([`Shuffle`]): a permutation of all draws, which is a Fisher-Yates shuffle from Philox with purpose
//! [`Purpose::Order`], index the place in the shuffle and time the epoch; or, for sets larger than memory, a random order
//! of blocks whose samples are mixed ([`blocks`]).

mod balance;
pub mod blocks;
mod sampling;
mod visits;

use std::ops::Range;

use balance::Classes;
use blocks::Blocks;
pub use sampling::{Sampling, Shuffle};
use visits::Visits;

use super::{Source, Split};
use crate::random::{Purpose, below, draw};

/// A sample's place in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The sample's number in the split.
    pub index: u32,
    /// What the sample's random choices depend on: the epoch, or the round through its class where classes are balanced.
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
    shuffle(permutation, |block| draw(seed, block, epoch, Purpose::Order, 0));
}

/// Fisher and Yates's shuffle, with four draws from each block of `bits`.
fn shuffle(values: &mut [u32], bits: impl Fn(u64) -> [u32; 4]) {
    let mut four = [0; 4];
    for left in (1..values.len()).rev() {
        // One Philox block is enough for four exchanges.
        if left % 4 == 3 || left == values.len() - 1 {
            four = bits((left / 4) as u64);
        }
        values.swap(left, below(four[left % 4], left as u32 + 1) as usize);
    }
}

/// Gives the places of each step. Holds a few bytes for each sample: the permutation of one epoch, the draws of one that
/// is balanced.
#[derive(Debug)]
pub struct Sampler {
    batch: u64,
    share: Share,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// 0..n once; the last batch may be partial.
    Fixed { samples: u64 },
    /// Endless epochs.
    Shuffled(Box<Epochs>),
}

/// The draws of one epoch, and their order.
#[derive(Debug)]
struct Epochs {
    seed: u64,
    samples: u64,
    epoch: Option<u32>,
    /// Classes, and the draws of this epoch, sorted by block at least; without them draw n is sample n.
    balanced: Option<(Classes, Vec<Place>)>,
    order: Draws,
}

#[derive(Debug)]
enum Draws {
    Permuted(Vec<u32>),
    InBlocks {
        visits: Visits,
        /// Of the visits.
        blocks: Blocks,
    },
}

impl Epochs {
    fn new(seed: u64, samples: usize) -> Epochs {
        let order = Draws::Permuted(vec![0; samples]);
        Epochs { seed, samples: samples as u64, epoch: None, balanced: None, order }
    }

    fn place(&mut self, position: u64) -> Place {
        let epoch = (position / self.samples) as u32;
        if self.epoch != Some(epoch) {
            self.start(epoch);
        }
        let at = position % self.samples;
        let drawn = match &mut self.order {
            Draws::Permuted(permutation) => permutation[at as usize],
            Draws::InBlocks { blocks, .. } => blocks.draw(at),
        };
        match &self.balanced {
            Some((_, draws)) => draws[drawn as usize],
            None => Place { index: drawn, epoch },
        }
    }

    fn start(&mut self, epoch: u32) {
        self.epoch = Some(epoch);
        if let Some((classes, draws)) = &mut self.balanced {
            classes.draws(self.seed, epoch, draws);
        }
        match &mut self.order {
            Draws::Permuted(permutation) => permute(self.seed, epoch, permutation),
            Draws::InBlocks { visits, blocks } => {
                if let Some((_, draws)) = &mut self.balanced {
                    blocks.cut(visits.cuts(draws));
                }
                blocks.start(epoch);
            }
        }
    }
}

impl Sampler {
    /// For training: endless, with a new order in each epoch. `samples` is below 2^32.
    pub fn shuffled(seed: u64, samples: usize, batch: usize) -> Sampler {
        let order = Order::Shuffled(Box::new(Epochs::new(seed, samples)));
        Sampler { batch: batch as u64, share: Share::WHOLE, order }
    }

    /// For training on a source's images, in the order that `sampling` says.
    pub fn training(seed: u64, source: &Source, batch: usize, sampling: Sampling) -> Sampler {
        let starts = || source.blocks(Split::Train);
        Sampler::of_samples(
            seed,
            source.samples(Split::Train),
            source.labels(Split::Train),
            starts,
            batch,
            sampling,
        )
    }

    /// For training on samples with these labels. `starts` gives the first sample of each block, and the number of
    /// samples.
    pub fn of_samples(
        seed: u64,
        samples: usize,
        labels: impl Iterator<Item = u32>,
        starts: impl FnOnce() -> Vec<u32>,
        batch: usize,
        sampling: Sampling,
    ) -> Sampler {
        let mut epochs = Epochs::new(seed, samples);
        epochs.balanced = sampling.balance.then(|| (Classes::new(labels), Vec::new()));
        if sampling.shuffle == Shuffle::Blocks {
            let starts = starts();
            let (visits, cuts) = match &epochs.balanced {
                Some((classes, _)) => {
                    let visits = Visits::balanced(starts, classes);
                    // The cuts of an epoch are known when its draws are.
                    let cuts = vec![0; visits.count() + 1];
                    (visits, cuts)
                }
                None => (Visits::once(starts.clone()), starts),
            };
            epochs.order = Draws::InBlocks { visits, blocks: Blocks::new(seed, cuts) };
        }
        Sampler { batch: batch as u64, share: Share::WHOLE, order: Order::Shuffled(Box::new(epochs)) }
    }

    /// For evaluation: in order, once.
    pub fn fixed(samples: usize, batch: usize) -> Sampler {
        let order = Order::Fixed { samples: samples as u64 };
        Sampler { batch: batch as u64, share: Share::WHOLE, order }
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
            Order::Shuffled(_) => start..start + self.batch,
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
            Order::Shuffled(epochs) => places.extend(positions.map(|position| epochs.place(position))),
        }
    }

    /// Adds the ranges of samples that should now be read from disk, for the steps that were filled and those after
    /// them. None, unless the order is by blocks.
    pub fn wanted(&mut self, wanted: &mut Vec<Range<usize>>) {
        let Order::Shuffled(epochs) = &mut self.order else { return };
        if let Draws::InBlocks { visits, blocks } = &mut epochs.order {
            let mut numbers = Vec::new();
            blocks.wanted(&mut numbers);
            wanted.extend(numbers.iter().map(|&visit| visits.samples(visit)));
        }
    }
}
