//! AutoAugment's ImageNet policy, in the form called v0 by TensorFlow's EfficientNet and by timm: one of 25 pairs of
//! operations is drawn for each image, and each operation of the pair happens with its own probability.

use super::Look;
use super::operation::Operation::{self, *};
use crate::data::augment::edit::Edit;
use crate::random::{Purpose, below, unit};

/// Operation, probability, level.
type Step = (Operation, f32, f64);

/// In the order of the source: Cubuk et al. 2019, "AutoAugment", as the TPU's EfficientNet has it.
pub(super) const PAIRS: [[Step; 2]; 25] = [
    [(Equalize, 0.8, 1.0), (ShearY, 0.8, 4.0)],
    [(Color, 0.4, 9.0), (Equalize, 0.6, 3.0)],
    [(Color, 0.4, 1.0), (Rotate, 0.6, 8.0)],
    [(Solarize, 0.8, 3.0), (Equalize, 0.4, 7.0)],
    [(Solarize, 0.4, 2.0), (Solarize, 0.6, 2.0)],
    [(Color, 0.2, 0.0), (Equalize, 0.8, 8.0)],
    [(Equalize, 0.4, 8.0), (SolarizeAdd, 0.8, 3.0)],
    [(ShearX, 0.2, 9.0), (Rotate, 0.6, 8.0)],
    [(Color, 0.6, 1.0), (Equalize, 1.0, 2.0)],
    [(Invert, 0.4, 9.0), (Rotate, 0.6, 0.0)],
    [(Equalize, 1.0, 9.0), (ShearY, 0.6, 3.0)],
    [(Color, 0.4, 7.0), (Equalize, 0.6, 0.0)],
    [(Posterize, 0.4, 6.0), (AutoContrast, 0.4, 7.0)],
    [(Solarize, 0.6, 8.0), (Color, 0.6, 9.0)],
    [(Solarize, 0.2, 4.0), (Rotate, 0.8, 9.0)],
    [(Rotate, 1.0, 7.0), (TranslateY, 0.8, 9.0)],
    [(ShearX, 0.0, 0.0), (Solarize, 0.8, 4.0)],
    [(ShearY, 0.8, 0.0), (Color, 0.6, 4.0)],
    [(Color, 1.0, 0.0), (Rotate, 0.6, 2.0)],
    [(Equalize, 0.8, 4.0), (Equalize, 0.0, 8.0)],
    [(Equalize, 1.0, 4.0), (AutoContrast, 0.6, 2.0)],
    [(ShearY, 0.4, 7.0), (SolarizeAdd, 0.6, 7.0)],
    [(Posterize, 0.8, 2.0), (Solarize, 0.6, 10.0)],
    [(Solarize, 0.6, 8.0), (Equalize, 0.6, 1.0)],
    [(Color, 0.8, 6.0), (Rotate, 0.4, 5.0)],
];

pub fn edits(look: Look, side: u32, edits: &mut Vec<Edit>) {
    let pair = PAIRS[below(look.draw(Purpose::Edit, 0)[0], PAIRS.len() as u32) as usize];
    for (layer, (operation, probability, level)) in (1..).zip(pair) {
        let bits = look.draw(Purpose::Edit, layer);
        if unit(bits[0]) < probability {
            edits.push(operation.edit(level, bits[1] >> 31 == 1, side, look.policy.fill));
        }
    }
}
