//! What a recipe says of augmentation: the policy, and which values it may have.

use super::recipe::Recipe;
use super::recipe_limits::{PROBABILITY, RecipeError, require};
use crate::data::augment::Policy;
use crate::data::{CropMode, Normalise, Source, Split};

const AREAS: &str = "must be two shares of the image above 0 and at most 1, the smaller one first";
const RATIOS: &str = "must be two ratios above 0, the smaller one first";

impl Recipe {
    /// What training changes at random about the images of a set with these means. What is erased becomes 0 in the network's
    /// input, which depends on how the run normalises.
    pub fn policy(&self, dataset: Normalise) -> Policy {
        let Normalise { mean, .. } = self.normalise.values(dataset);
        let standard = Policy::STANDARD;
        Policy {
            crop_area: self.crop_area.unwrap_or(standard.crop_area),
            crop_ratio: self.crop_ratio.unwrap_or(standard.crop_ratio),
            flip: self.flip.unwrap_or(standard.flip),
            vertical_flip: self.vertical_flip,
            auto: self.augment,
            color_jitter: self.color_jitter,
            random_erasing: self.random_erasing,
            mixing: self.mixing(),
            fill: mean.map(|mean| (mean * 255.0).round() as u8),
        }
    }

    /// Whether training changes images otherwise than by cropping and mirroring them.
    pub fn edits_images(&self) -> bool {
        let policy = self.policy(Normalise::IMAGENET);
        !policy.only_geometry() || !policy.mixing.is_none()
    }

    /// How these training images become square: resolved.
    pub fn crop_of(&self, source: &Source) -> CropMode {
        match (self.crop, source) {
            // Made at the network's size.
            (CropMode::Auto, Source::Synthetic(_)) if self.progressive.is_empty() => CropMode::Pad,
            // A stage of smaller images pads only what fits there too.
            (crop, _) => crop.resolve(source.largest(Split::Train), self.least_resolution()),
        }
    }

    pub(super) fn validate_augmentation(&self) -> Result<(), RecipeError> {
        let Policy { crop_area, crop_ratio, flip, .. } = self.policy(Normalise::IMAGENET);
        let probabilities = [
            ("flip", flip),
            ("vertical-flip", self.vertical_flip),
            ("color-jitter", self.color_jitter),
            ("random-erasing", self.random_erasing),
        ];
        for (flag, value) in probabilities {
            require(flag, value, PROBABILITY.0(value), PROBABILITY.1)?;
        }
        let [least, most] = crop_area;
        let sound = 0.0 < least && least <= most && most <= 1.0;
        require("crop-area", format!("{least},{most}"), sound, AREAS)?;
        let [least, most] = crop_ratio;
        let sound = 0.0 < least && least <= most && most.is_finite();
        require("crop-ratio", format!("{least},{most}"), sound, RATIOS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::NormaliseBy;
    use crate::model::Variant;

    #[test]
    fn fill_is_the_mean_that_the_run_subtracts() {
        let dataset = Normalise { mean: [0.0, 0.5, 1.0], deviation: [0.25; 3] };
        let recipe = Recipe::reference(Variant::B0, 8);
        assert_eq!(recipe.policy(dataset).fill, [0, 128, 255]);
        let imagenet = Recipe { normalise: NormaliseBy::Imagenet, ..recipe };
        assert_eq!(imagenet.policy(dataset).fill, [124, 116, 104]);
    }

    type Change = (&'static str, fn(&mut Recipe));

    #[test]
    fn values_out_of_range_are_named() {
        let changes: [Change; 7] = [
            ("crop-area", |r| r.crop_area = Some([0.5, 0.4])),
            ("crop-area", |r| r.crop_area = Some([0.5, 1.1])),
            ("crop-ratio", |r| r.crop_ratio = Some([0.0, 1.0])),
            ("crop-ratio", |r| r.crop_ratio = Some([f64::NAN, 1.0])),
            ("flip", |r| r.flip = Some(1.5)),
            ("color-jitter", |r| r.color_jitter = -0.1),
            ("random-erasing", |r| r.random_erasing = f64::NAN),
        ];
        for (flag, change) in changes {
            let mut recipe = Recipe::reference(Variant::B0, 8);
            change(&mut recipe);
            let line = recipe.validate().unwrap_err().to_string();
            assert!(line.starts_with(&format!("--{flag} ")), "{line}");
        }
    }
}
