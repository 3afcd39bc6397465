//! RandAugment (Cubuk et al. 2019) in timm's form: a number of operations are drawn from fifteen, and each happens with
//! probability ½. All have the same level, or levels from a normal distribution around it.

use super::Look;
use super::operation::{LEVELS, Operation};
use crate::data::augment::edit::Edit;
use crate::random::{Purpose, below, unit};

/// RandAugment's numbers, with the names that timm gives them in `rand-m9-n3-mstd0.5-inc1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandAugment {
    /// `n`: operations for an image.
    pub operations: u32,
    /// `m`: their level, 0 to 10.
    pub level: f64,
    /// `mstd`: standard deviation of the level.
    pub deviation: f64,
    /// `inc`: a higher level always changes more.
    pub increasing: bool,
}

impl Default for RandAugment {
    fn default() -> RandAugment {
        RandAugment { operations: 2, level: 10.0, deviation: 0.0, increasing: false }
    }
}

pub(super) const OPERATIONS: [Operation; 15] = [
    Operation::AutoContrast,
    Operation::Equalize,
    Operation::Invert,
    Operation::Rotate,
    Operation::Posterize,
    Operation::Solarize,
    Operation::SolarizeAdd,
    Operation::Color,
    Operation::Contrast,
    Operation::Brightness,
    Operation::Sharpness,
    Operation::ShearX,
    Operation::ShearY,
    Operation::TranslateX,
    Operation::TranslateY,
];

/// The form of which a higher level always changes more.
pub(super) fn increasing(operation: Operation) -> Operation {
    match operation {
        Operation::Posterize => Operation::PosterizeIncreasing,
        Operation::Solarize => Operation::SolarizeIncreasing,
        Operation::Color => Operation::ColorIncreasing,
        Operation::Contrast => Operation::ContrastIncreasing,
        Operation::Brightness => Operation::BrightnessIncreasing,
        Operation::Sharpness => Operation::SharpnessIncreasing,
        other => other,
    }
}

/// A normally distributed number from two uniform ones in [0, 1), by the method of Box and Muller.
fn normal(a: f32, b: f32) -> f64 {
    let radius = (-2.0 * (1.0 - f64::from(a)).ln()).sqrt();
    radius * (std::f64::consts::TAU * f64::from(b)).cos()
}

pub fn edits(rand: RandAugment, look: Look, side: u32, edits: &mut Vec<Edit>) {
    for layer in 0..rand.operations {
        let bits = look.draw(Purpose::Edit, 2 * layer);
        if bits[1] >> 31 == 1 {
            continue;
        }
        let operation = OPERATIONS[below(bits[0], OPERATIONS.len() as u32) as usize];
        let operation = if rand.increasing { increasing(operation) } else { operation };
        let mut level = rand.level;
        if rand.deviation > 0.0 {
            let bits = look.draw(Purpose::Edit, 2 * layer + 1);
            level += rand.deviation * normal(unit(bits[0]), unit(bits[1]));
        }
        let level = level.clamp(0.0, LEVELS);
        edits.push(operation.edit(level, bits[2] >> 31 == 1, side, look.policy.fill));
    }
}
