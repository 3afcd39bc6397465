//! How a run loads its images: shuffled and augmented for steps, unchanged and in order for evaluations.

use super::error::TrainError;
use super::memory::LOADER_AHEAD;
use super::recipe::Recipe;
use crate::data::loader::evaluation_steps;
use crate::data::{Form, Loader, LoaderConfig, Policy, Share, Source, Split};
use crate::host_bytes::HostAllocator;

/// What both kinds of loading share: the images, their form, the threads that prepare them.
pub struct Loading<'a> {
    pub source: &'a Source,
    pub recipe: &'a Recipe,
    pub form: Form,
    /// This process's share of every batch, and of the batches of an evaluation.
    pub share: Share,
    pub threads: usize,
    /// Memory that the device reads by itself, see [`LoaderConfig::memory`].
    pub memory: Option<HostAllocator>,
    /// The processors near the device; empty means all.
    pub processors: &'a [usize],
}

impl Loading<'_> {
    /// The batches of the steps from `first_step` to before `end`.
    ///
    /// # Errors
    /// If threads cannot be started.
    pub fn training(&self, first_step: u64, end: u64) -> Result<Loader, TrainError> {
        let steps = end - first_step;
        let batch = self.recipe.batch_size / self.share.parts;
        let augment = Some(Policy::default());
        self.start(LoaderConfig { augment, first_step, ..self.config(Split::Train, batch, steps) })
    }

    /// A split in the batches of an evaluation of this recipe: its micro-batches.
    ///
    /// # Errors
    /// As [`Loading::training`].
    pub fn evaluation(&self, split: Split) -> Result<Loader, TrainError> {
        let batch = self.recipe.micro_batch;
        let steps = evaluation_steps(self.source.samples(split), batch, self.share);
        self.start(self.config(split, batch, steps))
    }

    fn config(&self, split: Split, batch: usize, steps: u64) -> LoaderConfig {
        LoaderConfig {
            split,
            batch,
            share: self.share,
            resolution: self.recipe.resolution,
            crop: self.recipe.crop,
            form: self.form,
            augment: None,
            seed: self.recipe.seed,
            first_step: 0,
            steps,
            threads: self.threads,
            ahead: LOADER_AHEAD,
            memory: self.memory.clone(),
            processors: self.processors.to_vec(),
        }
    }

    fn start(&self, config: LoaderConfig) -> Result<Loader, TrainError> {
        Ok(Loader::start(self.source.clone(), config)?)
    }
}
