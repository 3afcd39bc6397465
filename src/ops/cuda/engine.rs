//! [`Ops`] on a GPU: the passes go to their operators' files; what is around them, from a batch's arrival to a step's
//! figures, is here.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch_norm::ARRIVALS_BYTES;
use super::batches::{Batches, Sent};
use super::context::{Context, State};
use super::gpu::{Address, Gpu, Graph, Staging};
use super::masks::{self, WaitingMasks};
use super::precision::{self, Precision};
use super::{exchange, image, optimiser, step};
use crate::host_bytes::HostAllocator;
use crate::ops::device::KEPT;
use crate::ops::optimiser::MOST_SLOTS;
use crate::ops::*;
use crate::parallel::Group;

/// A GPU with the state and the arena of one network on it.
pub struct CudaOps<G: Gpu> {
    cx: Context<G>,
    /// Plans that were bound; a graph belongs to one.
    plans: Vec<Plan>,
    bound: usize,
    graphs: HashMap<Key, Option<Graph>>,
    batches: Option<Batches>,
    figures: Figures,
}

/// What is captured as one graph: by plan, sequence, whether the weights are EMA, and what the batch was sent as.
type Key = (usize, Sequence, bool, Option<Sent>);

/// The figures of steps on their way back: the step's block, as it was when the step had ended.
struct Figures {
    staging: [Staging; 2],
    /// Steps handed over, and steps whose figures were taken.
    ended: usize,
    taken: usize,
    /// Steps skipped up to the last one taken.
    skipped: u32,
}

impl<G: Gpu> CudaOps<G> {
    /// State buffers of this size and an arena that holds any one of `plans`.
    ///
    /// # Errors
    /// Where the memory is not there.
    pub fn new(mut gpu: G, size: StateSize, plans: &[&Plan], precision: Precision) -> Result<CudaOps<G>> {
        let most = |bytes: fn(&Plan) -> usize| plans.iter().map(|p| bytes(p)).max().unwrap_or(0);
        let (arena_bytes, workspace_bytes) = (most(|p| p.tensor_bytes), most(|p| p.workspace.shared));
        let kept_bytes: [usize; KEPT] =
            std::array::from_fn(|place| plans.iter().map(|p| p.workspace.kept[place]).max().unwrap_or(0));
        let floats = |gpu: &mut G, count: usize| gpu.allocate((count * 4).max(16));
        let StateSize { trainable, total, slots: count, decay_factors } = size;
        let parameters = floats(&mut gpu, total)?;
        let gradients = floats(&mut gpu, trainable)?;
        let mut slots = [Address::NULL; MOST_SLOTS];
        for slot in &mut slots[..count] {
            *slot = floats(&mut gpu, trainable)?;
        }
        let state = State {
            parameters,
            gradients,
            slots,
            decay_factors: if decay_factors { floats(&mut gpu, trainable)? } else { Address::NULL },
            ema: floats(&mut gpu, total)?,
            running: floats(&mut gpu, total - trainable)?,
            squares: gpu.allocate(optimiser::squares_bytes(trainable))?,
            block: gpu.allocate(step::BLOCK_BYTES)?,
            arrivals: gpu.allocate(ARRIVALS_BYTES)?,
            trainable,
            total,
        };
        let stored = optimiser::stored_weights(&mut gpu, plans, precision)?;
        let mut cx = Context {
            arena: gpu.allocate(arena_bytes.max(16))?,
            workspace: gpu.allocate(workspace_bytes.max(16))?,
            kept: [gpu.allocate(kept_bytes[0].max(16))?, gpu.allocate(kept_bytes[1].max(16))?],
            gpu,
            precision,
            arena_bytes,
            offsets: Vec::new(),
            state,
            stored,
            growth_interval: optimiser::GROWTH_INTERVAL,
            ema_weights: false,
            workspace_bytes,
            kept_bytes,
            waiting: [None; KEPT],
            masks: WaitingMasks::default(),
            pixels: None,
            profile: None,
            exchange: None,
            name: String::with_capacity(96),
        };
        cx.describe();
        cx.gpu.fill(cx.state.arrivals, 0, ARRIVALS_BYTES)?;
        step::initialise(&mut cx)?;
        let mut staging = || cx.gpu.staging(step::BLOCK_BYTES, step::BLOCK_BYTES);
        let staging = [staging()?, staging()?];
        let figures = Figures { staging, ended: 0, taken: 0, skipped: 0 };
        let (plans, graphs) = (Vec::new(), HashMap::new());
        Ok(CudaOps { cx, plans, bound: 0, graphs, batches: None, figures })
    }

