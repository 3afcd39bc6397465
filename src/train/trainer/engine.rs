//! A device with a training network for each stage and an evaluation network on it.
//!
//! All networks use the same arena; binding a plan assigns the arena to one of them. One step runs all micro-batches
//! and adds up their gradients; batch norm takes its statistics over one micro-batch at a time. The device may run
//! asynchronously: a step is submitted, and its results are fetched later, so that the next batch can be copied in the
//! meantime. With several ranks, the gradients of a step's last micro-batch are summed over the ranks bucket by bucket,
//! each bucket as soon as the backward pass has completed it. All host buffers of the loop are allocated before the
//! first step.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::not_finite::Search;
use crate::data::{Batch, Form, Loader, Normalise};
use crate::host_bytes::HostAllocator;
use crate::model::{Architecture, ParamTable};
use crate::network::{Inference, Itinerary, Network};
use crate::ops::buckets::bucket_bytes;
use crate::ops::{
    BatchInput, BatchTarget, Buckets, Buffer, Device, Frozen, Labels, LossScale, Ops, OpsError, Pass, Plan,
    ProfileReport, Result, Sequence, StateSize, StepFigures, StepParams, Update,
};
use crate::train::checkpoint::Snapshot;
use crate::train::device::{self, Hardware, Needs};
use crate::train::error::TrainError;
use crate::train::evaluation::evaluate::{Evaluation, Images, evaluate};
use crate::train::progressive::Stage;
use crate::train::recipe::Recipe;
use crate::train::team::Team;

/// The training network of a stage.
struct Training {
    network: Network,
    plan: Plan,
    /// The passes of one micro-batch.
    itinerary: Itinerary,
    buckets: Buckets,
    frozen: Frozen,
}

impl Training {
    fn new(recipe: &Recipe, arch: &Architecture, device: &impl Device, ranks: usize) -> Training {
        let table = ParamTable::new(arch);
        let network = Network::new(arch, &table, recipe.network_config(ranks));
        let (plan, itinerary) = (network.plan(device), network.itinerary(device));
        let passes = itinerary.passes();
        let trainable = table.trainable();
        let frozen = Frozen::of(&passes, trainable, table.total());
        let buckets = Buckets::new(&passes, trainable, frozen, bucket_bytes(trainable - frozen.parameters));
        Training { network, plan, itinerary, buckets, frozen }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Nothing,
    Training,
    Evaluation,
}

/// See the module's description.
pub struct Engine<O: Ops> {
    ops: O,
    pub table: ParamTable,
    /// The form of image that the device takes, in training and in evaluation.
    pub form: Form,
    /// By number of the stage.
    stages: Vec<Training>,
    /// The number of the current stage.
    stage: usize,
    evaluation: Inference,
    evaluation_plan: Plan,
    bound: Bound,
    normalise: Normalise,
    /// What each class counts in the loss; there must be some if the recipe has any.
    pub class_weights: Option<Vec<f32>>,
    update: Pass,
    /// Which of the two batch slots on the device is used next.
    slot: usize,
    /// Time spent on handing batches over to the device.
    handover: Duration,
    team: Team,
}

impl<O: Ops> Engine<O> {
    /// Plans all networks and prepares the hardware for them; the first stage is the current one. An evaluation pass takes
    /// as many images as a micro-batch of the recipe.
    pub fn new<H: Hardware<Ops = O>>(
        recipe: &Recipe,
        arch: &Architecture,
        normalise: Normalise,
        hardware: H,
        team: &Team,
    ) -> Result<Engine<O>> {
        let device = &hardware.device();
        let table = ParamTable::new(arch);
        let stage = |stage: Stage| {
            let arch = arch.at(stage.resolution).map_err(|error| OpsError::Device(error.to_string()))?;
            Ok(Training::new(recipe, &arch, device, team.world().size))
        };
        let stages = recipe.stages().into_iter().map(stage).collect::<Result<Vec<_>>>()?;
        let evaluation = Inference::new(arch, &table, recipe.micro_batch, device, recipe.weights());
        let evaluation_plan = evaluation.plan(device);
        // The layers of all stages are the same, and so is what is frozen of them.
        let frozen = stages.first().map_or(Frozen::NOTHING, |stage| stage.frozen);
        let update = Update { frozen, ..recipe.update() };
        let (trainable, total) = (table.trainable(), table.total());
        let (slots, decay_factors) = (update.rule.slots().len(), update.weight_decay.by_parameter);
        let state = StateSize { trainable, total, slots, decay_factors };
        let plans: Vec<&Plan> = stages.iter().map(|stage| &stage.plan).chain([&evaluation_plan]).collect();
        let mut ops = hardware.start(&Needs { state, plans: &plans, group: team.group() })?;
        if decay_factors {
            ops.write_state(Buffer::DecayFactors, &recipe.decay_factors(&table))?;
        }
        Ok(Engine {
            ops,
            table,
            form: device::form(device, recipe.micro_batch),
            stages,
            stage: 0,
            evaluation,
            evaluation_plan,
            bound: Bound::Nothing,
            normalise,
            class_weights: None,
            update: update.into(),
            slot: 0,
            handover: Duration::ZERO,
            team: team.clone(),
        })
    }

    /// Goes on with the network of a stage. The steps before must be complete.
    pub fn enter(&mut self, stage: usize) {
        self.stage = stage;
        self.bound = Bound::Nothing;
    }

