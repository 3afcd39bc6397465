//! What a recipe may say: the range of each field.

use super::division::{batches_that_divide, ranks_that_divide};
use super::recipe::Recipe;
use crate::model::ModelError;

/// A recipe that cannot be carried out. The message names the flag.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum RecipeError {
    #[error("--{flag} {value}: {problem}")]
    Flag { flag: &'static str, value: String, problem: String },
    #[error("--micro-batch {micro_batch} does not divide --batch-size {batch_size}")]
    MicroBatch { micro_batch: usize, batch_size: usize },
    #[error(
        "--batch-size {batch_size} cannot be divided evenly among {ranks} ranks: take {}, or --batch-size {}",
        ranks_that_divide(*batch_size, *ranks),
        batches_that_divide(*batch_size, *ranks)
    )]
    Ranks { batch_size: usize, ranks: usize },
    #[error(
        "--micro-batch {micro_batch} does not divide the {share} images that each of {ranks} ranks has of --batch-size \
         {batch_size}"
    )]
    MicroBatchOfRanks { micro_batch: usize, share: usize, batch_size: usize, ranks: usize },
    #[error(
        "--batch-size {batch_size}: each of {ranks} ranks has {share} images, and mixup and cutmix mix pairs; take \
         --batch-size {even}"
    )]
    OddShare { batch_size: usize, share: usize, ranks: usize, even: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A range of numbers, and its description.
pub(super) type Range = (fn(f64) -> bool, &'static str);

pub(super) const ABOVE_0: Range = (|v| v > 0.0 && v.is_finite(), "must be above 0");
pub(super) const FROM_0: Range = (|v| v >= 0.0 && v.is_finite(), "must be at least 0");
pub(super) const SHARE: Range = (|v| (0.0..1.0).contains(&v), "must be at least 0 and below 1");
pub(super) const PROBABILITY: Range = (|v| (0.0..=1.0).contains(&v), "must be from 0 to 1");
pub(super) const PART: Range = (|v| v > 0.0 && v <= 1.0, "must be above 0 and at most 1");

/// Sizes that no machine can hold: above them the arithmetic of the memory plan would overflow.
const MOST_PIXELS: usize = 4096;
const MOST_IMAGES: usize = 1 << 20;

impl Recipe {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that makes no sense, under the name of its flag.
    pub fn validate(&self) -> Result<(), RecipeError> {
        let sizes = [
            ("resolution", self.resolution, 0, MOST_PIXELS),
            ("batch-size", self.batch_size, 1, MOST_IMAGES),
            ("micro-batch", self.micro_batch, 1, MOST_IMAGES),
        ];
        for (flag, value, least, most) in sizes {
            require(flag, value, value >= least, &format!("must be at least {least}"))?;
            require(flag, value, value <= most, &format!("must be at most {most}"))?;
        }
        let numbers = [
            ("epochs", self.epochs, ABOVE_0),
            ("lr", self.lr, ABOVE_0),
            ("warmup-epochs", self.warmup_epochs, FROM_0),
            ("alpha", self.alpha, SHARE),
            ("momentum", self.momentum, SHARE),
            ("rms-eps", self.rms_eps, ABOVE_0),
            ("weight-decay", self.weight_decay, FROM_0),
            ("weight-decay-bn", self.weight_decay_bn.unwrap_or(0.0), FROM_0),
            ("body-lr", self.body_lr.unwrap_or(1.0), PART),
            ("classifier-epochs", self.classifier_epochs.unwrap_or(0.0), FROM_0),
            ("clip-norm", self.clip_norm.unwrap_or(1.0), ABOVE_0),
            ("label-smoothing", self.label_smoothing, SHARE),
            ("drop-connect", self.drop_connect, SHARE),
            ("dropout", self.dropout, SHARE),
            ("bn-momentum", self.bn_momentum, PART),
            ("bn-eps", self.bn_eps, ABOVE_0),
            ("ema", self.ema, SHARE),
            ("eval-every", self.eval_every, ABOVE_0),
        ];
        for (flag, value, (holds, problem)) in numbers {
            require(flag, value, holds(value), problem)?;
        }
        self.validate_augmentation()?;
        self.validate_progressive()?;
        self.validate_mixing()?;
        self.validate_together()?;
        let patience = self.patience.unwrap_or(1);
        require("patience", patience, patience > 0, "must be at least 1")?;
        self.validate_schedule()?;
        self.validate_optimizer()?;
        // TOML's integers are signed.
        require("seed", self.seed, i64::try_from(self.seed).is_ok(), "must be below 2^63")?;
        if !self.batch_size.is_multiple_of(self.micro_batch) {
            return Err(RecipeError::MicroBatch {
                micro_batch: self.micro_batch,
                batch_size: self.batch_size,
            });
        }
        match self.architecture(2) {
            Ok(_) => Ok(()),
            Err(error) => require("resolution", self.resolution, false, &error.to_string()),
        }
    }

    /// Settings that exclude each other or bound each other.
    fn validate_together(&self) -> Result<(), RecipeError> {
        if let Some(weights) = self.class_weights.as_ref().filter(|_| self.sampling.balance) {
            // Their mean is 1 over the images, not over balanced draws.
            require(
                "class-weights",
                weights,
                false,
                "--balance already gives every class its part; leave one out",
            )?;
        }
        let shorter = self.warmup_epochs < self.epochs;
        require("warmup-epochs", self.warmup_epochs, shorter, "must be less than --epochs")?;
        let within = self.classifier_epochs.is_none_or(|head| head < self.epochs);
        let head = self.classifier_epochs.unwrap_or(0.0);
        require("classifier-epochs", head, within, "must be less than --epochs")?;
        let problem = "with --freeze-bn there are no statistics of a batch to share; leave one out";
        require("sync-bn", self.sync_bn, !(self.sync_bn && self.freeze_bn), problem)
    }
}

pub(super) fn require(
    flag: &'static str,
    value: impl ToString,
    good: bool,
    problem: &str,
) -> Result<(), RecipeError> {
    if good {
        return Ok(());
    }
    Err(RecipeError::Flag { flag, value: value.to_string(), problem: problem.to_string() })
}