    /// Shares the work with the ranks of a group, which all call this at the same place: from here on a step's gradients,
    /// running statistics and figures are those of all ranks, see [`Ops::reduce`]. A group of one needs no exchange.
    ///
    /// # Errors
    /// Where the GPUs cannot exchange; where the group is stopped meanwhile.
    pub fn connect(&mut self, group: &Arc<Group>) -> Result {
        if group.world().size == 1 {
            return Ok(());
        }
        // Graphs of before exchange nothing.
        self.free_graphs();
        exchange::connect(&mut self.cx, group)
    }

    /// Copies half of the arena into its other half, the best of five times.
    fn copy_rate(&mut self) -> Result<f64> {
        let (from, half) = (self.cx.arena, self.cx.arena_bytes / 2);
        let gpu = &mut self.cx.gpu;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let began = gpu.mark()?;
            gpu.copy(from, from.offset(half), half)?;
            let ended = gpu.mark()?;
            best = best.min(gpu.elapsed(began, ended)?);
        }
        Ok(2e6 * half as f64 / best.max(1e-9))
    }

    fn free_graphs(&mut self) {
        let gpu = &mut self.cx.gpu;
        self.graphs.drain().filter_map(|(_, graph)| graph).for_each(|graph| gpu.free_graph(graph));
    }

    fn capture(&mut self, work: impl FnOnce(&mut Self) -> Result) -> Result<Graph> {
        self.cx.gpu.begin_capture()?;
        let worked = work(self).and_then(|()| self.cx.settle());
        // The capture is ended whatever happened, or the stream would stay unusable.
        let graph = self.cx.gpu.end_capture();
        worked.and(graph)
    }

    /// The loader may fill the memory again from which batches have arrived.
    fn let_go(&mut self) -> Result {
        self.batches.as_ref().map_or(Ok(()), |batches| batches.let_go(&mut self.cx.gpu))
    }

    /// The GPU itself.
    pub fn gpu(&mut self) -> &mut G {
        &mut self.cx.gpu
    }

    /// What launchers work with, for tests of what no pass does alone.
    pub fn context(&mut self) -> &mut Context<G> {
        &mut self.cx
    }

    /// After how many good steps the loss scale of fp16 doubles: 2000 unless set.
    pub fn set_growth_interval(&mut self, steps: u32) {
        self.cx.growth_interval = steps;
    }

    fn buffer(&self, buffer: Buffer) -> (Address, usize) {
        let state = &self.cx.state;
        match buffer {
            Buffer::Parameters => (state.parameters, state.total),
            Buffer::Gradients => (state.gradients, state.trainable),
            Buffer::Slot(number) => (state.slots[number], state.trainable),
            Buffer::DecayFactors => (state.decay_factors, state.trainable),
            Buffer::Ema => (state.ema, state.total),
        }
    }
}

impl<G: Gpu> Ops for CudaOps<G> {
    /// Enqueued pass by pass the first time, captured as a graph the second time, and launched from then on. In the
    /// first run the driver loads code and sets attributes, which older drivers refuse in a capture, and NCCL connects
    /// the ranks. While passes are timed they are never captured.
    fn replay(&mut self, sequence: Sequence, work: impl FnOnce(&mut Self) -> Result) -> Result {
        let slot = sequence.slot();
        if let Some(batches) = &self.batches {
            batches.acquire(&mut self.cx.gpu, slot)?;
        }
        let sent = self.batches.as_ref().and_then(|batches| batches.sent(slot));
        let key = (self.bound, sequence, self.cx.ema_weights, sent);
        let captures = self.cx.profile.is_none() && self.cx.gpu.captures();
        match self.graphs.get(&key) {
            Some(Some(graph)) if captures => self.cx.gpu.launch_graph(*graph)?,
            Some(None) if captures => {
                let graph = self.capture(work)?;
                self.graphs.insert(key, Some(graph));
                self.cx.gpu.launch_graph(graph)?;
            }
            _ => {
                work(self)?;
                self.cx.settle()?;
                self.graphs.entry(key).or_insert(None);
            }
        }
        match &self.batches {
            Some(batches) => batches.release(&mut self.cx.gpu, slot),
            None => Ok(()),
        }
    }

    fn begin_step(&mut self) -> Result {
        exchange::step_begins(&mut self.cx)?;
        step::clear_figures(&mut self.cx)?;
        self.zero_gradients()
    }

