//! Every class equally often.
//!
//! An epoch has as many draws as the split has samples, so that its length in steps does not change. Each class gets an
//! equal part of them; of a remainder, the classes get one more in turn, so that after as many epochs as there are
//! classes all have had the same number. A class counts its draws from the first epoch on and walks through its samples
//! in rounds, each in a new order: a rare class comes many times an epoch, and of a common one another part in each.
//!
//! The number of the round takes the place of the epoch in a sample's random choices: so a sample that comes a hundred
//! times in an epoch is cropped and coloured in a hundred ways.

use std::ops::Range;

use super::{Place, shuffle};
use crate::random::{Purpose, draw};

/// The samples of each class that has any.
#[derive(Debug)]
pub struct Classes {
    members: Vec<Vec<u32>>,
    samples: u64,
}

impl Classes {
    /// `labels` are those of samples 0, 1, …
    pub fn new(labels: impl Iterator<Item = u32>) -> Classes {
        let mut members: Vec<Vec<u32>> = Vec::new();
        let mut samples = 0;
        for (index, label) in labels.enumerate() {
            let label = label as usize;
            if label >= members.len() {
                members.resize_with(label + 1, Vec::new);
            }
            members[label].push(index as u32);
            samples += 1;
        }
        members.retain(|class| !class.is_empty());
        Classes { members, samples }
    }

    /// Every sample, with the mean number of its draws in an epoch.
    pub fn expected(&self) -> impl Iterator<Item = (u32, f64)> {
        let of_class = self.samples as f64 / self.members.len() as f64;
        let times = move |class: &'_ Vec<u32>| of_class / class.len() as f64;
        self.members.iter().flat_map(move |class| class.iter().map(move |&sample| (sample, times(class))))
    }

    /// The draws of a class in an epoch, counted from the first epoch on.
    fn turns(&self, class: usize, epoch: u32) -> Range<u64> {
        let classes = self.members.len() as u64;
        let (equal, left) = (self.samples / classes, self.samples % classes);
        // The remainders of the epochs follow each other around the circle of classes.
        let before = |epoch: u64| epoch * equal + (epoch * left + classes - 1 - class as u64) / classes;
        before(u64::from(epoch))..before(u64::from(epoch) + 1)
    }

    /// Writes the draws of an epoch to `draws`, as many as there are samples, sorted by sample and round.
    pub fn draws(&self, seed: u64, epoch: u32, draws: &mut Vec<Place>) {
        draws.clear();
        let mut order = Vec::new();
        for (class, members) in self.members.iter().enumerate() {
            let size = members.len() as u64;
            let mut shuffled = None;
            for turn in self.turns(class, epoch) {
                let round = (turn / size) as u32;
                if shuffled != Some(round) {
                    order.clone_from(members);
                    let of_class = (class as u64) << 32;
                    shuffle(&mut order, |block| draw(seed, of_class | block, round, Purpose::Balance, 0));
                    shuffled = Some(round);
                }
                draws.push(Place { index: order[(turn % size) as usize], epoch: round });
            }
        }
        draws.sort_unstable_by_key(|place| (place.index, place.epoch));
    }
}
