//! What a launcher works with: addresses of tensors and parameters, a workspace, and `launch`.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Write;

use super::arguments::{Arguments, Kernel};
use super::batch_norm::MOST_ARRIVALS;
use super::gpu::{Address, Gpu, Launch};
use super::masks::{WaitingMasks, draw_waiting};
use super::precision::Precision;
use super::reduction::{WeightGradient, finish_waiting};
use super::sources::step::StepBlock;
use super::timing::Timing;
use crate::ops::device::KEPT;
use crate::ops::optimiser::MOST_SLOTS;
use crate::ops::plan::ALIGNMENT;
use crate::ops::{OpsError, Param, Pass, Result, Tensor};

/// The flat state buffers on the device.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// [total], in fp32 like all of these buffers.
    pub parameters: Address,
    pub gradients: Address,
    /// Those that the optimiser has; the others are null.
    pub slots: [Address; MOST_SLOTS],
    /// Null if all parameters decay alike.
    pub decay_factors: Address,
    pub ema: Address,
    /// [total − trainable]: running statistics after this step's forward passes. The update copies them to the
    /// parameters unless the step is skipped.
    pub running: Address,
    /// Sums of squares of the gradients by chunk, in f64: see [`optimiser`](super::optimiser).
    pub squares: Address,
    /// One [`StepBlock`].
    pub block: Address,
    /// [`MOST_ARRIVALS`] counts, zero between launches.
    pub arrivals: Address,
    pub trainable: usize,
    pub total: usize,
}

/// A copy of the pointwise weights in the storage type, of those weights that the forward pass uses. Each tensor is
/// aligned for 16-byte loads, unlike the same tensor in the flat parameters.
#[derive(Clone, Debug)]
pub struct StoredWeights {
    pub values: Address,
    /// What to copy, [chunks] of three u32: first element among the parameters, first element here, number of
    /// elements.
    pub table: Address,
    pub chunks: usize,
    /// First element here, by the parameter's offset.
    pub places: HashMap<usize, usize>,
}

/// The state of a step's exchange between ranks.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Gradients before this offset are not yet being summed.
    pub left: usize,
}

/// Everything a launcher may use.
pub struct Context<G: Gpu> {
    pub gpu: G,
    pub precision: Precision,
    pub arena: Address,
    pub arena_bytes: usize,
    pub offsets: Vec<Option<usize>>,
    pub state: State,
    pub stored: StoredWeights,
    /// Good steps after which the loss scale of fp16 doubles.
    pub growth_interval: u32,
    /// True while forward passes take their weights from the EMA buffer.
    pub ema_weights: bool,
    pub workspace: Address,
    pub workspace_bytes: usize,
    /// Partial sums that outlive their pass, beside the workspace.
    pub kept: [Address; KEPT],
    pub kept_bytes: [usize; KEPT],
    /// The gradients that are made of them by the next launch that finishes one.
    pub(super) waiting: [Option<WeightGradient>; KEPT],
    /// The masks that the next launch draws.
    pub(super) masks: WaitingMasks,
    /// A buffer for uploaded images and its length; the first upload allocates it.
    pub pixels: Option<(Address, usize)>,
    /// Set while passes are timed.
    pub(super) profile: Option<Timing>,
    /// Present if several ranks share the work.
    pub(super) exchange: Option<Exchange>,
    /// The name of the kernel being launched; kept so that a launch allocates nothing.
    pub(super) name: String,
}

impl<G: Gpu> Context<G> {
    /// Names the buffers for the GPU, see [`Gpu::describe`].
    pub(super) fn describe(&mut self) {
        let State { trainable, total, .. } = self.state;
        for (at, bytes, label) in [
            (self.state.parameters, 4 * total, "parameters"),
            (self.state.gradients, 4 * trainable, "gradients"),
            (self.state.ema, 4 * total, "EMA"),
            (self.state.running, 4 * (total - trainable), "running statistics"),
            (self.state.block, size_of::<StepBlock>(), "step block"),
            (self.state.arrivals, 4 * MOST_ARRIVALS, "counts of arrivals"),
            (self.arena, self.arena_bytes, "arena"),
            (self.workspace, self.workspace_bytes, "workspace"),
        ] {
            self.gpu.describe(at, bytes, label);
        }
        for place in 0..KEPT {
            self.gpu.describe(self.kept[place], self.kept_bytes[place], "workspace");
        }
        let slots = self.state.slots.into_iter().enumerate();
        let mut optional: Vec<(Address, String)> =
            slots.map(|(number, slot)| (slot, format!("optimiser's slot {number}"))).collect();
        optional.push((self.state.decay_factors, "decay factors".into()));
        for (at, label) in optional.into_iter().filter(|(at, _)| *at != Address::NULL) {
            self.gpu.describe(at, 4 * trainable, &label);
        }
    }

    /// The address of a tensor.
    pub fn tensor(&self, tensor: Tensor) -> Address {
        match self.offsets.get(tensor.id as usize) {
            Some(Some(offset)) => self.arena.offset(*offset),
            _ => panic!("tensor {} is not in the bound plan", tensor.id),
        }
    }

    /// The address of a tensor, or null for none.
    pub fn optional(&self, tensor: Option<Tensor>) -> Address {
        tensor.map_or(Address::NULL, |t| self.tensor(t))
    }

