//! The order of an epoch for a set larger than memory.
//!
//! A disk reads a piece of a mebibyte about as fast as it can, and single photographs in random places far slower. So
//! the samples are cut into *blocks* of neighbours ([`BLOCK_BYTES`]). The blocks of an epoch are read one after the
//! other, in a random order, and each of their samples is held back for a random time of up to [`BUFFER`] blocks. So
//! the samples of one block are spread over as many others as the buffer holds, and about that many bytes have to be
//! in memory at a time, from the first step of a run to its last.
//!
//! ```text
//! block read   0    1    2    3    4    5  ...       a sample of the block that is read as number r
//! held back    |----------- up to BUFFER ----|       comes at time r + d, d uniform in [0, BUFFER)
//! ```
//!
//! Where classes are balanced, a block with many draws is read several times, each time for a part of them; what is said
//! of blocks below holds for these [visits](super::visits).
//!
//! The order is a function of (seed, epoch) and of the set; how much memory a machine has changes nothing. Sorting all
//! times would give it; a heap of the samples that are held back gives the same without a table of the whole set. To
//! begin in the middle of an epoch, the samples before are drawn and thrown away.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::permute;
use crate::random::{Purpose, draw};

/// Least bytes of a block, unless a shard ends: what the disk reads at once.
pub const BLOCK_BYTES: u64 = 1 << 20;
/// Blocks over which the samples of one are spread: half a gibibyte. In a set that is sorted by class this mixes some
/// hundreds of classes.
pub const BUFFER: u64 = 512;
/// Blocks that are read ahead of the first use of one of their samples.
pub const AHEAD: u64 = 64;

/// Draws of an epoch, in the order of their times. A draw is a number below the epoch's length, and draws of one block
/// follow each other.
#[derive(Debug)]
pub struct Blocks {
    seed: u64,
    epoch: u32,
    /// The first draw of each block, and the number of draws.
    cuts: Vec<u32>,
    /// The blocks of this epoch and of the next one, in the order in which they are read.
    rows: [Vec<u32>; 2],
    /// Blocks of this epoch that were read.
    read: u64,
    /// Time and number of the draws that are held back.
    held: BinaryHeap<Reverse<(u64, u32)>>,
    /// Draws that were given.
    given: u64,
    /// The time of the last one, in blocks.
    time: u64,
    /// Blocks that were asked for, counted on into the next epoch.
    asked: u64,
}

impl Blocks {
    /// `cuts` are the starts of the blocks, with the end of the last one.
    pub fn new(seed: u64, cuts: Vec<u32>) -> Blocks {
        let blocks = cuts.len() - 1;
        let rows = [vec![0; blocks], vec![0; blocks]];
        let mut new = Blocks {
            seed,
            epoch: 0,
            cuts,
            rows,
            read: 0,
            held: BinaryHeap::new(),
            given: 0,
            time: 0,
            asked: 0,
        };
        new.rewind(0);
        new
    }

    fn blocks(&self) -> u64 {
        self.rows[0].len() as u64
    }

    /// The draws of another epoch begin at these places; see [`Blocks::new`]. The number of blocks stays the same.
    pub fn cut(&mut self, cuts: Vec<u32>) {
        assert_eq!(cuts.len(), self.cuts.len());
        self.cuts = cuts;
    }

    /// Begins an epoch, unless it is the one that is under way.
    pub fn start(&mut self, epoch: u32) {
        if self.given == 0 && epoch == self.epoch {
            return;
        }
        if epoch == self.epoch.wrapping_add(1) && self.held.is_empty() && self.read == self.blocks() {
            self.rows.swap(0, 1);
            permute(self.seed, epoch.wrapping_add(1), &mut self.rows[1]);
            self.asked = self.asked.saturating_sub(self.blocks());
            self.begin(epoch);
        } else {
            self.rewind(epoch);
        }
    }

    fn rewind(&mut self, epoch: u32) {
        let [now, next] = &mut self.rows;
        permute(self.seed, epoch, now);
        permute(self.seed, epoch.wrapping_add(1), next);
        self.asked = 0;
        self.begin(epoch);
    }

    fn begin(&mut self, epoch: u32) {
        self.epoch = epoch;
        (self.read, self.given, self.time) = (0, 0, 0);
        self.held.clear();
    }

    /// The draw at a place of the epoch that was started.
    pub fn draw(&mut self, place: u64) -> u32 {
        if place < self.given {
            self.rewind(self.epoch);
        }
        while self.given < place {
            self.next();
        }
        self.next()
    }

    fn next(&mut self) -> u32 {
        loop {
            // Draws of blocks that are not read yet come later than this.
            let sure = if self.read < self.blocks() { self.read << 32 } else { u64::MAX };
            match self.held.peek() {
                Some(&Reverse((time, number))) if time < sure => {
                    self.held.pop();
                    self.given += 1;
                    self.time = time >> 32;
                    return number;
                }
                _ => self.read_block(),
            }
        }
    }

    /// Draws the times of the next block's samples.
    fn read_block(&mut self) {
        assert!(self.read < self.blocks(), "an epoch has no draw after its last");
        let block = self.rows[0][self.read as usize] as usize;
        for number in self.cuts[block]..self.cuts[block + 1] {
            let bits = draw(self.seed, u64::from(number / 4), self.epoch, Purpose::HoldBack, 0);
            let delay = u64::from(bits[number as usize % 4]) * BUFFER;
            self.held.push(Reverse(((self.read << 32) + delay, number)));
        }
        self.read += 1;
    }

    /// Adds the numbers of the blocks that should be read now and were not named before. In the middle of an epoch that
    /// was not read from its start, these include the blocks of which samples are held back.
    pub fn wanted(&mut self, wanted: &mut Vec<u32>) {
        let blocks = self.blocks();
        let to = (self.time + 1).max(self.read) + AHEAD;
        // Of a third epoch nothing is known yet.
        let to = to.min(2 * blocks);
        let from = self.asked.max((self.time + 1).saturating_sub(BUFFER)).min(to);
        let number = |at: u64| self.rows[(at / blocks) as usize][(at % blocks) as usize];
        wanted.extend((from..to).map(number));
        self.asked = self.asked.max(to);
    }
}

/// Cuts samples of these lengths, which follow each other in a file, into blocks; `first` is the number of the first
/// sample. Adds the start of each block.
pub fn cut(first: usize, lengths: impl Iterator<Item = u64>, starts: &mut Vec<u32>) {
    let mut bytes = BLOCK_BYTES;
    for (at, length) in lengths.enumerate() {
        if bytes >= BLOCK_BYTES {
            starts.push((first + at) as u32);
            bytes = 0;
        }
        bytes += length;
    }
}
