//! What training changes at random about an image: one policy a file.
//!
//! A policy chooses a [`Geometry`] and nothing else; CPU and GPU both follow it and give the same bytes. To add one: a
//! file here with a function like [`standard`]'s `geometry`, a variant of [`Policy`], its arm in [`Look::geometry`], and
//! the flag that chooses it. A policy that also changes colours must change the decoded image, in `Maker::with_image` of
//! `data/batch.rs`, before the geometry is applied: then CPU and GPU get the same pixels again.
//!
//! Every draw is a function of (seed, epoch, sample id), not of the thread, the rank or the batch.

mod standard;
#[cfg(test)]
mod tests;

use super::geometry::Geometry;
use crate::random::{Purpose, draw};

/// How training images are augmented.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Random crops, or shifts within the padding, and mirror images.
    #[default]
    Standard,
}

/// One sight of a training image: the policy, and what its draws depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub policy: Policy,
    pub seed: u64,
    pub epoch: u32,
    pub id: u64,
}

impl Look {
    /// How an image of this size comes into the square. `padded` is the crop mode `Pad`, else `Resized`.
    pub(super) fn geometry(self, image: (u32, u32), side: u32, padded: bool) -> Geometry {
        match self.policy {
            Policy::Standard => standard::geometry(self, image, side, padded),
        }
    }

    /// Four draws; `layer` tells apart draws of one purpose.
    fn draw(self, purpose: Purpose, layer: u32) -> [u32; 4] {
        draw(self.seed, self.id, self.epoch, purpose, layer)
    }
}
