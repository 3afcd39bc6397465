//! Evaluates a checkpoint without its run: accuracy and loss over a split; [`classify`](super::classify) has what it says
//! of image files.
//!
//! Everything that affects the result (resolution, padding, crop, channel means and deviations, batch-norm constants,
//! the size of a batch) comes from the checkpoint, so the result equals the one that training logged.

use std::sync::atomic::AtomicBool;

use super::evaluate::{Evaluation, Images, Seen, evaluate_seen};
use crate::data::{Form, Normalise, Share, Source, Split};
use crate::model::ParamTable;
use crate::network::Inference;
use crate::ops::{Buffer, Ops, StateSize, Weights};
use crate::train::checkpoint::Checkpoint;
use crate::train::device::{self, Hardware, Needs};
use crate::train::error::TrainError;
use crate::train::loading::Loading;
use crate::train::memory::{evaluation_need, reserve};
use crate::train::recipe::Recipe;
use crate::train::team::Team;

/// A checkpoint's network, ready for inference.
pub struct Evaluator<O: Ops> {
    pub(super) ops: O,
    pub(super) inference: Inference,
    pub(super) recipe: Recipe,
    pub(super) normalise: Normalise,
    pub(super) form: Form,
    pub(super) classes: Vec<String>,
    /// Elements of the parameters' buffer.
    pub(super) parameters: usize,
}

impl<O: Ops> Evaluator<O> {
    /// Prepares a network for batches of `batch` images. With `checkpoint.metadata.recipe.micro_batch` images
    /// [`Evaluator::split`] gives exactly the result that training logged.
    pub fn new<H: Hardware<Ops = O>>(
        checkpoint: &Checkpoint,
        batch: usize,
        mut hardware: H,
    ) -> Result<Evaluator<O>, TrainError> {
        let Checkpoint { metadata, architecture, state } = checkpoint;
        let table = ParamTable::new(architecture);
        let planner = hardware.device();
        let inference = Inference::new(architecture, &table, batch, &planner, metadata.recipe.weights());
        let (plan, form) = (inference.plan(&planner), device::form(&planner, batch));
        let images = (batch, metadata.recipe.resolution);
        let available = hardware.available();
        let need = evaluation_need(&plan, &table, &planner, hardware.has_own_memory(), images);
        let reserve = |have| if hardware.has_own_memory() { reserve(have) } else { 0 };
        match available {
            Some(have) if need + reserve(have) > have => {
                let need = need + reserve(have);
                return Err(TrainError::EvaluationMemory { batch, need, have });
            }
            _ => {}
        }
        let size =
            StateSize { slots: 0, decay_factors: false, ..StateSize::new(table.trainable(), table.total()) };
        let mut ops = hardware.start(&Needs { state: size, plans: &[&plan], group: None })?;
        ops.bind(&plan)?;
        ops.write_state(Buffer::Parameters, &state.parameters)?;
        if !state.ema.is_empty() {
            ops.write_state(Buffer::Ema, &state.ema)?;
        }
        inference.fold(&mut ops)?;
        let recipe = Recipe { micro_batch: batch, ..metadata.recipe.clone() };
        let (normalise, classes) = (metadata.normalise, metadata.classes.clone());
        Ok(Evaluator { ops, inference, recipe, normalise, form, classes, parameters: table.total() })
    }

    /// The sets of weights in the checkpoint: raw, and their moving average if the run kept one.
    pub fn weights(&self) -> &'static [Weights] {
        self.recipe.weights()
    }

    /// Accuracy and loss of each of [`Evaluator::weights`] over a split of a dataset with the checkpoint's classes.
    pub fn split(
        &mut self,
        source: &Source,
        split: Split,
        loader_threads: usize,
    ) -> Result<Vec<Evaluation>, TrainError> {
        let never = AtomicBool::new(false);
        let figures = self.split_seen(source, split, loader_threads, &never, &mut |_| {})?;
        Ok(figures.unwrap_or_default())
    }

    /// [`Evaluator::split`], which also shows each image's logits to `seen`. Returns none if `stop` was set meanwhile.
    ///
    /// # Errors
    /// As [`Evaluator::split`].
    pub fn split_seen(
        &mut self,
        source: &Source,
        split: Split,
        loader_threads: usize,
        stop: &AtomicBool,
        seen: &mut dyn FnMut(Seen),
    ) -> Result<Option<Vec<Evaluation>>, TrainError> {
        let (recipe, form, share) = (&self.recipe, self.form, Share::WHOLE);
        let memory = self.ops.host_memory();
        let loading =
            Loading { source, recipe, form, share, threads: loader_threads, memory, processors: &[] };
        let mut loader = loading.evaluation(split)?;
        let expected = source.samples(split) as u64;
        let images = Images { loader: &mut loader, normalise: self.normalise, expected };
        let team = Team::default();
        evaluate_seen(&mut self.ops, &self.inference, images, stop, &team, seen)
    }
}
