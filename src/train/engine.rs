//! A device with a training and an evaluation network on it.
//!
//! Both networks share one arena; binding a plan hands it over. One step goes over its micro-batches, whose
//! gradients add up, and the batch norms see one micro-batch at a time. The device may run behind: a step is
//! handed over, and what it came to is asked for later, so that the next batch is already on its way meanwhile.
//! Where ranks share the work, the gradients of a step's last micro-batch are summed over them bucket by bucket, each
//! as soon as the backward pass has completed it. All buffers that the loop needs on the host exist before the first step.

use std::sync::atomic::AtomicBool;

use super::checkpoint::Snapshot;
use super::device::{self, Hardware, Needs};
use super::evaluate::{EvaluateError, Evaluation, Images, evaluate};
use super::not_finite::Search;
use super::recipe::Recipe;
use super::team::Team;
use crate::data::{Batch, Form, Loader, Normalise};
use crate::model::{Architecture, ParamTable};
use crate::network::{Network, NetworkConfig};
use crate::ops::buckets::bucket_bytes;
use crate::ops::{
    BatchInput, BatchTarget, Buckets, Buffer, LossScale, Ops, Pass, Plan, ProfileReport, Result, Sequence,
    StepFigures, StepParams, Update, Weights,
};

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
    /// In which form it takes images, for training and evaluation.
    pub form: Form,
    training: Network,
    training_plan: Plan,
    /// Those of one micro-batch, in order, and the first of its backward half.
    training_passes: Vec<Pass>,
    backward: usize,
    buckets: Buckets,
    evaluation: Network,
    evaluation_plan: Plan,
    bound: Bound,
    normalise: Normalise,
    update: Update,
    /// Which of the two batches under way comes next.
    slot: usize,
    team: Team,
}

impl<O: Ops + Send> Engine<O> {
    /// Plans both networks and makes the hardware ready for them. Images of an evaluation's pass are the recipe's
    /// micro-batch.
    pub fn new<H: Hardware<Ops = O>>(
        recipe: &Recipe,
        arch: &Architecture,
        normalise: Normalise,
        hardware: H,
        team: &Team,
    ) -> Result<Engine<O>> {
        let device = &hardware.device();
        let table = ParamTable::new(arch);
        let training = Network::new(arch, &table, recipe.network_config(team.world().size));
        let evaluation = Network::new(arch, &table, NetworkConfig::inference(recipe.micro_batch));
        let (training_plan, evaluation_plan) = (training.plan(device), evaluation.plan(device));
        let training_passes = training.record(device).passes;
        let turn = training_passes.iter().position(|pass| matches!(pass, Pass::Loss(_)));
        let backward = turn.map_or(0, |turn| turn + 1);
        let (trainable, total) = (table.trainable(), table.total());
        let buckets = Buckets::new(&training_passes, trainable, bucket_bytes(trainable));
        let plans = [&training_plan, &evaluation_plan];
        let ops = hardware.start(&Needs { trainable, total, plans: &plans, group: team.group() })?;
        Ok(Engine {
            ops,
            table,
            form: device::form(device, recipe.micro_batch),
            training,
            training_plan,
            training_passes,
            backward,
            buckets,
            evaluation,
            evaluation_plan,
            bound: Bound::Nothing,
            normalise,
            update: recipe.update(),
            slot: 0,
            team: team.clone(),
        })
    }

    fn bind(&mut self, wanted: Bound) -> Result {
        if self.bound != wanted {
            let plan = if wanted == Bound::Training { &self.training_plan } else { &self.evaluation_plan };
            self.ops.bind(plan)?;
            self.bound = wanted;
        }
        Ok(())
    }

    /// Hands a whole step to the device: forward and backward over the micro-batches, then the update.
    pub fn step(&mut self, batch: &Batch, params: StepParams) -> Result {
        self.bind(Bound::Training)?;
        let Engine { ops, training, normalise: Normalise { mean, deviation }, update, slot, .. } = self;
        let (passes, first_backward, buckets) = (&self.training_passes, self.backward, &self.buckets);
        let images = training.config.images;
        let target = BatchTarget {
            image: training.image,
            labels: Some(training.labels),
            mean: *mean,
            deviation: *deviation,
        };
        let parts = batch.parts(images);
        let count = parts.len();
        for (number, (pixels, labels)) in parts.enumerate() {
            let first_position = params.first_position + (number * images) as u64;
            let (first, last) = (number == 0, number + 1 == count);
            let sequence = Sequence::Training { slot: *slot, first, last };
            ops.submit(|ops| {
                ops.set_step(StepParams { first_position, ..params })?;
                ops.send_batch(*slot, &BatchInput { pixels, labels, target })?;
                ops.replay(sequence, |ops| {
                    if first {
                        ops.begin_step()?;
                    }
                    ops.unpack_batch(*slot, &target)?;
                    training.draw_masks(ops)?;
                    training.forward(ops)?;
                    training.loss(ops)?;
                    for (number, pass) in passes.iter().enumerate().skip(first_backward) {
                        pass.run(ops)?;
                        if last {
                            buckets.after(number).try_for_each(|bucket| ops.reduce(bucket))?;
                        }
                    }
                    if last { ops.update(update) } else { Ok(()) }
                })
            })?;
            *slot ^= 1;
        }
        self.ops.end_step()
    }

    /// What the oldest step not yet asked for came to; see [`Ops::take_figures`]. `loss` is the sum over its images.
    pub fn take_figures(&mut self, wait: bool) -> Result<Option<StepFigures>> {
        self.ops.take_figures(wait)
    }

    /// See [`Ops::loss_scale`].
    pub fn loss_scale(&mut self) -> Result<Option<LossScale>> {
        self.ops.loss_scale()
    }

    pub fn start_profile(&mut self) -> Result {
        self.ops.start_profile()
    }

    pub fn take_profile(&mut self) -> Result<ProfileReport> {
        self.ops.take_profile()
    }

    /// Evaluates the raw weights and, where one is kept, their average, over all ranks' shares of the `expected` images;
    /// none if `stop` was raised at any rank meanwhile.
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
        evaluate(&mut self.ops, &self.evaluation, images, weights, stop, &self.team)
    }

    /// Sets all state; that of loss scaling where the checkpoint has one (another precision's has none).
    pub fn load(&mut self, state: &Snapshot, loss_scale: Option<LossScale>) -> Result {
        if let Some(scale) = loss_scale {
            self.ops.set_loss_scale(scale)?;
        }
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

    /// After a step whose loss or gradients were not finite: runs it again and says where that began, in words; none
    /// if now all is finite. Nothing but reading the state out makes sense afterwards.
    pub fn first_not_finite(&mut self, batch: &Batch, params: StepParams) -> Result<Option<String>> {
        self.bind(Bound::Training)?;
        let Engine { ops, table, training, training_passes, normalise, .. } = self;
        let search =
            Search { network: training, passes: training_passes, table, normalise: *normalise, params };
        search.run(ops, batch)
    }
}
