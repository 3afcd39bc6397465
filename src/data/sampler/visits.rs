//! How often an epoch visits a block of the disk.
//!
//! If every sample is drawn once, a block is visited once. If classes are balanced, the few blocks of a rare class have
//! many more draws than others. All of them within one buffer's time would be a burst of that class, with none of it
//! before and after. So such a block's draws are cut into equal parts, each about as many as a block has in the mean.
//! Each part is a visit, and the visits of an epoch come in random order. A part has draws of neighbouring rounds: of
//! each sample about as many as of any other. How many visits a block has is the same in every epoch.

use std::ops::Range;

use super::Place;
use super::balance::Classes;

#[derive(Debug)]
pub struct Visits {
    /// The first sample of each block, and the number of samples.
    starts: Vec<u32>,
    /// The block of each visit, in rising order.
    blocks: Vec<u32>,
}

impl Visits {
    /// One of each block. `starts` are the starts of the blocks, with the end of the last one.
    pub fn once(starts: Vec<u32>) -> Visits {
        let blocks = (0..starts.len() as u32 - 1).collect();
        Visits { starts, blocks }
    }

    /// As many as balanced classes need. A block with about the mean number of draws or less has one, so that classes of
    /// equal sizes give the order of [`Visits::once`].
    pub fn balanced(starts: Vec<u32>, classes: &Classes) -> Visits {
        let mut draws = vec![0.0; starts.len() - 1];
        for (sample, times) in classes.expected() {
            draws[starts.partition_point(|&start| start <= sample) - 1] += times;
        }
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let visits =
            |(block, draws): (u32, f64)| (0..(draws / mean).round().max(1.0) as u32).map(move |_| block);
        let blocks = (0..).zip(draws).flat_map(visits).collect();
        Visits { starts, blocks }
    }

    /// The first draw of each visit, and the number of draws. `draws` are sorted by sample; those of a block with several
    /// visits are put in the order of their rounds.
    pub fn cuts(&self, draws: &mut [Place]) -> Vec<u32> {
        let mut cuts = Vec::with_capacity(self.blocks.len() + 1);
        for visits in self.blocks.chunk_by(|a, b| a == b) {
            let first = |block: u32| draws.partition_point(|draw| draw.index < self.starts[block as usize]);
            let (from, to) = (first(visits[0]), first(visits[0] + 1));
            if visits.len() > 1 {
                draws[from..to].sort_unstable_by_key(|draw| (draw.epoch, draw.index));
            }
            cuts.extend((0..visits.len()).map(|visit| (from + (to - from) * visit / visits.len()) as u32));
        }
        cuts.push(draws.len() as u32);
        cuts
    }

    /// The samples of a visit's block.
    pub fn samples(&self, visit: u32) -> Range<usize> {
        let block = self.blocks[visit as usize] as usize;
        self.starts[block] as usize..self.starts[block + 1] as usize
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.blocks.len()
    }
}
