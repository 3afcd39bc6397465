//! The operations of AutoAugment and RandAugment, and what a level from 0 to 10 means for each.
//!
//! Names, ranges and roundings are those of timm's `auto_augment.py`, which follows TensorFlow's EfficientNet. In the
//! *increasing* forms a higher level always changes more.

use crate::data::augment::edit::Edit;

/// The highest level.
pub const LEVELS: f64 = 10.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    AutoContrast,
    Equalize,
    Invert,
    Rotate,
    Posterize,
    PosterizeIncreasing,
    Solarize,
    SolarizeIncreasing,
    SolarizeAdd,
    Color,
    ColorIncreasing,
    Contrast,
    ContrastIncreasing,
    Brightness,
    BrightnessIncreasing,
    Sharpness,
    SharpnessIncreasing,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
}

impl Operation {
    /// The edit of a square of this side. `negate` chooses the direction, where there are two.
    pub fn edit(self, level: f64, negate: bool, side: u32, fill: [u8; 3]) -> Edit {
        let part = level / LEVELS;
        let signed = |value: f64| if negate { -value } else { value };
        let enhance = || Edit::factor(part * 1.8 + 0.1);
        let enhance_increasing = || Edit::factor((1.0 + signed(part * 0.9)).max(0.1));
        let bits = (part * 4.0) as u8;
        let threshold = (part * 256.0) as u16;
        let pixels = signed(part * 0.45) * f64::from(side);
        match self {
            Operation::AutoContrast => Edit::AutoContrast,
            Operation::Equalize => Edit::Equalize,
            Operation::Invert => Edit::Invert,
            Operation::Rotate => Edit::rotate(signed(part * 30.0), side, fill),
            Operation::Posterize => Edit::Posterize { bits },
            Operation::PosterizeIncreasing => Edit::Posterize { bits: 4 - bits },
            Operation::Solarize => Edit::Solarize { threshold },
            Operation::SolarizeIncreasing => Edit::Solarize { threshold: 256 - threshold },
            Operation::SolarizeAdd => Edit::SolarizeAdd { add: (part * 110.0) as u8 },
            Operation::Color => Edit::Color { factor: enhance() },
            Operation::ColorIncreasing => Edit::Color { factor: enhance_increasing() },
            Operation::Contrast => Edit::Contrast { factor: enhance() },
            Operation::ContrastIncreasing => Edit::Contrast { factor: enhance_increasing() },
            Operation::Brightness => Edit::Brightness { factor: enhance() },
            Operation::BrightnessIncreasing => Edit::Brightness { factor: enhance_increasing() },
            Operation::Sharpness => Edit::Sharpness { factor: enhance() },
            Operation::SharpnessIncreasing => Edit::Sharpness { factor: enhance_increasing() },
            Operation::ShearX => Edit::affine([1.0, signed(part * 0.3), 0.0, 0.0, 1.0, 0.0], fill),
            Operation::ShearY => Edit::affine([1.0, 0.0, 0.0, signed(part * 0.3), 1.0, 0.0], fill),
            Operation::TranslateX => Edit::affine([1.0, 0.0, pixels, 0.0, 1.0, 0.0], fill),
            Operation::TranslateY => Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, pixels], fill),
        }
    }
}