    fn end_step(&mut self) -> Result {
        let staging = self.figures.staging[self.figures.ended % 2];
        assert!(self.figures.ended - self.figures.taken < 2, "the figures of an earlier step were not taken");
        let to = self.cx.gpu.staging_address(staging);
        self.cx.gpu.copy(self.cx.state.block, to, step::BLOCK_BYTES)?;
        self.figures.ended += 1;
        self.cx.gpu.staging_receive(staging)?;
        let device = super::CudaDevice::new(self.cx.precision);
        match &mut self.cx.profile {
            Some(timing) => timing.end_step(&mut self.cx.gpu, &device),
            None => Ok(()),
        }
    }

    fn take_figures(&mut self, wait: bool) -> Result<Option<StepFigures>> {
        let Figures { staging, ended, taken, skipped } = &mut self.figures;
        if *taken == *ended || (!wait && *ended - *taken < 2) {
            return Ok(None);
        }
        let block = step::StepValues::parse(self.cx.gpu.staging_host(staging[*taken % 2])?);
        *taken += 1;
        let before = std::mem::replace(skipped, block.scale.skipped);
        let (loss, correct) = (block.loss, block.correct.into());
        let skipped = block.scale.skipped != before;
        // The step's batches have arrived long ago.
        self.let_go()?;
        Ok(Some(StepFigures { loss, correct, skipped, gradient_norm: block.gradient_norm }))
    }

    fn send_batch(&mut self, slot: usize, batch: &BatchInput) -> Result {
        let mut size = Batches::size(batch);
        if let Some(batches) = self.batches.as_ref().filter(|batches| !batches.has_room(size)) {
            // Training in a stage of small images and evaluation each need more of something: room for both.
            size = size.max(batches.room());
            // Graphs hold the addresses of the staging that they were captured with.
            self.free_graphs();
            self.batches.take().map_or(Ok(()), |batches| batches.free(&mut self.cx.gpu))?;
        }
        let gpu = &mut self.cx.gpu;
        let batches = match &mut self.batches {
            Some(batches) => batches,
            none => none.insert(Batches::new(gpu, size)?),
        };
        batches.send(gpu, slot, batch)
    }

    fn host_memory(&self) -> Option<HostAllocator> {
        self.cx.gpu.host_memory()
    }

    fn keeps_batches(&self) -> bool {
        true
    }

    fn unpack_batch(&mut self, slot: usize, target: &BatchTarget) -> Result {
        match &self.batches {
            Some(batches) => batches.unpack(&mut self.cx, slot, target),
            None => Err(OpsError::Device("no batch was sent".into())),
        }
    }

    fn receive_batch(&mut self, slot: usize, target: &BatchTarget) -> Result {
        if let Some(batches) = &self.batches {
            batches.acquire(&mut self.cx.gpu, slot)?;
        }
        self.unpack_batch(slot, target)?;
        match &self.batches {
            Some(batches) => batches.release(&mut self.cx.gpu, slot),
            None => Ok(()),
        }
    }

    fn loss_scale(&mut self) -> Result<Option<LossScale>> {
        if self.cx.precision != Precision::Fp16 {
            return Ok(None);
        }
        step::read(&mut self.cx).map(|block| Some(block.scale))
    }

    fn set_loss_scale(&mut self, state: LossScale) -> Result {
        self.figures.skipped = state.skipped;
        let scaled = self.cx.precision == Precision::Fp16;
        let unscaled = LossScale { scale: 1.0, good_steps: 0, skipped: state.skipped };
        step::set_scale(&mut self.cx, if scaled { state } else { unscaled })
    }

    fn start_profile(&mut self) -> Result {
        self.cx.profile = Some(Default::default());
        Ok(())
    }

    fn take_profile(&mut self) -> Result<ProfileReport> {
        let timing = self.cx.profile.take().unwrap_or_default();
        let device = super::CudaDevice::new(self.cx.precision);
        let report = timing.finish(&mut self.cx.gpu, &device)?;
        Ok(ProfileReport { copy_bytes_per_second: self.copy_rate()?, ..report })
    }

    fn bind(&mut self, plan: &Plan) -> Result {
        let cx = &mut self.cx;
        cx.settle()?;
        let Workspace { shared, kept, .. } = plan.workspace;
        let fits = (0..KEPT).all(|place| kept[place] <= cx.kept_bytes[place]);
        if plan.tensor_bytes > cx.arena_bytes || shared > cx.workspace_bytes || !fits {
            return Err(OpsError::Device("the plan is larger than the memory set up for it".into()));
        }
        cx.offsets.clone_from(&plan.offsets);
        let known = self.plans.iter().position(|known| known == plan);
        self.bound = known.unwrap_or_else(|| {
            self.plans.push(plan.clone());
            self.plans.len() - 1
        });
        Ok(())
    }

