//! What computes, and why: the CPU or a GPU, each as a [`Hardware`] that the loop and the evaluator are generic
//! over.

use std::sync::Arc;

use crate::data::Form;
use crate::ops::cpu::{CpuDevice, CpuOps, simd};
use crate::ops::cuda::driver::{self, Driver};
use crate::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use crate::ops::{Device, Ops, OpsError, Plan, Result as OpsResult};
use crate::parallel::nccl::ranks_may_share_gpus;
use crate::parallel::{Group, Ranks, World};
use crate::processors;

use super::memory;
use super::recipe::{DeviceChoice, RunOptions};

/// What the operators are made ready for: elements of the state, trainable and in all, the plans to be bound, and the
/// ranks that share the work.
pub struct Needs<'a> {
    pub trainable: usize,
    pub total: usize,
    pub plans: &'a [&'a Plan],
    pub group: Option<&'a Arc<Group>>,
}

/// What the loader makes for a device whose passes take `images` each.
pub fn form(device: &impl Device, images: usize) -> Form {
    if device.prepares_images() { Form::Raw { images } } else { Form::Squares }
}

/// Something that computes, not yet made ready for a network.
pub trait Hardware {
    type Device: Device;
    type Ops: Ops + Send;

    /// What the planner asks.
    fn device(&self) -> Self::Device;
    /// One line: which, and why.
    fn line(&self) -> String;
    /// Threads that compute.
    fn threads(&self) -> usize {
        1
    }
    /// Bytes that the plan may take; none where that is unknown.
    fn available(&mut self) -> Option<u64>;
    /// The processors near it, for threads that prepare its images; empty where all are, or the machine does not tell.
    fn processors(&self) -> Vec<usize> {
        Vec::new()
    }
    /// Whether its memory is not the host's, so that the loader and a checkpoint take none of it.
    fn has_own_memory(&self) -> bool;
    /// # Errors
    /// Where memory or threads are not there.
    fn start(self, needs: &Needs) -> OpsResult<Self::Ops>;
}

/// All cores, or some.
#[derive(Clone, Debug)]
pub struct Cpu {
    pub device: CpuDevice,
    why: String,
}

impl Cpu {
    /// `threads` 0 is one a core.
    pub fn new(threads: usize, why: impl Into<String>) -> Cpu {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = if threads == 0 { cores } else { threads };
        Cpu { device: CpuDevice { threads }, why: why.into() }
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
        format!("device: cpu, {threads} thread{plural}, {} ({})", simd::level().name(), self.why)
    }
    fn threads(&self) -> usize {
        self.device.threads
    }
    fn available(&mut self) -> Option<u64> {
        memory::available()
    }
    fn has_own_memory(&self) -> bool {
        false
    }
    fn start(self, needs: &Needs) -> OpsResult<CpuOps> {
        let mut ops = CpuOps::new(needs.trainable, needs.total, needs.plans, self.device.threads)?;
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
    why: String,
}

impl<G: Gpu> Cuda<G> {
    pub fn new(gpu: G, precision: Precision, why: impl Into<String>) -> Cuda<G> {
        Cuda { gpu, precision, why: why.into() }
    }
}

impl<G: Gpu> Hardware for Cuda<G> {
    type Device = CudaDevice;
    type Ops = CudaOps<G>;

    fn device(&self) -> CudaDevice {
        CudaDevice { precision: self.precision }
    }
    fn line(&self) -> String {
        let properties = self.gpu.properties();
        let (name, (major, minor)) = (&properties.name, properties.capability);
        format!("device: cuda, {name} ({major}.{minor}), {} ({})", self.precision, self.why)
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
    fn start(self, needs: &Needs) -> OpsResult<CudaOps<G>> {
        let mut ops = CudaOps::new(self.gpu, needs.trainable, needs.total, needs.plans, self.precision)?;
        if let Some(group) = needs.group {
            ops.connect(group)?;
        }
        Ok(ops)
    }
}

/// A device that cannot be had.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DeviceError {
    #[error("--device cuda: {0}; or leave the flag out, or use --device cpu")]
    NoCuda(String),
    #[error(
        "{ranks} ranks of this machine for its {gpus} GPU{}: start no more ranks than it has, or use --device cpu",
        if *gpus == 1 { "" } else { "s" }
    )]
    Ranks { ranks: usize, gpus: usize },
    #[error("--precision {0}: the CPU computes in fp32; leave the flag out, or use --device cuda")]
    Precision(Precision),
}

/// The device taken.
#[allow(clippy::large_enum_variant, reason = "a program has one")]
pub enum Selected {
    Cpu(Cpu),
    Cuda(Box<Cuda<Driver>>),
}

/// What is done with a device of either kind.
pub trait With {
    type Output;
    fn with<H: Hardware>(self, hardware: H) -> Self::Output;
}

impl Selected {
    /// Hands the device over.
    pub fn with<W: With>(self, what: W) -> W::Output {
        match self {
            Selected::Cpu(cpu) => what.with(cpu),
            Selected::Cuda(cuda) => what.with(*cuda),
        }
    }
}

