//! Which device a process computes on.

use std::env;

use super::{Cpu, Cuda, Hardware};
use crate::ops::OpsError;
use crate::ops::cpu::CpuDevice;
use crate::ops::cuda::driver::Driver;
use crate::ops::cuda::embedded::EMBEDDED;
use crate::ops::cuda::usable;
use crate::ops::cuda::{Gpu, Precision};
use crate::parallel::nccl::ranks_may_share_gpus;
use crate::parallel::{Ranks, World};
use crate::train::options::{DeviceChoice, RecomputeChoice, RunOptions};

/// A device that is not available.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum DeviceError {
    #[error("--device cuda: {0}; or leave the flag out, or use --device cpu")]
    NoCuda(String),
    #[error(
        "{ranks} ranks of this machine for its {gpus} GPU{}: start no more ranks than it has, or use --device cpu",
        if *gpus == 1 { "" } else { "s" }
    )]
    Ranks { ranks: usize, gpus: usize },
    #[error("--precision {0}: the CPU computes in fp32 and bf16; use one of these, or --device cuda")]
    Precision(Precision),
    #[error("--recompute on: {0}; use --recompute auto")]
    Recompute(&'static str),
}

/// How a device stores activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storage {
    /// None means fp16 with dynamic loss scaling on a GPU, fp32 on the CPU.
    pub precision: Option<Precision>,
    pub recompute: RecomputeChoice,
}

/// The device chosen.
#[allow(clippy::large_enum_variant, reason = "a program has one")]
pub enum Selected {
    Cpu(Cpu),
    Cuda(Box<Cuda<Driver>>),
}

/// A task that runs on a device of either kind.
pub trait With {
    type Output;
    fn with<H: Hardware>(self, hardware: H) -> Self::Output;
}

impl Selected {
    /// Runs the task on the device.
    pub fn with<W: With>(self, task: W) -> W::Output {
        match self {
            Selected::Cpu(cpu) => task.with(cpu),
            Selected::Cuda(cuda) => task.with(*cuda),
        }
    }
}

/// Chooses the device of this rank: on GPUs the one with the rank's number on its machine, on the CPU an equal share of
/// the cores unless the options give the threads.
///
/// # Errors
/// As [`select`]; [`DeviceError::Ranks`] if there are more ranks than GPUs.
pub fn select_for(options: &RunOptions) -> Result<Selected, DeviceError> {
    let world = options.ranks.world();
    let threads = match options.threads {
        0 => share_of_cores(world),
        threads => threads,
    };
    select_at(options.device, gpu_for(options)?, threads, storage(options))
}

/// What [`select_for`] refuses, for a process that does not compute itself.
///
/// # Errors
/// As [`select_for`].
pub fn check_for(options: &RunOptions) -> Result<(), DeviceError> {
    let gpu = match options.device {
        DeviceChoice::Cpu => None,
        _ => Some(usable::check(gpu_for(options)?)),
    };
    match gpu {
        Some(Err(error)) if options.device == DeviceChoice::Cuda => {
            Err(DeviceError::NoCuda(error.to_string()))
        }
        Some(Ok(())) => gpu_stores(storage(options)),
        _ => cpu_stores(storage(options)),
    }
}

fn storage(options: &RunOptions) -> Storage {
    Storage { precision: options.precision, recompute: options.recompute }
}

/// The number of this rank's GPU, if there is one.
fn gpu_for(options: &RunOptions) -> Result<usize, DeviceError> {
    let world = options.ranks.world();
    let several = matches!(options.ranks, Ranks::Given(_)) && world.local_size > 1;
    // Without a usable GPU, opening the first one reports the reason.
    if several
        && options.device != DeviceChoice::Cpu
        && let Ok(gpus) = gpus()
    {
        let pinned = env::var_os("CUDA_VISIBLE_DEVICES").is_some_and(|value| !value.is_empty());
        return gpu_of(world, gpus, pinned, ranks_may_share_gpus());
    }
    Ok(0)
}

fn cpu_stores(storage: Storage) -> Result<(), DeviceError> {
    match storage {
        Storage { precision: Some(precision), .. } if !CpuDevice::PRECISIONS.contains(&precision) => {
            Err(DeviceError::Precision(precision))
        }
        Storage { recompute: RecomputeChoice::On, .. } => {
            Err(DeviceError::Recompute("the CPU stores expanded tensors"))
        }
        _ => Ok(()),
    }
}

fn gpu_stores(storage: Storage) -> Result<(), DeviceError> {
    match storage {
        Storage { precision: Some(Precision::Fp32), recompute: RecomputeChoice::On } => {
            Err(DeviceError::Recompute("a GPU computes them again in fp16 and bf16, not in fp32"))
        }
        _ => Ok(()),
    }
}

/// Cores for each rank of a machine, at least one.
fn share_of_cores(world: World) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    (cores / world.local_size.max(1)).max(1)
}

