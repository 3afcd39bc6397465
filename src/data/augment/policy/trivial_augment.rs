//! TrivialAugment in its wide form (Müller and Hutter 2021), as torchvision's `TrivialAugmentWide`: one of fourteen
//! operations for each image, with one of 31 strengths. What comes from outside is black.

use super::Look;
use crate::data::augment::edit::Edit;
use crate::random::{Purpose, below};

/// Strengths of an operation, evenly spaced from the first to the last.
pub(super) const STRENGTHS: u32 = 31;
const OPERATIONS: u32 = 14;

pub fn edits(look: Look, side: u32, edits: &mut Vec<Edit>) {
    let bits = look.draw(Purpose::Edit, 0);
    let number = below(bits[1], STRENGTHS);
    edits.extend(edit(below(bits[0], OPERATIONS), number, bits[2] >> 31 == 1, side, [0; 3]));
}

/// Operation `operation` at strength `number`; none is the identity.
pub(super) fn edit(operation: u32, number: u32, negate: bool, side: u32, fill: [u8; 3]) -> Option<Edit> {
    let share = f64::from(number) / f64::from(STRENGTHS - 1);
    let signed = |most: f64| if negate { -most * share } else { most * share };
    let factor = || Edit::factor(1.0 + signed(0.99));
    // Moved by whole pixels.
    let pixels = signed(32.0).trunc();
    Some(match operation {
        0 => return None,
        1 => Edit::affine([1.0, signed(0.99), 0.0, 0.0, 1.0, 0.0], fill),
        2 => Edit::affine([1.0, 0.0, 0.0, signed(0.99), 1.0, 0.0], fill),
        3 => Edit::affine([1.0, 0.0, pixels, 0.0, 1.0, 0.0], fill),
        4 => Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, pixels], fill),
        5 => Edit::rotate(signed(135.0), side, fill),
        6 => Edit::Brightness { factor: factor() },
        7 => Edit::Color { factor: factor() },
        8 => Edit::Contrast { factor: factor() },
        9 => Edit::Sharpness { factor: factor() },
        10 => Edit::Posterize { bits: 8 - (share * 6.0).round_ties_even() as u8 },
        11 => Edit::Solarize { threshold: (255.0 - 255.0 * share).ceil() as u16 },
        12 => Edit::AutoContrast,
        _ => Edit::Equalize,
    })
}