/// Takes the device of this rank: the GPU of its number on its machine, or, on the CPU, its share of the cores unless
/// the threads are given.
///
/// # Errors
/// As [`select`]; [`DeviceError::Ranks`] where there are more ranks than GPUs.
pub fn select_for(options: &RunOptions) -> Result<Selected, DeviceError> {
    let world = options.ranks.world();
    let threads = match options.threads {
        0 => share_of_cores(world),
        threads => threads,
    };
    let pinned = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some_and(|value| !value.is_empty());
    let index = match (options.device, &options.ranks) {
        (DeviceChoice::Auto | DeviceChoice::Cuda, Ranks::Given(_)) if world.local_size > 1 => match gpus() {
            Ok(gpus) => gpu_of(world, gpus, pinned, ranks_may_share_gpus())?,
            // What is missing is told, or the CPU taken, where the first is opened.
            Err(_) => 0,
        },
        _ => 0,
    };
    select_at(options.device, index, threads, options.precision)
}

/// Cores for each rank of a machine, at least one.
fn share_of_cores(world: World) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    (cores / world.local_size.max(1)).max(1)
}

/// The number of a rank's GPU. `pinned` says that CUDA_VISIBLE_DEVICES is set: launchers that leave each rank one GPU
/// of its own set it, and the one is number 0 in every rank.
fn gpu_of(world: World, gpus: usize, pinned: bool, share: bool) -> Result<usize, DeviceError> {
    match gpus {
        _ if world.local_size <= gpus => Ok(world.local_rank),
        1 if pinned => Ok(0),
        1.. if share => Ok(world.local_rank % gpus),
        _ => Err(DeviceError::Ranks { ranks: world.local_size, gpus }),
    }
}

/// Takes a device, the first where it is a GPU; `threads` 0 is one a core; without a precision a GPU takes fp16, with dynamic loss scaling.
///
/// # Errors
/// [`DeviceError`] for a device that this build or machine does not have.
pub fn select(
    choice: DeviceChoice,
    threads: usize,
    precision: Option<Precision>,
) -> Result<Selected, DeviceError> {
    select_at(choice, 0, threads, precision)
}

fn select_at(
    choice: DeviceChoice,
    index: usize,
    threads: usize,
    precision: Option<Precision>,
) -> Result<Selected, DeviceError> {
    let cpu = |why: String| match precision {
        Some(precision) if precision != Precision::Fp32 => Err(DeviceError::Precision(precision)),
        _ => Ok(Selected::Cpu(Cpu::new(threads, why))),
    };
    let cuda = |gpu, why: &str| {
        Ok(Selected::Cuda(Box::new(Cuda::new(gpu, precision.unwrap_or(Precision::Fp16), why))))
    };
    match (choice, (choice != DeviceChoice::Cpu).then(|| Driver::open(index))) {
        (DeviceChoice::Cpu, _) | (_, None) => cpu("as asked".into()),
        (DeviceChoice::Cuda, Some(Ok(gpu))) => cuda(gpu, "as asked"),
        (DeviceChoice::Auto, Some(Ok(gpu))) => cuda(gpu, "found"),
        (DeviceChoice::Cuda, Some(Err(error))) => Err(DeviceError::NoCuda(error.to_string())),
        (DeviceChoice::Auto, Some(Err(error))) => cpu(brief(&error)),
    }
}

/// Why `auto` did not take a GPU, without the remedy.
fn brief(error: &OpsError) -> String {
    let text = error.to_string();
    text.split(';').next().unwrap_or(&text).to_string()
}

/// GPUs of this machine, for messages.
pub fn gpus() -> Result<usize, OpsError> {
    driver::count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_says_why_and_what_is_missing_is_refused() {
        match select(DeviceChoice::Auto, 0, None).unwrap() {
            Selected::Cpu(cpu) => {
                let line = cpu.line();
                assert!(
                    cpu.threads() >= 1 && line.starts_with("device: cpu") && line.ends_with(')'),
                    "{line}"
                );
            }
            Selected::Cuda(_) => assert!(Driver::open(0).is_ok()),
        }
        let Ok(Selected::Cpu(cpu)) = select(DeviceChoice::Cpu, 3, None) else { panic!("the CPU is there") };
        assert_eq!(cpu.device.threads, 3);
        let refused = select(DeviceChoice::Cpu, 0, Some(Precision::Fp16)).err();
        assert_eq!(refused, Some(DeviceError::Precision(Precision::Fp16)));
        if Driver::open(0).is_err() {
            let error = select(DeviceChoice::Cuda, 0, None).err().unwrap().to_string();
            assert!(error.starts_with("--device cuda: ") && error.contains("--device cpu"), "{error}");
        }
    }
    #[test]
    fn a_rank_takes_the_gpu_of_its_number() {
        let world =
            |local_rank, local_size| World { rank: local_rank, size: local_size, local_rank, local_size };
        assert_eq!(gpu_of(world(3, 4), 4, false, false), Ok(3));
        assert_eq!(gpu_of(world(3, 4), 8, true, false), Ok(3));
        assert_eq!(gpu_of(world(3, 4), 1, true, false), Ok(0));
        assert_eq!(gpu_of(world(3, 4), 2, false, true), Ok(1));
        let error = gpu_of(world(3, 4), 1, false, false).unwrap_err().to_string();
        assert!(
            error.contains("4 ranks") && error.contains("1 GPU:") && error.contains("--device cpu"),
            "{error}"
        );
        assert!(gpu_of(world(3, 4), 2, true, false).is_err() && gpu_of(world(0, 2), 0, true, true).is_err());
    }

    #[test]
    fn ranks_of_a_machine_share_its_cores() {
        let cores = std::thread::available_parallelism().unwrap().get();
        let world = |local_size| World { size: local_size, local_size, ..World::ALONE };
        assert_eq!(share_of_cores(world(1)), cores);
        assert_eq!(share_of_cores(world(2)), (cores / 2).max(1));
        assert_eq!(share_of_cores(world(cores + 1)), 1);
    }
}