    /// A weight of the forward pass in fp32: raw or EMA.
    pub fn weight(&self, param: Param) -> Address {
        let buffer = if self.ema_weights { self.state.ema } else { self.state.parameters };
        buffer.offset(param.offset * 4)
    }

    /// A weight of the backward pass in fp32: always raw.
    pub fn raw_weight(&self, param: Param) -> Address {
        self.state.parameters.offset(param.offset * 4)
    }

    /// A pointwise weight in the storage type, aligned to 16 bytes: the forward weights (raw while training).
    pub fn stored_weight(&self, param: Param) -> Address {
        match self.stored.places.get(&param.offset) {
            Some(place) => self.stored.values.offset(place * self.precision.bytes()),
            None => panic!("no plan names the parameters at {} as a product's weight", param.offset),
        }
    }

    /// The gradient of a parameter in fp32. Kernels add to it.
    pub fn gradient(&self, param: Param) -> Address {
        self.state.gradients.offset(param.offset * 4)
    }

    /// A running statistic after this step's forward passes.
    pub fn running(&self, param: Param) -> Address {
        self.state.running.offset((param.offset - self.state.trainable) * 4)
    }

    /// The workspace, cut into pieces of the given bytes (each rounded up to [`ALIGNMENT`]).
    pub fn workspace<const N: usize>(&self, bytes: [usize; N]) -> [Address; N] {
        let need = workspace_bytes(&bytes);
        assert!(need <= self.workspace_bytes, "a pass takes {need} bytes of workspace, more than planned");
        let mut offset = 0;
        bytes.map(|bytes| {
            let start = offset;
            offset += bytes.next_multiple_of(ALIGNMENT);
            self.workspace.offset(start)
        })
    }

    /// Memory for partial sums that outlive the pass. Finishes those that lie there.
    pub fn kept(&mut self, place: usize, bytes: usize) -> Result<Address> {
        assert!(bytes <= self.kept_bytes[place], "a pass keeps {bytes} bytes, more than planned");
        if self.waiting[place].is_some() {
            finish_waiting(self)?;
        }
        Ok(self.kept[place])
    }

    /// Enqueues a kernel over `grid` blocks of `threads` threads with `shared` bytes of dynamic shared memory.
    ///
    /// # Errors
    /// [`Gpu::launch`]'s.
    pub fn launch<A: Arguments>(
        &mut self,
        kernel: &Kernel<A>,
        grid: [usize; 3],
        threads: usize,
        shared: usize,
        arguments: A,
    ) -> Result {
        self.name.clear();
        let suffix = if kernel.stored { self.precision.suffix() } else { "" };
        let _ = write!(self.name, "{}{suffix}", kernel.name);
        let limits = [i32::MAX as usize, 65_535, 65_535];
        if let Some((blocks, _)) = grid.iter().zip(limits).find(|(g, limit)| **g == 0 || *g > limit) {
            return Err(OpsError::Device(format!("{}: a grid of {blocks} blocks", self.name)));
        }
        let launch = Launch {
            kernel: &self.name,
            grid: grid.map(|g| g as u32),
            threads: threads as u32,
            shared,
            fields: A::FIELDS,
            size: size_of::<A>(),
        };
        let began = if self.profile.is_some() { Some(self.gpu.mark()?) } else { None };
        // SAFETY: `arguments` is a value of the type that `fields` describes. Launchers take its addresses from the
        // methods above, within the bounds that the pass declares.
        unsafe { self.gpu.launch(&launch, (&raw const arguments).cast::<c_void>()) }?;
        match (began, &mut self.profile) {
            (Some(began), Some(timing)) => timing.end_kernel(&mut self.gpu, &self.name, began),
            _ => Ok(()),
        }
    }

    /// Enqueues what passes have left to a later launch.
    ///
    /// # Errors
    /// [`Gpu::launch`]'s.
    pub fn settle(&mut self) -> Result {
        draw_waiting(self)?;
        finish_waiting(self)
    }

    /// Begins a pass, for the profile.
    pub fn begin_pass(&mut self, name: &'static str) -> Result {
        match &mut self.profile {
            Some(timing) => timing.begin_pass(&mut self.gpu, name),
            None => Ok(()),
        }
    }

    /// Ends a pass, for the profile.
    pub fn end_pass(&mut self, pass: &Pass) -> Result {
        let device = super::CudaDevice::new(self.precision);
        match &mut self.profile {
            Some(timing) => timing.end_pass(&mut self.gpu, &device, pass),
            None => Ok(()),
        }
    }
}

/// Bytes of shared memory for pieces of these sizes, as `SharedArena` in `kernels/device.cuh` hands them out.
pub fn shared_bytes<const N: usize>(pieces: [usize; N]) -> usize {
    pieces.iter().map(|bytes| bytes.next_multiple_of(16)).sum()
}

/// The same for pieces of these numbers of floats.
pub fn shared_floats<const N: usize>(pieces: [usize; N]) -> usize {
    shared_bytes(pieces.map(|floats| floats * 4))
}

/// Bytes that [`Context::workspace`] takes for these pieces.
pub fn workspace_bytes(bytes: &[usize]) -> usize {
    bytes.iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum()
}
