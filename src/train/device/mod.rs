//! The device that computes: the CPU or a GPU. Each is a [`Hardware`]; the loop and the evaluator are generic over it.

mod host_memory;
mod select;

use std::sync::Arc;

pub use host_memory::available as host_memory;
pub use select::{DeviceError, Selected, Storage, With, check_for, gpus, select, select_for};

use crate::data::Form;
use crate::ops::cpu::{CpuDevice, CpuOps, simd};
use crate::ops::cuda::embedded::Image;
use crate::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision, expand_depthwise};
use crate::ops::{Device, Ops, Plan, Result as OpsResult, StateSize};
use crate::parallel::Group;
use crate::processors;
use crate::train::options::RecomputeChoice;

/// What the operators must be prepared for.
pub struct Needs<'a> {
    /// Elements of the state: trainable, and in all.
    pub state: StateSize,
    /// The plans that will be bound.
    pub plans: &'a [&'a Plan],
    /// The ranks that share the work.
    pub group: Option<&'a Arc<Group>>,
}

/// The form in which the loader makes images for a device whose passes take `images` each.
pub fn form(device: &impl Device, images: usize) -> Form {
    if device.prepares_images() { Form::Raw { images } } else { Form::Squares }
}

/// A device that is not yet prepared for a network.
pub trait Hardware {
    type Device: Device;
    type Ops: Ops;

    /// The properties that the planner needs.
    fn device(&self) -> Self::Device;
    /// One line: which device, and why it was chosen.
    fn line(&self) -> String;
    /// Threads that compute.
    fn threads(&self) -> usize {
        1
    }
    /// Bytes that the plan may take; none if unknown.
    fn available(&mut self) -> Option<u64>;
    /// The processors near the device, for the threads that prepare its images. Empty if all are equally near or the
    /// machine does not say.
    fn processors(&self) -> Vec<usize> {
        Vec::new()
    }
    /// Whether it computes expanded tensors again.
    fn recomputes(&self) -> bool {
        false
    }
    /// The same without that.
    fn storing(self) -> Self
    where
        Self: Sized,
    {
        self
    }
    /// Whether the device has memory of its own, so that the loader and checkpoints do not use it.
    fn has_own_memory(&self) -> bool;
    /// # Errors
    /// If memory or threads are missing.
    fn start(self, needs: &Needs) -> OpsResult<Self::Ops>;
}

/// The CPU, with all cores or some.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub device: CpuDevice,
    why: String,
    /// Whether the storage type was asked for.
    asked: bool,
    /// Bytes that a plan may take at most.
    memory: Option<u64>,
}

impl Cpu {
    /// `threads` 0 means one for each core.
    pub fn new(threads: usize, why: impl Into<String>) -> Cpu {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores } else { threads };
        Cpu { device: CpuDevice::fp32(threads), why: why.into(), asked: false, memory: None }
    }

    /// The same with activations stored as asked, one of [`CpuDevice::PRECISIONS`]; none means fp32.
    pub fn with_precision(self, precision: Option<Precision>) -> Cpu {
        let device = CpuDevice::new(self.device.threads, precision.unwrap_or(Precision::Fp32));
        Cpu { device, asked: precision.is_some(), ..self }
    }

    /// The same on a machine with so much memory at most.
    pub fn with_memory(self, bytes: u64) -> Cpu {
        Cpu { memory: Some(bytes), ..self }
    }
}

impl Hardware for Cpu {
    type Device = CpuDevice;
    type Ops = CpuOps;

    fn device(&self) -> CpuDevice {
        self.device
    }
    fn line(&self) -> String {
        let threads = self.device.threads;
        let plural = if threads == 1 { "" } else { "s" };
        let precision = self.device.precision();
        let default = if self.asked { "" } else { " by default" };
        let level = simd::level().name();
        format!("device: cpu, {threads} thread{plural}, {level}, {precision}{default} ({})", self.why)
    }
    fn threads(&self) -> usize {
        self.device.threads
    }
    fn available(&mut self) -> Option<u64> {
        host_memory().into_iter().chain(self.memory).min()
    }
    fn has_own_memory(&self) -> bool {
        false
    }
    fn start(self, needs: &Needs) -> OpsResult<CpuOps> {
        let mut ops = CpuOps::new(needs.state, needs.plans, self.device)?;
        if let Some(group) = needs.group {
            ops.connect(group)?;
        }
        Ok(ops)
    }
}

/// A GPU.
pub struct Cuda<G: Gpu> {
    gpu: G,
    precision: Precision,
    recomputes: bool,
    why: String,
    /// What of the embedded kernels runs; none if the kernels are others.
    image: Option<Image>,
}

impl<G: Gpu> Cuda<G> {
    pub fn new(gpu: G, precision: Precision, why: impl Into<String>) -> Cuda<G> {
        Cuda { gpu, precision, recomputes: false, why: why.into(), image: None }
            .with_recompute(RecomputeChoice::Auto)
    }

    /// The same with expanded tensors computed again, or not; in fp32 they are always stored.
    pub fn with_recompute(self, choice: RecomputeChoice) -> Cuda<G> {
        let recomputes = match choice {
            RecomputeChoice::Auto => expand_depthwise::pays(self.gpu.properties()),
            RecomputeChoice::On => true,
            RecomputeChoice::Off => false,
        };
        Cuda { recomputes: recomputes && self.precision != Precision::Fp32, ..self }
    }

    /// The same with the image of the embedded kernels that the GPU runs, for the report.
    pub fn with_image(self, image: Option<Image>) -> Cuda<G> {
        Cuda { image, ..self }
    }
}

impl<G: Gpu> Hardware for Cuda<G> {
    type Device = CudaDevice;
    type Ops = CudaOps<G>;

    fn device(&self) -> CudaDevice {
        CudaDevice { precision: self.precision, recomputes: self.recomputes }
    }
    fn line(&self) -> String {
        let properties = self.gpu.properties();
        let (major, minor) = properties.capability;
        let image = self.image.map(|image| format!(", {image}")).unwrap_or_default();
        let card = format!("{} ({major}.{minor}{image})", properties.name);
        let waits = if self.gpu.captures() { "" } else { ", waiting after each kernel" };
        let again = if self.recomputes { ", recomputing" } else { "" };
        format!("device: cuda, {card}, {}{again}{waits} ({})", self.precision, self.why)
    }
    fn available(&mut self) -> Option<u64> {
        self.gpu.available().ok()
    }
    fn processors(&self) -> Vec<usize> {
        self.gpu.place().map_or_else(Vec::new, |place| processors::near(&place))
    }
    fn has_own_memory(&self) -> bool {
        true
    }
    fn recomputes(&self) -> bool {
        self.recomputes
    }
    fn storing(self) -> Self {
        Cuda { recomputes: false, ..self }
    }
    fn start(self, needs: &Needs) -> OpsResult<CudaOps<G>> {
        let mut ops = CudaOps::new(self.gpu, needs.state, needs.plans, self.precision)?;
        if let Some(group) = needs.group {
            ops.connect(group)?;
        }
        Ok(ops)
    }
}
