//! The passes on the CPU: NHWC, all cores, vector code chosen at run time.
//!
//! Activations and their gradients are stored as fp32 or bf16, all else as fp32. Sums, statistics and functions are in
//! fp32, and so are the products of fp32; those of bf16 numbers are summed in fp32. A pass is generic over the
//! [`Element`] that it loads and stores.
//!
//! A pass is cut into *tasks* by its shape alone, never by the number of threads. Each task works on a block of
//! rows (or an image and a slice of channels) that stays in the core's L2 cache, from loading its input to
//! taking the statistics of its output. Each task stores its own part of a sum over tasks, and the parts are added in
//! task order. So results depend neither on the number of threads nor on their order.
//!
//! Each operator's file has, forward then backward, the pass and the workspace it needs. The workspace is
//! allocated once, for the largest pass of the plan.

mod batch_norm;
mod context;
mod dense;
mod depthwise;
mod exchange;
mod expand;
mod expand_depthwise;
mod gemm;
mod head;
mod masks;
mod memory;
mod optimiser;
pub mod peak;
mod pool;
mod project;
mod residual;
pub(crate) mod simd;
mod squeeze_excite;
mod stem;
mod sweep;
mod workers;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use context::{Context, OnCpu, WorkspaceFloats};
use exchange::Exchange;
use gemm::PackedWeights;
use memory::{Memory, Shared, State};
use simd::Element;
use workers::Workers;

use super::profile::Profile;
use super::*;
use crate::model::Window;
use crate::parallel::Group;

/// The CPU as a device.
pub struct CpuOps {
    cx: Context,
    profile: Option<Profile>,
    /// Figures of the current step.
    figures: StepFigures,
    /// Figures of the last step, until they are taken.
    ended: Option<StepFigures>,
}

/// The CPU as the planner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuDevice {
    pub threads: usize,
    precision: Precision,
}

impl CpuDevice {
    /// How the CPU can store activations.
    pub const PRECISIONS: [Precision; 2] = [Precision::Fp32, Precision::Bf16];

    /// # Panics
    /// For a precision that is none of [`CpuDevice::PRECISIONS`].
    pub fn new(threads: usize, precision: Precision) -> CpuDevice {
        assert!(CpuDevice::PRECISIONS.contains(&precision), "the CPU does not compute in {precision}");
        CpuDevice { threads, precision }
    }

