//! What a checkpoint says of image files: their logits, in batches.
//!
//! Loading threads read and prepare the files of the next batches while the device computes, as in an evaluation. An
//! image's logits do not depend on the other images of its batch.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::evaluate::{Passes, softmax};
use super::evaluator::Evaluator;
use crate::data::loader::evaluation_steps;
use crate::data::{Batch, DataError, Loader, LoaderConfig, Sampling, Share, Split};
use crate::network::Features;
use crate::ops::{Buffer, Ops, Weights};
use crate::train::error::TrainError;
use crate::train::loading::AHEAD;

/// What the network says of one image.
pub struct Seen<'a> {
    /// Of each class.
    pub logits: &'a [f32],
    /// Of the batch, with the image's number in it, if maps were asked for.
    features: Option<(&'a Features, usize)>,
}

impl Seen<'_> {
    /// The numbers of the most probable classes, at most `count`, by falling probability, with that probability. Classes
    /// of equal probability stay in the order of the data set.
    pub fn ranked(&self, count: usize) -> Vec<(usize, f64)> {
        let mut ranked: Vec<(usize, f64)> = softmax(self.logits).into_iter().enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        ranked.truncate(count);
        ranked
    }

    /// What places of the image speak for a class, row by row; see [`class_map`](crate::network::class_map). None unless
    /// maps were asked for.
    pub fn map(&self, class: usize) -> Option<Vec<f64>> {
        self.features.map(|(features, image)| features.map(image, class))
    }
}

/// Takes what the network says of the image of this number, or why the image could not be read.
pub type Each<'a, E> = dyn FnMut(usize, Result<Seen, &str>) -> Result<(), E> + 'a;

/// How image files are classified.
pub struct Classifying<'a> {
    pub weights: Weights,
    /// Threads that read and prepare images.
    pub threads: usize,
    /// Whether [`Seen::map`] is asked for.
    pub maps: bool,
    /// If it is set, no further batch begins.
    pub stop: &'a AtomicBool,
}

impl<O: Ops> Evaluator<O> {
    /// The names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Classifies image files, and calls `each` for each of them, in their order. Returns how many files that were.
    ///
    /// # Errors
    /// Those of the device and of `each`.
    pub fn classify<E: From<TrainError>>(
        &mut self,
        files: &Arc<[PathBuf]>,
        how: &Classifying,
        each: &mut Each<'_, E>,
    ) -> Result<usize, E> {
        let mut loader = self.files_loader(files, how.threads).map_err(TrainError::from)?;
        let mut logits = vec![0.0; self.inference.network.logits.elements];
        let mut features = self.features(how)?;
        let ahead = self.ops.keeps_batches();
        let (mut slot, mut done) = (0, 0);
        let mut next = loader.next().map_err(TrainError::from)?;
        if let (true, Some(batch)) = (ahead, &next) {
            self.send(slot, batch)?;
        }
        while let Some(batch) = next.take() {
            if how.stop.load(Ordering::Relaxed) {
                break;
            }
            if !ahead {
                self.send(slot, &batch)?;
            }
            let passes = Passes { inference: &self.inference, normalise: self.normalise };
            passes.start(&mut self.ops, slot, how.weights).map_err(TrainError::from)?;
            // While the passes run, the next batch is awaited, and travels if the device keeps this one.
            next = loader.next().map_err(TrainError::from)?;
            if let (true, Some(batch)) = (ahead, &next) {
                self.send(slot ^ 1, batch)?;
            }
            let passes = Passes { inference: &self.inference, normalise: self.normalise };
            passes.finish(&mut self.ops, &mut logits).map_err(TrainError::from)?;
            if let Some(features) = &mut features {
                features.read(&mut self.ops).map_err(TrainError::from)?;
            }
            let mut broken = batch.broken.iter().peekable();
            for (number, logits) in logits.chunks_exact(self.classes.len()).take(batch.images).enumerate() {
                match broken.next_if(|(at, _)| *at == number) {
                    Some((_, problem)) => each(done, Err(problem))?,
                    None => {
                        let features = features.as_ref().map(|features| (features, number));
                        each(done, Ok(Seen { logits, features }))?;
                    }
                }
                done += 1;
            }
            loader.recycle(batch);
            slot ^= usize::from(ahead);
        }
        Ok(done)
    }

    /// Room for the features of a batch, if maps are asked for.
    fn features(&mut self, how: &Classifying) -> Result<Option<Features>, TrainError> {
        if !how.maps {
            return Ok(None);
        }
        let mut parameters = vec![0.0; self.parameters];
        let buffer = match how.weights {
            Weights::Raw => Buffer::Parameters,
            Weights::Ema => Buffer::Ema,
        };
        self.ops.read_state(buffer, &mut parameters)?;
        Ok(Some(self.inference.features(how.weights, &parameters)))
    }

    fn send(&mut self, slot: usize, batch: &Batch) -> Result<(), TrainError> {
        let passes = Passes { inference: &self.inference, normalise: self.normalise };
        Ok(passes.send(&mut self.ops, slot, batch)?)
    }

    fn files_loader(&self, files: &Arc<[PathBuf]>, threads: usize) -> Result<Loader, DataError> {
        let batch = self.recipe.micro_batch;
        let config = LoaderConfig {
            split: Split::Val,
            batch,
            share: Share::WHOLE,
            resolution: self.recipe.resolution,
            crop: self.recipe.crop,
            form: self.form,
            augment: None,
            sampling: Sampling::PLAIN,
            seed: 0,
            first_step: 0,
            steps: evaluation_steps(files.len(), batch, Share::WHOLE),
            threads,
            ahead: AHEAD,
            memory: self.ops.host_memory(),
            processors: Vec::new(),
        };
        Loader::start_with_files(files.clone(), config)
    }
}
