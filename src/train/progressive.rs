//! Progressive resizing: a run that begins with smaller images and weaker augmentation (Tan & Le 2021, section 4).
//!
//! The steps of a run are divided into equal stages, each with a resolution of its own; the last has the run's. A network
//! of small images takes a fraction of the time, and learns nearly as much at first. The weights have the same shapes at
//! every resolution, so nothing is converted between stages; each has its own plan of the memory, and on a GPU its own
//! graphs. Evaluations take the run's resolution throughout, so that their figures can be compared.

use super::recipe::Recipe;
use super::recipe_limits::{PART, RecipeError, require};
use crate::data::augment::{Auto, Mixing, RandAugment};
use crate::data::{Normalise, Policy};

/// A part of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// From 0.
    pub number: usize,
    /// Side of the network's input in training.
    pub resolution: usize,
    /// What the strength of the augmentation is multiplied by.
    pub strength: f64,
}

impl Stage {
    /// The policy at this stage's strength: RandAugment's level, the colour jitter, the share of erased images and the α of
    /// mixup and cutmix are multiplied by it. The other automatic policies have no strength.
    pub fn weaken(&self, policy: Policy) -> Policy {
        let auto = match policy.auto {
            Auto::Rand(rand) => Auto::Rand(RandAugment { level: rand.level * self.strength, ..rand }),
            other => other,
        };
        Policy {
            auto,
            color_jitter: policy.color_jitter * self.strength,
            random_erasing: policy.random_erasing * self.strength,
            mixing: Mixing {
                mixup: policy.mixing.mixup * self.strength,
                cutmix: policy.mixing.cutmix * self.strength,
                ..policy.mixing
            },
            ..policy
        }
    }
}

impl Recipe {
    /// The stages in their order; one if all of the run has the same resolution.
    pub fn stages(&self) -> Vec<Stage> {
        let earlier = self.progressive.len();
        let first = self.progressive_augment.unwrap_or(1.0);
        let stage = |(number, resolution): (usize, usize)| Stage {
            number,
            resolution,
            strength: if number == earlier {
                1.0
            } else {
                first + (1.0 - first) * (number as f64 / earlier as f64)
            },
        };
        let sides = self.progressive.iter().copied().chain([self.resolution]);
        sides.enumerate().map(stage).collect()
    }

    /// The side of the smallest input.
    pub fn least_resolution(&self) -> usize {
        self.progressive.first().copied().unwrap_or(self.resolution)
    }

    pub(super) fn validate_progressive(&self) -> Result<(), RecipeError> {
        let strength = self.progressive_augment.unwrap_or(1.0);
        require("progressive-augment", strength, PART.0(strength), PART.1)?;
        let alone = self.progressive_augment.is_some() && self.progressive.is_empty();
        require("progressive-augment", strength, !alone, "has a meaning only with --progressive")?;
        let [first, ..] = self.stages()[..] else { unreachable!("a run has a stage") };
        let policy = self.policy(Normalise::IMAGENET);
        let weaker = strength == 1.0 || first.weaken(policy) != policy;
        let nothing =
            "nothing to weaken: needs RandAugment, --color-jitter, --random-erasing, --mixup or --cutmix";
        require("progressive-augment", strength, weaker, nothing)?;
        let sides: Vec<usize> = self.stages().iter().map(|stage| stage.resolution).collect();
        let rising = sides.is_sorted_by(|a, b| a < b);
        let list = self.progressive.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let problem = format!("must rise, and stay below --resolution {}", self.resolution);
        require("progressive", &list, rising, &problem)?;
        match self.architecture(2).and_then(|arch| arch.at(self.least_resolution())) {
            Err(error) if !self.progressive.is_empty() => {
                require("progressive", &list, false, &error.to_string())
            }
            // Without stages the resolution is at fault, which is checked by itself.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;

    fn recipe(progressive: &[usize], augment: Option<f64>) -> Recipe {
        Recipe {
            progressive: progressive.to_vec(),
            progressive_augment: augment,
            ..Recipe::reference(Variant::B0, 8)
        }
    }

    #[test]
    fn stages_rise_to_the_run_s_resolution_and_strength() {
        let of = |recipe: Recipe| -> Vec<(usize, f64)> {
            recipe.stages().iter().map(|stage| (stage.resolution, stage.strength)).collect()
        };
        assert_eq!(of(recipe(&[], None)), [(224, 1.0)]);
        assert_eq!(of(recipe(&[128, 160], Some(0.5))), [(128, 0.5), (160, 0.75), (224, 1.0)]);
        assert_eq!(of(recipe(&[128], None)), [(128, 1.0), (224, 1.0)]);
        assert_eq!(
            [recipe(&[128, 160], None).least_resolution(), recipe(&[], None).least_resolution()],
            [128, 224]
        );
    }

    #[test]
    fn stage_weakens_what_has_a_strength() {
        let policy = Policy {
            auto: "rand-m8-n2".parse().unwrap(),
            color_jitter: 0.4,
            random_erasing: 0.2,
            mixing: Mixing { mixup: 0.2, cutmix: 1.0, ..Mixing::NONE },
            ..Policy::STANDARD
        };
        let half = Stage { number: 0, resolution: 128, strength: 0.5 }.weaken(policy);
        let expected = Policy {
            auto: "rand-m4-n2".parse().unwrap(),
            color_jitter: 0.2,
            random_erasing: 0.1,
            mixing: Mixing { mixup: 0.1, cutmix: 0.5, ..Mixing::NONE },
            ..Policy::STANDARD
        };
        assert_eq!(half, expected);
        assert_eq!(Stage { number: 0, resolution: 128, strength: 1.0 }.weaken(policy), policy);
    }

    #[test]
    fn stages_that_make_no_sense_are_named() {
        for (progressive, augment, line) in [
            (&[160, 128][..], None, "--progressive 160,128: must rise, and stay below --resolution 224"),
            (&[128, 224], None, "--progressive 128,224: must rise, and stay below --resolution 224"),
            (&[16], None, "--progressive 16: resolution 16 is too small"),
            (&[128], Some(0.0), "--progressive-augment 0: must be above 0 and at most 1"),
            (&[128], Some(1.5), "--progressive-augment 1.5: must be above 0 and at most 1"),
            (&[], Some(0.5), "--progressive-augment 0.5: has a meaning only with --progressive"),
        ] {
            let said = recipe(progressive, augment).validate().unwrap_err().to_string();
            assert!(said.starts_with(line), "{said}");
        }
        let plain = recipe(&[128, 160], Some(0.3));
        let said = plain.validate().unwrap_err().to_string();
        assert!(said.starts_with("--progressive-augment 0.3: nothing to weaken"), "{said}");
        Recipe { color_jitter: 0.4, ..plain }.validate().unwrap();
    }
}