    fn set_step(&mut self, step: StepParams) -> Result {
        // Masks that wait are those of the step before.
        self.cx.settle()?;
        step::set(&mut self.cx, step)
    }

    fn use_weights(&mut self, weights: Weights) -> Result {
        let ema = weights == Weights::Ema;
        if std::mem::replace(&mut self.cx.ema_weights, ema) == ema {
            return Ok(());
        }
        optimiser::store_weights(&mut self.cx)
    }

    fn zero_gradients(&mut self) -> Result {
        self.cx.settle()?;
        let (gradients, elements) = self.buffer(Buffer::Gradients);
        self.cx.gpu.fill(gradients, 0, elements * 4)
    }

    /// Of the parameters, the running statistics are those of the forward passes so far, also before the update
    /// has made them the parameters'.
    fn read_state(&mut self, buffer: Buffer, out: &mut [f32]) -> Result {
        self.cx.settle()?;
        let (from, elements) = self.buffer(buffer);
        assert_eq!(out.len(), elements);
        self.cx.gpu.read(from, bytemuck::cast_slice_mut(out))?;
        if buffer == Buffer::Parameters {
            let State { running, trainable, .. } = self.cx.state;
            self.cx.gpu.read(running, bytemuck::cast_slice_mut(&mut out[trainable..]))?;
        }
        Ok(())
    }

    fn write_state(&mut self, buffer: Buffer, values: &[f32]) -> Result {
        self.cx.settle()?;
        let (to, elements) = self.buffer(buffer);
        assert_eq!(values.len(), elements);
        self.cx.gpu.write(to, bytemuck::cast_slice(values))?;
        let State { running, trainable, .. } = self.cx.state;
        if buffer == Buffer::Parameters {
            self.cx.gpu.write(running, bytemuck::cast_slice(&values[trainable..]))?;
        }
        if buffer == Buffer::Parameters || buffer == Buffer::Ema {
            optimiser::store_weights(&mut self.cx)?;
        }
        Ok(())
    }

    fn upload(&mut self, tensor: Tensor, values: &[f32]) -> Result {
        assert_eq!(values.len(), tensor.elements);
        self.cx.settle()?;
        let to = self.cx.tensor(tensor);
        if tensor.kind == Kind::Activation && self.cx.precision != Precision::Fp32 {
            return self.cx.gpu.write(to, &precision::narrow(values, self.cx.precision));
        }
        self.cx.gpu.write(to, bytemuck::cast_slice(values))
    }

    fn upload_labels(&mut self, tensor: Tensor, labels: &Labels) -> Result {
        let mut words = vec![0; tensor.elements];
        labels.write(&mut words);
        let to = self.cx.tensor(tensor);
        self.cx.gpu.write(to, bytemuck::cast_slice(&words))
    }

    fn upload_pixels(&mut self, image: Tensor, pixels: &[u8], mean: [f32; 3], deviation: [f32; 3]) -> Result {
        image::upload(&mut self.cx, image, pixels, mean, deviation)
    }

    fn download(&mut self, tensor: Tensor, out: &mut [f32]) -> Result {
        assert_eq!(out.len(), tensor.elements);
        self.cx.settle()?;
        let from = self.cx.tensor(tensor);
        if tensor.kind == Kind::Activation && self.cx.precision != Precision::Fp32 {
            let mut narrow = vec![0; out.len() * 2];
            self.cx.gpu.read(from, &mut narrow)?;
            precision::widen(&narrow, self.cx.precision, out);
        } else {
            self.cx.gpu.read(from, bytemuck::cast_slice_mut(out))?;
        }
        self.let_go()
    }

    fn reduce(&mut self, bucket: &Bucket) -> Result {
        self.cx.settle()?;
        exchange::reduce(&mut self.cx, bucket)
    }

    fn run(&mut self, pass: &Pass) -> Result {
        if let Pass::Update(update) = pass {
            self.cx.settle()?;
            exchange::join(&mut self.cx, update.frozen)?;
        }
        if !masks::waits(pass) {
            masks::draw_waiting(&mut self.cx)?;
        }
        self.cx.begin_pass(pass.name())?;
        super::launch(&mut self.cx, pass)?;
        self.cx.end_pass(pass)
    }
}
