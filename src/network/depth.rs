//! Depth: which layers are trained. Those from one place of the network on are; those before it run as in evaluation.

use super::NetworkConfig;
use crate::ops::Statistics;

/// A place in the network, in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The first convolution.
    Stem,
    /// A stage of blocks, by its number from 0.
    Stage(usize),
    /// The last convolution.
    Head,
    Classifier,
}

impl NetworkConfig {
    /// Whether the layers of this place are trained.
    pub fn trains(&self, place: Depth) -> bool {
        self.trained_from.is_some_and(|first| place >= first)
    }

    /// The statistics by which batch norms of this place normalise.
    pub fn statistics_at(&self, place: Depth) -> Statistics {
        if self.trains(place) { self.statistics } else { Statistics::Running }
    }
}
