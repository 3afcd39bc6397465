//! What a recipe says of mixup and cutmix, and which values it may have.

use super::recipe::Recipe;
use super::recipe_limits::{FROM_0, PROBABILITY, RecipeError, require};
use crate::data::augment::Mixing;

impl Recipe {
    /// How pairs of training images are mixed.
    pub fn mixing(&self) -> Mixing {
        let default = Mixing::NONE;
        Mixing {
            mixup: self.mixup,
            cutmix: self.cutmix,
            probability: self.mixup_prob.unwrap_or(default.probability),
            switch: self.mixup_switch_prob.unwrap_or(default.switch),
            // A run of more epochs ends before.
            off_epoch: self.mixup_off_epoch.map(|epoch| u32::try_from(epoch).unwrap_or(u32::MAX)),
        }
    }

    /// Whether pairs of training images are mixed.
    pub fn mixes(&self) -> bool {
        !self.mixing().is_none()
    }

    pub(super) fn validate_mixing(&self) -> Result<(), RecipeError> {
        let (holds, problem) = FROM_0;
        for (flag, value) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            require(flag, value, holds(value), problem)?;
        }
        const NOTHING: &str = "needs --mixup or --cutmix";
        let Mixing { mixup, cutmix, .. } = self.mixing();
        let (any, both) = (self.mixes(), mixup > 0.0 && cutmix > 0.0);
        for (flag, value, used, needs) in [
            ("mixup-prob", self.mixup_prob, any, NOTHING),
            ("mixup-switch-prob", self.mixup_switch_prob, both, "needs --mixup and --cutmix"),
        ] {
            let Some(value) = value else { continue };
            require(flag, value, PROBABILITY.0(value), PROBABILITY.1)?;
            require(flag, value, used, needs)?;
        }
        if let Some(epoch) = self.mixup_off_epoch {
            require("mixup-off-epoch", epoch, epoch > 0, "must be at least 1; leave out --mixup otherwise")?;
            require("mixup-off-epoch", epoch, any, NOTHING)?;
        }
        if !any {
            return Ok(());
        }
        let name = if mixup > 0.0 { "--mixup" } else { "--cutmix" };
        for (flag, images) in [("batch-size", self.batch_size), ("micro-batch", self.micro_batch)] {
            let even = format!("{name} mixes pairs of images: take {}", (images + 1).next_multiple_of(2));
            require(flag, images, images.is_multiple_of(2), &even)?;
        }
        Ok(())
    }
}
