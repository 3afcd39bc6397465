//! What a launcher works with: where tensors and parameters lie, a workspace, and the way to launch.

use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Write;

use super::arguments::{Arguments, Kernel};
use super::gpu::{Address, Gpu, Launch, Mark};
use super::precision::Precision;
use crate::ops::optimiser::MOST_SLOTS;
use crate::ops::plan::ALIGNMENT;
use crate::ops::profile::Profile;
use crate::ops::{OpsError, Param, Pass, Result, Tensor};

/// The flat state buffers on the device.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// [total] fp32, as are all but `storage`.
    pub parameters: Address,
    pub gradients: Address,
    /// Those that the optimiser has; the others are null.
    pub slots: [Address; MOST_SLOTS],
    pub ema: Address,
    /// [total − trainable]: running statistics as this step leaves them; they become the parameters' when the
    /// step is not skipped.
    pub running: Address,
    /// One [`super::step::Block`].
    pub block: Address,
    pub trainable: usize,
    pub total: usize,
}

/// The weights of the pointwise products once more: those of the forward pass, in the storage type, each tensor
/// aligned for 16-byte loads, which its place among the flat parameters is not.
#[derive(Clone, Debug)]
pub struct StoredWeights {
    pub values: Address,
    /// What is copied: [chunks] of three u32, the first element there and here, and how many.
    pub table: Address,
    pub chunks: usize,
    /// First element here by parameter offset.
    pub places: HashMap<usize, usize>,
}

/// What `--profile` gathers: sums, the pass under way and when it began, and what ranks exchange.
#[derive(Default)]
pub struct Timing {
    pub sums: Profile,
    pass: Option<(&'static str, Mark)>,
    pub(super) exchange: super::exchange::Times,
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
    /// A buffer for the bytes of images that are uploaded, made by the first upload, and its length.
    pub pixels: Option<(Address, usize)>,
    /// Set while passes are timed.
    pub profile: Option<Timing>,
    /// Where ranks share the work.
    pub(super) exchange: Option<super::exchange::Exchange>,
    /// The name of the kernel being launched; kept so that a launch allocates nothing.
    pub(super) name: String,
}

impl<G: Gpu> Context<G> {
    /// Tells the GPU what lies where.
    pub(super) fn describe(&mut self) {
        let State { trainable, total, .. } = self.state;
        for (at, bytes, label) in [
            (self.state.parameters, 4 * total, "parameters"),
            (self.state.gradients, 4 * trainable, "gradients"),
            (self.state.ema, 4 * total, "EMA"),
            (self.state.running, 4 * (total - trainable), "running statistics"),
            (self.state.block, super::step::BLOCK_BYTES, "step block"),
            (self.arena, self.arena_bytes, "arena"),
            (self.workspace, self.workspace_bytes, "workspace"),
        ] {
            self.gpu.describe(at, bytes, label);
        }
        for (number, slot) in
            self.state.slots.into_iter().enumerate().filter(|(_, slot)| *slot != Address::NULL)
        {
            self.gpu.describe(slot, 4 * trainable, &format!("optimiser's slot {number}"));
        }
    }

    /// Where a tensor lies.
    pub fn tensor(&self, tensor: Tensor) -> Address {
        match self.offsets.get(tensor.id as usize) {
            Some(Some(offset)) => self.arena.offset(*offset),
            _ => panic!("tensor {} is not in the bound plan", tensor.id),
        }
    }

    /// Where a tensor lies, or null for none.
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

    /// The gradient of a parameter, fp32, to be added to.
    pub fn gradient(&self, param: Param) -> Address {
        self.state.gradients.offset(param.offset * 4)
    }

    /// A running statistic as this step leaves it.
    pub fn running(&self, param: Param) -> Address {
        self.state.running.offset((param.offset - self.state.trainable) * 4)
    }

    /// The workspace, cut into pieces of the given bytes (each rounded up to [`ALIGNMENT`]).
    pub fn workspace<const N: usize>(&self, bytes: [usize; N]) -> [Address; N] {
        let need = workspace_bytes(&bytes);
        assert!(need <= self.workspace_bytes, "a pass takes {need} bytes of workspace that it did not plan");
        let mut offset = 0;
        bytes.map(|bytes| {
            let start = offset;
            offset += bytes.next_multiple_of(ALIGNMENT);
            self.workspace.offset(start)
        })
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
        // SAFETY: `arguments` is a value of the type that `fields` describes. Its addresses are this context's:
        // launchers take them from the methods above, within the bounds that the pass declares.
        unsafe { self.gpu.launch(&launch, (&raw const arguments).cast::<c_void>()) }?;
        if let (Some(began), Some(Timing { sums, pass, .. })) = (began, &mut self.profile) {
            let ended = self.gpu.mark()?;
            let pass = pass.map_or("other", |(name, _)| name);
            sums.add_kernel(pass, &self.name, self.gpu.elapsed(began, ended)?);
        }
        Ok(())
    }

    /// Begins a pass, for the profile.
    pub fn begin_pass(&mut self, name: &'static str) -> Result {
        if let Some(timing) = &mut self.profile {
            timing.pass = Some((name, self.gpu.mark()?));
        }
        Ok(())
    }

    /// Ends a pass, for the profile.
    pub fn end_pass(&mut self, pass: &Pass) -> Result {
        if let Some(timing) = &mut self.profile
            && let Some((_, began)) = timing.pass.take()
        {
            let ended = self.gpu.mark()?;
            let microseconds = self.gpu.elapsed(began, ended)?;
            timing.sums.add(pass, &super::CudaDevice { precision: self.precision }, microseconds);
        }
        Ok(())
    }
}

/// Bytes that [`Context::workspace`] takes for these pieces.
pub fn workspace_bytes(bytes: &[usize]) -> usize {
    bytes.iter().map(|b| b.next_multiple_of(ALIGNMENT)).sum()
}