    fn bind(&mut self, wanted: Bound) -> Result {
        if self.bound != wanted {
            let training = wanted == Bound::Training;
            let plan = if training { &self.stages[self.stage].plan } else { &self.evaluation_plan };
            self.ops.bind(plan)?;
            self.bound = wanted;
        }
        Ok(())
    }

    /// Submits a whole step to the device: forward and backward over the micro-batches, then the update.
    pub fn step(&mut self, batch: &Batch, params: StepParams) -> Result {
        self.bind(Bound::Training)?;
        let Engine {
            ops,
            stages,
            stage,
            normalise: Normalise { mean, deviation },
            class_weights,
            update,
            slot,
            handover,
            ..
        } = self;
        let Training { network, itinerary, buckets, .. } = &stages[*stage];
        let images = network.config.images;
        let target = BatchTarget {
            image: network.image,
            labels: Some(network.labels),
            mean: *mean,
            deviation: *deviation,
        };
        let parts = batch.parts(images);
        let count = parts.len();
        for (number, (pixels, labels)) in parts.enumerate() {
            let first_position = params.first_position + (number * images) as u64;
            let (first, last) = (number == 0, number + 1 == count);
            let labels = Labels { class_weights: class_weights.as_deref(), ..labels };
            let sequence = Sequence::Training { slot: *slot, first, last };
            ops.set_step(StepParams { first_position, ..params })?;
            let since = Instant::now();
            ops.send_batch(*slot, &BatchInput { pixels, labels, target })?;
            *handover += since.elapsed();
            ops.replay(sequence, |ops| {
                if first {
                    ops.begin_step()?;
                }
                ops.unpack_batch(*slot, &target)?;
                for (number, entry) in itinerary.entries().iter().enumerate() {
                    ops.run(&entry.pass)?;
                    if last {
                        buckets.after(number).try_for_each(|bucket| ops.reduce(bucket))?;
                    }
                }
                if last { ops.run(update) } else { Ok(()) }
            })?;
            *slot ^= 1;
        }
        self.ops.end_step()
    }

    /// The results of the oldest step that have not been fetched; see [`Ops::take_figures`]. `loss` is the sum over the
    /// step's images.
    pub fn take_figures(&mut self, wait: bool) -> Result<Option<StepFigures>> {
        self.ops.take_figures(wait)
    }

    /// See [`Ops::loss_scale`].
    pub fn loss_scale(&mut self) -> Result<Option<LossScale>> {
        self.ops.loss_scale()
    }

    /// See [`Ops::host_memory`].
    pub fn host_memory(&self) -> Option<HostAllocator> {
        self.ops.host_memory()
    }

    pub fn start_profile(&mut self) -> Result {
        self.handover = Duration::ZERO;
        self.ops.start_profile()
    }

    pub fn take_profile(&mut self) -> Result<ProfileReport> {
        let report = self.ops.take_profile()?;
        Ok(ProfileReport { handover: self.handover.as_secs_f64() * 1e6, ..report })
    }

    /// Evaluates the raw weights and, if there is one, their moving average, over the `expected` images of all ranks.
    /// Returns none if `stop` was set at any rank during the evaluation.
    pub fn evaluate(
        &mut self,
        loader: &mut Loader,
        expected: u64,
        stop: &AtomicBool,
    ) -> std::result::Result<Option<Vec<Evaluation>>, TrainError> {
        self.bind(Bound::Evaluation)?;
        let images = Images { loader, normalise: self.normalise, expected };
        evaluate(&mut self.ops, &self.evaluation, images, stop, &self.team)
    }

    /// Sets the whole state. The loss scale is set only if the checkpoint has one; only fp16 runs have.
    pub fn load(&mut self, state: &Snapshot, loss_scale: Option<LossScale>) -> Result {
        if let Some(scale) = loss_scale {
            self.ops.set_loss_scale(scale)?;
        }
        self.ops.write_state(Buffer::Parameters, &state.parameters)?;
        if !state.ema.is_empty() {
            self.ops.write_state(Buffer::Ema, &state.ema)?;
        }
        let mut slots = state.slots.iter().enumerate();
        slots.try_for_each(|(number, slot)| self.ops.write_state(Buffer::Slot(number), &slot.values))
    }

    /// Copies the whole state to the host.
    pub fn store(&mut self, state: &mut Snapshot) -> Result {
        self.ops.read_state(Buffer::Parameters, &mut state.parameters)?;
        if !state.ema.is_empty() {
            self.ops.read_state(Buffer::Ema, &mut state.ema)?;
        }
        let mut slots = state.slots.iter_mut().enumerate();
        slots.try_for_each(|(number, slot)| self.ops.read_state(Buffer::Slot(number), &mut slot.values))
    }

    /// Runs a step again whose loss or gradients were not finite, and describes the first value that is not finite.
    /// Returns none if all values are finite this time. After this call only the state may be read.
    pub fn first_not_finite(&mut self, batch: &Batch, params: StepParams) -> Result<Option<String>> {
        self.bind(Bound::Training)?;
        let Engine { ops, table, stages, stage, normalise, class_weights, .. } = self;
        let Training { network, itinerary, .. } = &stages[*stage];
        let search = Search {
            network,
            itinerary,
            table,
            normalise: *normalise,
            class_weights: class_weights.as_deref(),
            params,
        };
        search.run(ops, batch)
    }
}
