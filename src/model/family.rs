//! The family table: B0's stages, and each member's width, depth, resolution and dropout
//! (Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks").

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr, VariantNames};

use crate::names;

/// A member of the family.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Display, IntoStaticStr, VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Variant {
    B0,
    B1,
    B2,
    B3,
    B4,
    B5,
    B6,
    B7,
}

/// How a member is scaled up from B0.
pub struct Scaling {
    pub width: f64,
    pub depth: f64,
    /// The image side that the member was designed for.
    pub resolution: usize,
    pub dropout: f64,
    /// Trainable parameters with 1000 classes.
    pub parameters: usize,
}

/// A stage of B0: `repeats` blocks of which the first has `stride`.
pub struct Stage {
    pub repeats: usize,
    pub kernel: usize,
    pub stride: usize,
    /// Width of the expanded tensor, as a multiple of the block's input; 1 means no expansion.
    pub expansion: usize,
    pub channels: usize,
}

pub const STEM_CHANNELS: usize = 32;
pub const HEAD_CHANNELS: usize = 1280;

pub const STAGES: [Stage; 7] = [
    Stage { repeats: 1, kernel: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { repeats: 2, kernel: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { repeats: 2, kernel: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { repeats: 3, kernel: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { repeats: 3, kernel: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { repeats: 4, kernel: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { repeats: 1, kernel: 3, stride: 1, expansion: 6, channels: 320 },
];

#[rustfmt::skip]
const SCALINGS: [Scaling; 8] = [
    Scaling { width: 1.0, depth: 1.0, resolution: 224, dropout: 0.2, parameters: 5_288_548 },
    Scaling { width: 1.0, depth: 1.1, resolution: 240, dropout: 0.2, parameters: 7_794_184 },
    Scaling { width: 1.1, depth: 1.2, resolution: 260, dropout: 0.3, parameters: 9_109_994 },
    Scaling { width: 1.2, depth: 1.4, resolution: 300, dropout: 0.3, parameters: 12_233_232 },
    Scaling { width: 1.4, depth: 1.8, resolution: 380, dropout: 0.4, parameters: 19_341_616 },
    Scaling { width: 1.6, depth: 2.2, resolution: 456, dropout: 0.4, parameters: 30_389_784 },
    Scaling { width: 1.8, depth: 2.6, resolution: 528, dropout: 0.5, parameters: 43_040_704 },
    Scaling { width: 2.0, depth: 3.1, resolution: 600, dropout: 0.5, parameters: 66_347_960 },
];

impl Variant {
    pub const ALL: [Variant; 8] = [
        Variant::B0,
        Variant::B1,
        Variant::B2,
        Variant::B3,
        Variant::B4,
        Variant::B5,
        Variant::B6,
        Variant::B7,
    ];

    pub fn scaling(self) -> &'static Scaling {
        &SCALINGS[self as usize]
    }

    /// "b0" … "b7".
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// B0's channel count scaled by the width, rounded to a multiple of 8 but never below 90 %.
    pub fn channels(self, base: usize) -> usize {
        let scaled = base as f64 * self.scaling().width;
        let rounded = ((scaled + 4.0) as usize / 8 * 8).max(8);
        if (rounded as f64) < 0.9 * scaled { rounded + 8 } else { rounded }
    }

    /// B0's number of blocks scaled by the depth, rounded up.
    pub fn repeats(self, base: usize) -> usize {
        (base as f64 * self.scaling().depth).ceil() as usize
    }
}

impl FromStr for Variant {
    type Err = String;

    /// Accepts "b0" … "b7" and "efficientnet_b0" …, in either case.
    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let short =
            lower.strip_prefix("efficientnet_").or(lower.strip_prefix("efficientnet-")).unwrap_or(&lower);
        let found = Variant::ALL.into_iter().find(|v| v.name() == short);
        found.ok_or_else(|| names::unknown::<Variant>("model", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variant_is_read_by_several_names() {
        for (number, name) in Variant::VARIANTS.iter().enumerate() {
            assert_eq!(*name, format!("b{number}"));
            assert_eq!(name.parse(), Ok(Variant::ALL[number]));
        }
        assert_eq!("EfficientNet_B3".parse(), Ok(Variant::B3));
        assert!("b8".parse::<Variant>().unwrap_err().contains("b6 or b7"));
    }
}
