//! What a loader is asked for.

use super::DataError;
use super::augment::{CropMode, Policy};
use super::sampler::{Sampling, Share};
use super::split::Split;
use crate::host_bytes::HostAllocator;

/// What to load.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    pub split: Split,
    /// Images of a batch; where several processes share the work, of this process's part.
    pub batch: usize,
    pub share: Share,
    pub resolution: usize,
    /// Resolved: not `Auto`.
    pub crop: CropMode,
    /// What the device takes.
    pub form: Form,
    /// Training: shuffled, endless, and augmented by this policy. None is evaluation: in order, once, as it is.
    pub augment: Option<Policy>,
    /// The order of a training split.
    pub sampling: Sampling,
    pub seed: u64,
    pub first_step: u64,
    /// Number of steps; an evaluation ends with its last sample at the latest.
    pub steps: u64,
    pub threads: usize,
    /// Batches to have in preparation or waiting; raised to `threads`.
    pub ahead: usize,
    /// Where the device takes raw batches from, if it reads the host's memory by itself: the threads then put finished
    /// batches there.
    pub memory: Option<HostAllocator>,
    /// The processors that the threads may run on; empty means all. It is advice: a refusal is no error.
    pub processors: Vec<usize>,
}

/// In which form images leave the loader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// [batch, R, R, 3] bytes.
    #[default]
    Squares,
    /// A raw batch for every `images` of them; `images` divides the batch.
    Raw { images: usize },
}

impl LoaderConfig {
    /// # Errors
    /// [`DataError::Invalid`] for a batch or resolution of 0, an unresolved crop mode, raw batches that do not divide the
    /// batch, or pairs to be mixed that do not.
    pub fn check(&self) -> Result<(), DataError> {
        let LoaderConfig { batch, resolution, .. } = *self;
        let invalid = |problem: String| Err(DataError::Invalid(problem));
        if batch == 0 || resolution == 0 {
            return invalid("batch size and resolution must not be 0".into());
        }
        if self.crop == CropMode::Auto {
            return invalid("the crop mode must be resolved before loading".into());
        }
        let part = if let Form::Raw { images } = self.form { images } else { batch };
        if self.mixes() && !part.is_multiple_of(2) {
            return invalid(format!("images are mixed in pairs, which do not divide {part}"));
        }
        match self.form {
            Form::Raw { images } if images == 0 || !batch.is_multiple_of(images) => {
                invalid(format!("raw batches of {images} images do not divide {batch}"))
            }
            _ => Ok(()),
        }
    }

    /// Whether pairs of images are mixed.
    pub fn mixes(&self) -> bool {
        self.augment.is_some_and(|policy| !policy.mixing.is_none())
    }
}
