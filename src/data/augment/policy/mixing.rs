//! Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019): what happens to a pair of training images.
//!
//! Images at neighbouring places of the shuffled order, 2k and 2k + 1, are a pair. So a pair is the same for any
//! micro-batch, rank and thread. Each pair has draws of its own, as timm's mode `pair`; timm's default, one draw for the
//! whole batch, would depend on the batch. The draws are those of the pair's first image.

use super::Look;
use crate::data::augment::geometry::Rectangle;
use crate::data::augment::mix::{Mix, ONE};
use crate::random::{Purpose, below};

/// Which pairs are mixed, and how strongly. The names are timm's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixing {
    /// α of mixup and of cutmix: a share is drawn from Beta(α, α); 0 is none.
    pub mixup: f64,
    pub cutmix: f64,
    /// Share of pairs that are mixed.
    pub probability: f64,
    /// Share of the mixed pairs that cutmix mixes, where there are both.
    pub switch: f64,
    /// No pair is mixed from this epoch on; the first is 0.
    pub off_epoch: Option<u32>,
}

impl Mixing {
    pub const NONE: Mixing =
        Mixing { mixup: 0.0, cutmix: 0.0, probability: 1.0, switch: 0.5, off_epoch: None };

    pub fn is_none(&self) -> bool {
        self.mixup == 0.0 && self.cutmix == 0.0
    }
}

/// What happens to the pair whose first image this is, in squares of this side. `epoch` is that of the pair's place in the
/// run; where classes are balanced, the draws of an image depend on another number.
pub fn choose(look: Look, epoch: u32, side: u32) -> Option<Mix> {
    let Mixing { mixup, cutmix, probability, switch, off_epoch } = look.policy.mixing;
    let over = off_epoch.is_some_and(|end| epoch >= end);
    let bits = look.draw(Purpose::Mix, 0);
    if look.policy.mixing.is_none() || over || !look.happens(probability, bits[0]) {
        return None;
    }
    let cuts = mixup == 0.0 || (cutmix > 0.0 && look.happens(switch, bits[1]));
    let share = beta(if cuts { cutmix } else { mixup }, bits[2], bits[3]);
    let mix = if cuts {
        Mix::Exchange(rectangle(look, share, side))
    } else {
        Mix::Blend { weight: (share * f64::from(ONE)).round() as u32 }
    };
    (mix.share(side) < 1.0).then_some(mix)
}

/// A number of Beta(α, α) from two draws.
///
/// Bailey (1994): t = √(u^(−1/α) − 1)·cos 2πv makes √(2α)·t a number of Student's distribution with 2α degrees of
/// freedom, and then ½ + ½·t/√(1 + t²) is one of Beta(α, α). It is exact for every α and needs no second try. With
/// p = u^(1/α) it reads as below, where nothing overflows.
fn beta(alpha: f64, u: u32, v: u32) -> f64 {
    let open = |bits: u32| (f64::from(bits) + 0.5) / 4_294_967_296.0;
    let log = open(u).ln() / alpha;
    let (p, rest) = (log.exp(), -log.exp_m1());
    let cos = (std::f64::consts::TAU * open(v)).cos();
    let length = (cos * cos * rest + p).sqrt();
    0.5 + 0.5 * cos * rest.sqrt() / length
}

/// A rectangle that makes up 1 − `share` of a square, at a random place.
fn rectangle(look: Look, share: f64, side: u32) -> Rectangle {
    let bits = look.draw(Purpose::Mix, 1);
    around([below(bits[0], side), below(bits[1], side)], share, side)
}

/// The same around this row and this column, without what lies outside; as timm's `rand_bbox`.
fn around(middle: [u32; 2], share: f64, side: u32) -> Rectangle {
    let cut = (f64::from(side) * (1.0 - share).sqrt()) as u32;
    let range = |middle: u32| (middle.saturating_sub(cut / 2), (middle + cut.div_ceil(2)).min(side));
    let [(top, bottom), (left, right)] = middle.map(range);
    Rectangle { left, top, width: right - left, height: bottom - top }
}

#[cfg(test)]
#[path = "mixing_tests.rs"]
mod tests;
