//! A device with a training and an evaluation network on it.
//!
//! Both networks share one arena; binding a plan hands it over. One step goes over its micro-batches, whose
//! gradients add up, and the batch norms see one micro-batch at a time. All buffers that the loop needs on the
//! host exist before the first step.

use std::sync::atomic::AtomicBool;

use super::checkpoint::{Snapshot, first_not_finite};
use super::evaluate::{EvaluateError, Evaluation, Images, evaluate, rank};
use super::recipe::Recipe;
use crate::data::{Batch, Loader, Normalise};
use crate::model::{Architecture, ParamTable};
use crate::network::{Network, NetworkConfig};
use crate::ops::cpu::{CpuDevice, CpuOps};
use crate::ops::{Buffer, Ops, Plan, Result, StepParams, Update, Weights};

/// What a step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepFigures {
    /// Mean loss of the step's images, summed in f64 in sample order.
    pub loss: f64,
    /// Images whose largest logit is their label's.
    pub correct: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Nothing,
    Training,
    Evaluation,
}

/// See the module.
pub struct Engine<O: Ops> {
    ops: O,
    pub table: ParamTable,
    training: Network,
    training_plan: Plan,
    evaluation: Network,
    evaluation_plan: Plan,
    bound: Bound,
    normalise: Normalise,
    update: Update,
    step_images: usize,
    resolution: usize,
    losses: Vec<f32>,
    logits: Vec<f32>,
}

impl Engine<CpuOps> {
    /// On the CPU. Images of an evaluation's pass are the recipe's micro-batch.
    pub fn cpu(
        recipe: &Recipe,
        arch: &Architecture,
        normalise: Normalise,
        device: &CpuDevice,
    ) -> Result<Engine<CpuOps>> {
        let table = ParamTable::new(arch);
        let training = Network::new(arch, &table, recipe.network_config());
        let evaluation = Network::new(arch, &table, NetworkConfig::inference(recipe.micro_batch));
        let (training_plan, evaluation_plan) = (training.plan(device), evaluation.plan(device));
        let plans = [&training_plan, &evaluation_plan];
        let ops = CpuOps::new(table.trainable(), table.total(), &plans, device.threads)?;
        Ok(Engine {
            ops,
            losses: vec![0.0; training.losses.elements],
            logits: vec![0.0; training.logits.elements],
            table,
            training,
            training_plan,
            evaluation,
            evaluation_plan,
            bound: Bound::Nothing,
            normalise,
            update: recipe.update(),
            step_images: recipe.batch_size,
            resolution: arch.resolution,
        })
    }
}

impl<O: Ops + Send> Engine<O> {
    fn bind(&mut self, wanted: Bound) -> Result {
        if self.bound != wanted {
            let plan = if wanted == Bound::Training { &self.training_plan } else { &self.evaluation_plan };
            self.ops.bind(plan)?;
            self.bound = wanted;
        }
        Ok(())
    }

    /// Forward and backward over the step's images: the gradients are complete, the weights not yet moved.
    pub fn gradients(&mut self, batch: &Batch, params: StepParams) -> Result<StepFigures> {
        self.bind(Bound::Training)?;
        let Engine { ops, training, normalise, losses, logits, .. } = self;
        let micro = training.config.images;
        let image = self.resolution * self.resolution * 3;
        let (mut loss, mut correct) = (0.0, 0);
        ops.zero_gradients()?;
        let parts = batch.pixels.chunks_exact(micro * image).zip(batch.labels.chunks_exact(micro));
        for (number, (pixels, labels)) in parts.enumerate() {
            let first_position = params.first_position + (number * micro) as u64;
            ops.submit(|ops| {
                ops.set_step(StepParams { first_position, ..params })?;
                ops.upload_pixels(training.image, pixels, normalise.mean, normalise.deviation)?;
                ops.upload_labels(training.labels, labels)?;
                training.draw_masks(ops)?;
                training.forward(ops)?;
                training.loss(ops)?;
                training.backward(ops)?;
                ops.download(training.losses, losses)?;
                ops.download(training.logits, logits)
            })?;
            loss += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
            let classes = logits.len() / micro;
            let scored = logits.chunks_exact(classes).zip(labels);
            correct += scored.filter(|(logits, label)| rank(logits, **label) == 0).count() as u64;
        }
        Ok(StepFigures { loss: loss / self.step_images as f64, correct })
    }

    /// Moves the weights, and their average.
    pub fn update(&mut self) -> Result {
        let update = self.update;
        self.ops.submit(|ops| ops.update(&update))
    }

    /// Evaluates the raw weights and, where one is kept, their average; none if `stop` was raised meanwhile.
    pub fn evaluate(
        &mut self,
        loader: &mut Loader,
        expected: u64,
        stop: &AtomicBool,
    ) -> std::result::Result<Option<Vec<Evaluation>>, EvaluateError> {
        self.bind(Bound::Evaluation)?;
        let weights: &[Weights] =
            if self.update.ema { &[Weights::Raw, Weights::Ema] } else { &[Weights::Raw] };
        let images = Images { loader, normalise: self.normalise, expected };
        evaluate(&mut self.ops, &self.evaluation, images, weights, stop)
    }

    /// Sets all state.
    pub fn load(&mut self, state: &Snapshot) -> Result {
        self.ops.write_state(Buffer::Parameters, &state.parameters)?;
        if !state.ema.is_empty() {
            self.ops.write_state(Buffer::Ema, &state.ema)?;
        }
        self.ops.write_state(Buffer::MeanSquare, &state.mean_square)?;
        self.ops.write_state(Buffer::Momentum, &state.momentum)
    }

    /// Copies all state out.
    pub fn store(&mut self, state: &mut Snapshot) -> Result {
        self.ops.read_state(Buffer::Parameters, &mut state.parameters)?;
        if !state.ema.is_empty() {
            self.ops.read_state(Buffer::Ema, &mut state.ema)?;
        }
        self.ops.read_state(Buffer::MeanSquare, &mut state.mean_square)?;
        self.ops.read_state(Buffer::Momentum, &mut state.momentum)
    }

    /// After a loss that is not finite: the first weight, or else the first batch norm in forward order whose
    /// statistics, or the first gradient that is not finite.
    pub fn first_not_finite(&mut self) -> Result<Option<String>> {
        let mut values = vec![0.0; self.table.total()];
        self.ops.read_state(Buffer::Parameters, &mut values)?;
        if let Some(name) = first_not_finite(&values, &self.table) {
            return Ok(Some(name.to_string()));
        }
        let mut gradients = vec![0.0; self.table.trainable()];
        self.ops.read_state(Buffer::Gradients, &mut gradients)?;
        Ok(first_not_finite(&gradients, &self.table).map(|name| format!("the gradient of {name}")))
    }
}
