//! What training changes at random about an image.
//!
//! A [`Policy`] chooses two things: a [`Geometry`], by which the decoded image comes into the square ([`standard`]), and
//! then a list of [`Edit`]s of the square, each kind by one file here. To add one: a file with a function like
//! [`random_erasing`]'s `edits`, its call in [`Look::edits`], and a field or a variant of [`Auto`] that chooses it.
//!
//! Every draw is a function of (seed, epoch, sample id), not of the thread, the rank or the batch.

mod auto;
mod auto_augment;
mod color_jitter;
mod mixing;
mod operation;
mod rand_augment;
mod random_erasing;
mod standard;
#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
mod trivial_augment;

pub use auto::Auto;
pub use mixing::Mixing;
pub use rand_augment::RandAugment;

use super::edit::Edit;
use super::geometry::Geometry;
use super::mix::Mix;
use crate::random::{Purpose, draw, unit};

/// How training images are augmented. The default is [`Policy::STANDARD`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Least and largest share of the image's area that a crop has.
    pub crop_area: [f64; 2],
    /// Least and largest width of a crop, divided by its height.
    pub crop_ratio: [f64; 2],
    /// Share of images that are mirrored, and that are turned upside down.
    pub flip: f64,
    pub vertical_flip: f64,
    pub auto: Auto,
    /// Largest change of brightness, contrast and saturation; 0 is none.
    pub color_jitter: f64,
    /// Share of images of which a rectangle is erased.
    pub random_erasing: f64,
    pub mixing: Mixing,
    /// The colour of erased rectangles and of what comes from outside the image: the mean that the run subtracts.
    pub fill: [u8; 3],
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::STANDARD
    }
}

impl Policy {
    /// Random crops, or shifts within the padding, and mirror images.
    pub const STANDARD: Policy = Policy {
        crop_area: [0.08, 1.0],
        crop_ratio: [3.0 / 4.0, 4.0 / 3.0],
        flip: 0.5,
        vertical_flip: 0.0,
        auto: Auto::None,
        color_jitter: 0.0,
        random_erasing: 0.0,
        mixing: Mixing::NONE,
        fill: [0; 3],
    };

    /// Whether squares stay as geometry makes them, but for being mixed.
    pub fn only_geometry(&self) -> bool {
        self.vertical_flip == 0.0
            && self.auto == Auto::None
            && self.color_jitter == 0.0
            && self.random_erasing == 0.0
    }
}

/// One sight of a training image: the policy, and what its draws depend on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    pub policy: Policy,
    pub seed: u64,
    pub epoch: u32,
    pub id: u64,
}

impl Look {
    /// How an image of this size comes into the square. `padded` is the crop mode `Pad`, else `Resized`.
    pub(super) fn geometry(self, image: (u32, u32), side: u32, padded: bool) -> Geometry {
        standard::geometry(self, image, side, padded)
    }

    /// What then happens to the square of this side, in order. Replaces the content of `edits`.
    pub fn edits(self, side: u32, edits: &mut Vec<Edit>) {
        edits.clear();
        if self.happens(self.policy.vertical_flip, self.draw(Purpose::Flip, 0)[1]) {
            edits.push(Edit::FlipVertically);
        }
        match self.policy.auto {
            Auto::None => {}
            Auto::AutoAugment => auto_augment::edits(self, side, edits),
            Auto::Rand(rand) => rand_augment::edits(rand, self, side, edits),
            Auto::Trivial => trivial_augment::edits(self, side, edits),
        }
        if self.policy.color_jitter > 0.0 {
            color_jitter::edits(self, edits);
        }
        if self.policy.random_erasing > 0.0 {
            random_erasing::edits(self, side, edits);
        }
    }

    /// How the pair of which this is the first image is mixed, in that epoch of the run and in squares of this side.
    pub fn mix(self, epoch: u32, side: u32) -> Option<Mix> {
        mixing::choose(self, epoch, side)
    }

    /// Four draws; `layer` tells apart draws of one purpose.
    fn draw(self, purpose: Purpose, layer: u32) -> [u32; 4] {
        draw(self.seed, self.id, self.epoch, purpose, layer)
    }

    /// Whether a draw is in the upper part of [0, 1) that has this probability.
    fn happens(self, probability: f64, bits: u32) -> bool {
        f64::from(unit(bits)) >= 1.0 - probability
    }
}