/// The number of a rank's GPU. `pinned` means that CUDA_VISIBLE_DEVICES is set: some launchers use it to give each rank
/// one GPU, which then has the number 0 in every rank.
fn gpu_of(world: World, gpus: usize, pinned: bool, share: bool) -> Result<usize, DeviceError> {
    match gpus {
        _ if world.local_size <= gpus => Ok(world.local_rank),
        1 if pinned => Ok(0),
        1.. if share => Ok(world.local_rank % gpus),
        _ => Err(DeviceError::Ranks { ranks: world.local_size, gpus }),
    }
}

/// Chooses a device, the first one if it is a GPU. `threads` 0 means one for each core.
///
/// # Errors
/// [`DeviceError`] for a device that this build or machine does not have.
pub fn select(choice: DeviceChoice, threads: usize, storage: Storage) -> Result<Selected, DeviceError> {
    select_at(choice, 0, threads, storage)
}

fn select_at(
    choice: DeviceChoice,
    index: usize,
    threads: usize,
    storage: Storage,
) -> Result<Selected, DeviceError> {
    let cpu = |why: String| {
        cpu_stores(storage)?;
        Ok(Selected::Cpu(Cpu::new(threads, why).with_precision(storage.precision)))
    };
    let cuda = |gpu: Driver, why: &str| {
        let (major, minor) = gpu.properties().capability;
        let image = EMBEDDED.as_ref().ok().and_then(|kernels| kernels.image_for(major * 10 + minor));
        gpu_stores(storage)?;
        let cuda = Cuda::new(gpu, storage.precision.unwrap_or(Precision::Fp16), why);
        Ok(Selected::Cuda(Box::new(cuda.with_recompute(storage.recompute).with_image(image))))
    };
    if choice == DeviceChoice::Cpu {
        return cpu("as asked".into());
    }
    match Driver::open(index) {
        Ok(gpu) if choice == DeviceChoice::Cuda => cuda(gpu, "as asked"),
        Ok(gpu) => cuda(gpu, "found"),
        Err(error) if choice == DeviceChoice::Cuda => Err(DeviceError::NoCuda(error.to_string())),
        Err(error) => cpu(brief(&error)),
    }
}

/// Why `auto` did not choose a GPU, without the remedy.
fn brief(error: &OpsError) -> String {
    let text = error.to_string();
    text.split(';').next().unwrap_or(&text).to_string()
}

/// GPUs of this machine, for messages.
pub fn gpus() -> Result<usize, OpsError> {
    usable::count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_says_why_and_refuses_what_is_missing() {
        match select(DeviceChoice::Auto, 0, Storage::default()).unwrap() {
            Selected::Cpu(cpu) => {
                let line = cpu.line();
                assert!(
                    cpu.threads() >= 1 && line.starts_with("device: cpu") && line.ends_with(')'),
                    "{line}"
                );
            }
            Selected::Cuda(_) => assert!(Driver::open(0).is_ok()),
        }
        let Ok(Selected::Cpu(cpu)) = select(DeviceChoice::Cpu, 3, Storage::default()) else {
            panic!("the CPU is there")
        };
        assert_eq!(cpu.device.threads, 3);
        let half = Storage { precision: Some(Precision::Fp16), ..Storage::default() };
        assert_eq!(select(DeviceChoice::Cpu, 0, half).err(), Some(DeviceError::Precision(Precision::Fp16)));
        let bf16 = Storage { precision: Some(Precision::Bf16), ..Storage::default() };
        let Ok(Selected::Cpu(cpu)) = select(DeviceChoice::Cpu, 3, bf16) else { panic!("the CPU has bf16") };
        assert!(cpu.device.precision() == Precision::Bf16 && cpu.line().ends_with(", bf16 (as asked)"));
        let again = Storage { recompute: RecomputeChoice::On, ..Storage::default() };
        let refused = select(DeviceChoice::Cpu, 0, again).err().unwrap().to_string();
        assert_eq!(refused, "--recompute on: the CPU stores expanded tensors; use --recompute auto");
        let fp32 = Storage { precision: Some(Precision::Fp32), ..again };
        assert!(gpu_stores(again).is_ok() && gpu_stores(fp32).is_err());
        if Driver::open(0).is_err() {
            let error = select(DeviceChoice::Cuda, 0, Storage::default()).err().unwrap().to_string();
            assert!(error.starts_with("--device cuda: ") && error.contains("--device cpu"), "{error}");
        }
    }

    #[test]
    fn gpu_of_a_rank_has_the_rank_s_number() {
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
    fn cores_are_shared_by_the_ranks_of_a_machine() {
        let cores = std::thread::available_parallelism().unwrap().get();
        let world = |local_size| World { size: local_size, local_size, ..World::ALONE };
        assert_eq!(share_of_cores(world(1)), cores);
        assert_eq!(share_of_cores(world(2)), (cores / 2).max(1));
        assert_eq!(share_of_cores(world(cores + 1)), 1);
    }
}
