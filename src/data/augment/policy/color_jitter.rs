//! Colour jitter: brightness, contrast and saturation are multiplied by factors between 1 − j and 1 + j, in random
//! order, as torchvision's `ColorJitter(j, j, j)` and timm's `color_jitter` do.

use super::Look;
use crate::data::augment::edit::Edit;
use crate::random::{Purpose, below, unit};

pub fn edits(look: Look, edits: &mut Vec<Edit>) {
    let jitter = look.policy.color_jitter;
    let bits = look.draw(Purpose::ColorJitter, 0);
    let least = (1.0 - jitter).max(0.0);
    let factor = |bits| Edit::factor(least + (1.0 + jitter - least) * f64::from(unit(bits)));
    let mut three = [
        Edit::Brightness { factor: factor(bits[0]) },
        Edit::Contrast { factor: factor(bits[1]) },
        Edit::Color { factor: factor(bits[2]) },
    ];
    // One of the six orders.
    let order = below(bits[3], 6);
    three.swap(0, (order % 3) as usize);
    three.swap(1, 1 + (order / 3) as usize);
    edits.extend(three);
}