    pub fn fp32(threads: usize) -> CpuDevice {
        CpuDevice::new(threads, Precision::Fp32)
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// Evaluates an expression with a name for the type as which a precision stores activations.
macro_rules! with_element {
    ($precision:expr, $element:ident => $value:expr) => {
        match $precision {
            Precision::Bf16 => {
                type $element = half::bf16;
                $value
            }
            _ => {
                type $element = f32;
                $value
            }
        }
    };
}

macro_rules! dispatch_passes {
    ($($pass:ident),* $(,)?) => {
        fn workspace<E: Element>(pass: &Pass) -> WorkspaceFloats {
            match pass {
                $(Pass::$pass(pass) => pass.workspace::<E>()),*
            }
        }

        /// # Safety
        /// As for [`OnCpu::run`].
        unsafe fn run<E: Element>(pass: &Pass, cx: &Context) {
            match pass {
                // SAFETY: the caller's promise.
                $(Pass::$pass(pass) => unsafe { pass.run::<E>(cx) }),*
            }
        }
    };
}
for_each_pass!(dispatch_passes);

impl Device for CpuDevice {
    fn element_bytes(&self, kind: Kind) -> usize {
        context::element_bytes(self.precision, kind)
    }

    fn workspace(&self, pass: &Pass) -> Workspace {
        let WorkspaceFloats { shared, per_thread } = with_element!(self.precision, E => workspace::<E>(pass));
        Workspace { shared: shared * 4, per_thread: per_thread * 4, ..Workspace::default() }
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn applies_norms_on_store(&self) -> bool {
        true
    }

    /// A row is multiplied at a time. On narrower maps it has too few pixels to fill the registers: B0 at 32² takes a
    /// fifth longer if all its blocks are expanded so. Rows also have to be whole pairs of bf16 numbers, as those of the
    /// family are.
    fn expands_in_cache(&self, _expanded: usize, inputs: usize, window: Window) -> bool {
        window.input >= 7 && inputs.is_multiple_of(2)
    }
}

impl CpuOps {
    /// Allocates state buffers of this size and an arena that holds any one of `plans`, and starts the device's threads.
    pub fn new(size: StateSize, plans: &[&Plan], device: CpuDevice) -> Result<CpuOps> {
        let StateSize { trainable, total, .. } = size;
        let CpuDevice { threads, precision } = device;
        let workers = Workers::start(threads)
            .map_err(|e| OpsError::Device(format!("cannot start {threads} threads: {e}")))?;
        let most = |bytes: fn(&Plan) -> usize| plans.iter().map(|p| bytes(p)).max().unwrap_or(0);
        let state = State {
            parameters: Memory::new(total * 4),
            gradients: Memory::new(trainable * 4),
            slots: (0..size.slots).map(|_| Memory::new(trainable * 4)).collect(),
            decay_factors: Memory::new(if size.decay_factors { trainable * 4 } else { 0 }),
            ema: Memory::new(total * 4),
            trainable,
            total,
        };
        let scratch = most(|p| p.workspace.per_thread);
        let cx = Context {
            exchange: None,
            arena: Memory::new(most(|p| p.tensor_bytes)),
            precision,
            offsets: Vec::new(),
            state,
            ema_weights: false,
            step: StepParams::default(),
            skipped: 0,
            clip: 1.0,
            workers,
            shared: Memory::new(most(|p| p.workspace.shared)),
            packed: PackedWeights::default(),
            scratch: (0..threads).map(|_| Memory::new(scratch)).collect(),
            scratch_in_use: AtomicBool::new(false),
        };
        Ok(CpuOps { cx, profile: None, figures: StepFigures::default(), ended: None })
    }

    /// Connects this rank to the others, with which it shares each step from now on. All ranks call this at the same
    /// time.
    ///
    /// # Errors
    /// If the ranks cannot be connected.
    pub fn connect(&mut self, group: &Arc<Group>) -> Result {
        if group.world().size > 1 {
            self.cx.exchange = Some(Exchange::new(group)?);
        }
        Ok(())
    }

    /// Bytes read and written per second when all threads copy half of the arena into its other half: the best of
    /// three runs.
    fn copy_rate(&mut self) -> f64 {
        const CHUNK: usize = 1 << 16;
        let half = self.cx.arena.bytes() / 8;
        let arena = &self.cx.arena;
        // SAFETY: `self` is borrowed mutably, so no pass runs; the halves do not overlap.
        let (from, to) = unsafe { (arena.floats(0, half), arena.floats_mut(half * 4, half)) };
        let to = Shared::new(to);
        let copy = || {
            let start = Instant::now();
            self.cx.parallel(half.div_ceil(CHUNK), |task, _| {
                let range = task * CHUNK..half.min((task + 1) * CHUNK);
                // SAFETY: each task has its own chunk.
                unsafe { to.part(range.clone()) }.copy_from_slice(&from[range]);
            });
            start.elapsed().as_secs_f64()
        };
        let best = (0..3).map(|_| copy()).fold(f64::INFINITY, f64::min);
        8.0 * half as f64 / best.max(1e-9)
    }

    /// Adds a micro-batch's losses and correct predictions. Each micro-batch is summed by itself, in sample order.
    fn add_figures(&mut self, pass: &Loss) {
        let cx = &self.cx;
        self.figures.loss += cx.read(pass.losses).iter().map(|&l| f64::from(l)).sum::<f64>();
        let labels = bytemuck::cast_slice::<f32, u32>(cx.read(pass.labels));
        let scored = cx.read(pass.logits).chunks_exact(pass.classes).zip(labels);
        self.figures.correct +=
            scored.filter(|(logits, label)| score::rank(logits, **label) == 0).count() as u64;
    }

    /// Waits for the sums over the ranks and, if the update clips them, takes the gradients' norm. Returns whether the
    /// step's loss and this norm are finite.
    fn may_update(&mut self, update: &Update) -> Result<bool> {
        if let Some(exchange) = &mut self.cx.exchange {
            exchange.finish(&mut self.figures)?;
        }
        self.cx.clip = 1.0;
        if let Some(most) = update.clip_norm {
            // SAFETY: `self` is borrowed mutably, so no pass runs.
            let norm = unsafe { optimiser::gradient_norm(&self.cx) };
            self.cx.clip = optimiser::clip(norm, most);
            self.figures.gradient_norm = norm.is_finite().then_some(norm as f32);
        }
        let bad_norm = update.clip_norm.is_some() && self.figures.gradient_norm.is_none();
        self.figures.skipped = bad_norm || !self.figures.loss.is_finite();
        Ok(!self.figures.skipped)
    }

    fn state(&mut self, buffer: Buffer) -> &mut [f32] {
        let state = &self.cx.state;
        let (memory, elements) = match buffer {
            Buffer::Parameters => (&state.parameters, state.total),
            Buffer::Gradients => (&state.gradients, state.trainable),
            Buffer::Slot(number) => (&state.slots[number], state.trainable),
            Buffer::DecayFactors => (&state.decay_factors, state.trainable),
            Buffer::Ema => (&state.ema, state.total),
        };
        // SAFETY: `self` is borrowed mutably for as long as the slice lives, so no pass runs.
        unsafe { memory.floats_mut(0, elements) }
    }
}

impl Ops for CpuOps {
    /// A weight is packed once for all batches of inference.
    fn replay(&mut self, sequence: Sequence, work: impl FnOnce(&mut Self) -> Result) -> Result {
        self.cx.packed.keep(matches!(sequence, Sequence::Inference { .. }));
        let done = work(self);
        self.cx.packed.keep(false);
        done
    }

    fn bind(&mut self, plan: &Plan) -> Result {
        let cx = &mut self.cx;
        let scratch = cx.scratch.first().map_or(0, Memory::bytes);
        let fits = plan.tensor_bytes <= cx.arena.bytes()
            && plan.workspace.shared <= cx.shared.bytes()
            && plan.workspace.per_thread <= scratch;
        if !fits {
            return Err(OpsError::Device("the plan is larger than the memory set up for it".into()));
        }
        cx.offsets.clone_from(&plan.offsets);
        Ok(())
    }

    fn set_step(&mut self, step: StepParams) -> Result {
        self.cx.step = step;
        Ok(())
    }

    fn use_weights(&mut self, weights: Weights) -> Result {
        self.cx.ema_weights = weights == Weights::Ema;
        Ok(())
    }

    fn zero_gradients(&mut self) -> Result {
        self.state(Buffer::Gradients).fill(0.0);
        Ok(())
    }

    fn begin_step(&mut self) -> Result {
        // The step will change the weights.
        self.cx.packed.clear();
        self.figures = StepFigures::default();
        if let Some(exchange) = &mut self.cx.exchange {
            exchange.begin_step();
        }
        self.zero_gradients()
    }

    fn end_step(&mut self) -> Result {
        self.ended = Some(self.figures);
        Ok(())
    }

    fn take_figures(&mut self, _: bool) -> Result<Option<StepFigures>> {
        Ok(self.ended.take())
    }

    fn set_loss_scale(&mut self, state: LossScale) -> Result {
        self.cx.skipped = state.skipped;
        Ok(())
    }

    fn start_profile(&mut self) -> Result {
        self.profile = Some(Profile::default());
        if let Some(exchange) = &mut self.cx.exchange {
            exchange.start_trace();
        }
        Ok(())
    }

    fn take_profile(&mut self) -> Result<ProfileReport> {
        let rows = self.profile.take().unwrap_or_default().rows();
        let exchange = self.cx.exchange.as_mut().map(Exchange::take_trace).unwrap_or_default();
        Ok(ProfileReport { rows, exchange, copy_bytes_per_second: self.copy_rate(), handover: 0.0 })
    }

    fn read_state(&mut self, buffer: Buffer, out: &mut [f32]) -> Result {
        out.copy_from_slice(self.state(buffer));
        Ok(())
    }

    fn write_state(&mut self, buffer: Buffer, values: &[f32]) -> Result {
        self.cx.packed.clear();
        self.state(buffer).copy_from_slice(values);
        Ok(())
    }

    fn upload(&mut self, tensor: Tensor, values: &[f32]) -> Result {
        if tensor.kind != Kind::Activation {
            self.cx.tensor_mut(tensor).copy_from_slice(values);
            return Ok(());
        }
        // SAFETY: `self` is borrowed mutably, so no pass runs.
        with_element!(self.cx.precision, E => store(unsafe { self.cx.write_activation::<E>(tensor) }, values));
        Ok(())
    }

    fn upload_labels(&mut self, tensor: Tensor, labels: &Labels) -> Result {
        labels.write(bytemuck::cast_slice_mut(self.cx.tensor_mut(tensor)));
        Ok(())
    }

    fn upload_pixels(&mut self, image: Tensor, pixels: &[u8], mean: [f32; 3], deviation: [f32; 3]) -> Result {
        let cx = &mut self.cx;
        with_element!(cx.precision, E => stem::prepare::<E>(cx, image, pixels, mean, deviation));
        Ok(())
    }

    fn download(&mut self, tensor: Tensor, out: &mut [f32]) -> Result {
        if tensor.kind != Kind::Activation {
            out.copy_from_slice(self.cx.read(tensor));
            return Ok(());
        }
        with_element!(self.cx.precision, E => load(self.cx.activation::<E>(tensor), out));
        Ok(())
    }

    fn reduce(&mut self, bucket: &Bucket) -> Result {
        if let Some(exchange) = &mut self.cx.exchange {
            // SAFETY: the bucket is complete, so the passes that follow add to other gradients. After the last bucket
            // no pass uses gradients or running statistics before the update, which waits first. The exchange is
            // dropped before the state.
            unsafe { exchange.start(&self.cx.state, bucket, &self.figures) };
        }
        Ok(())
    }

    fn run(&mut self, pass: &Pass) -> Result {
        if let Pass::Update(update) = pass {
            self.cx.packed.clear();
            if !self.may_update(update)? {
                return Ok(());
            }
        }
        let start = Instant::now();
        self.cx.check_apart(pass);
        // SAFETY: `self` is borrowed mutably, so no other pass runs; its memory was checked.
        with_element!(self.cx.precision, E => unsafe { run::<E>(pass, &self.cx) });
        if let Some(exchange) = &self.cx.exchange {
            exchange.check()?;
        }
        if let Some(profile) = &mut self.profile {
            let device = CpuDevice::new(self.cx.threads(), self.cx.precision);
            profile.add(pass, &device, start.elapsed().as_secs_f64() * 1e6);
        }
        if let Pass::Loss(loss) = pass {
            self.add_figures(loss);
        }
        Ok(())
    }
}

/// Stores floats as a tensor stores them.
fn store<E: Element>(to: &mut [E], values: &[f32]) {
    assert_eq!(to.len(), values.len(), "one value for each element");
    to.iter_mut().zip(values).for_each(|(to, value)| *to = E::from_f32(*value));
}

/// Widens a tensor to floats.
fn load<E: Element>(from: &[E], out: &mut [f32]) {
    assert_eq!(from.len(), out.len(), "one float for each element");
    out.iter_mut().zip(from).for_each(|(out, value)| *out = value.to_f32());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a task cannot start tasks")]
    fn tasks_cannot_start_tasks() {
        let ops = CpuOps::new(StateSize::new(0, 0), &[], CpuDevice::fp32(2)).unwrap();
        ops.cx.parallel(1, |_, _| ops.cx.parallel(1, |_, _| {}));
    }
}
