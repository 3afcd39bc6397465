//! What a run needs of memory, against what there is.

use std::fmt;
use std::fs;
use std::path::Path;

use super::device::Hardware;
use super::recipe::{Recipe, RecipeError};
use crate::model::{Architecture, ParamTable};
use crate::network::{Network, NetworkConfig};
use crate::ops::{Device, Kind, Plan};
use crate::parallel::World;
use crate::pixels::raw_batch_bytes;

/// Batches that exist beside the one in use: see [`crate::data::loader`].
pub const LOADER_AHEAD: usize = 3;

/// Device memory left to NCCL, whose buffers grow with the ranks of a machine. A guess on the safe side: none was
/// measured.
const NCCL: u64 = 512 << 20;

/// Bytes of a training run, part by part.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    pub micro_batch: usize,
    /// Images that this process has of a step.
    pub batch_size: usize,
    /// Activations and gradients in flight, sharing one arena.
    pub arena: u64,
    /// Of those, what the forward pass keeps for the backward pass.
    pub saved: u64,
    pub workspace: u64,
    pub weights: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub ema: u64,
    /// A copy of all state while a checkpoint is written.
    pub checkpoint: u64,
    /// Images prepared ahead.
    pub images: u64,
    /// What the system would give; none where it does not say.
    pub available: Option<u64>,
    /// The largest micro-batch whose plan fits; none where that is unknown, 0 where nothing fits.
    pub largest: Option<usize>,
}

/// A batch that does not fit.
#[derive(Debug, thiserror::Error, PartialEq)]
#[error("--micro-batch {micro_batch} needs {} of memory, {} are available; {}", bytes(*need), bytes(*have),
    advice(*fits))]
pub struct MemoryError {
    pub micro_batch: usize,
    pub need: u64,
    pub have: u64,
    /// Largest divisor of the batch that fits.
    pub fits: Option<usize>,
}

fn advice(fits: Option<usize>) -> String {
    match fits {
        Some(images) => format!("--micro-batch {images} fits"),
        None => "nothing fits: take a smaller --resolution or --model".into(),
    }
}

impl MemoryPlan {
    pub fn total(&self) -> u64 {
        let state = self.weights + self.gradients + self.optimizer + self.ema;
        self.arena + self.workspace + state + self.checkpoint + self.images
    }

    /// # Errors
    /// [`MemoryError`] where the plan needs more than there is.
    pub fn check(&self) -> Result<(), MemoryError> {
        let (need, micro_batch) = (self.total(), self.micro_batch);
        match self.available {
            Some(have) if need > have => {
                let largest = self.largest.unwrap_or(0).min(self.batch_size);
                let fits = (1..=largest).rev().find(|images| self.batch_size.is_multiple_of(*images));
                Err(MemoryError { micro_batch, need, have, fits })
            }
            _ => Ok(()),
        }
    }
}

/// Plans a run of this recipe over data of this many classes, for one of the ranks of `world`. Ranks of one machine
/// divide its memory.
///
/// # Errors
/// A recipe that makes no network.
pub fn memory_plan<H: Hardware>(
    recipe: &Recipe,
    classes: usize,
    hardware: &mut H,
    world: World,
) -> Result<MemoryPlan, RecipeError> {
    recipe.validate()?;
    let arch = recipe.architecture(classes)?;
    let table = ParamTable::new(&arch);
    let own_memory = hardware.has_own_memory();
    let available = hardware.available().map(|bytes| match own_memory {
        true if world.size > 1 => bytes.saturating_sub(NCCL),
        true => bytes,
        false => bytes / world.local_size as u64,
    });
    let recipe = &Recipe { batch_size: recipe.batch_size / world.size, ..recipe.clone() };
    Ok(with_available(recipe, &arch, &table, &hardware.device(), own_memory, available))
}

fn with_available(
    recipe: &Recipe,
    arch: &Architecture,
    table: &ParamTable,
    device: &impl Device,
    own_memory: bool,
    available: Option<u64>,
) -> MemoryPlan {
    let (trainable, total) = (table.trainable() as u64 * 4, table.total() as u64 * 4);
    // A GPU has room for the moving average also where none is kept; the loader's batches and a checkpoint stay on
    // the host.
    let ema = if recipe.ema > 0.0 || own_memory { total } else { 0 };
    let area = (recipe.resolution * recipe.resolution * 3) as u64;
    let plan = training_plan(recipe, arch, table, device, recipe.micro_batch);
    let (weights, checkpoint, images) = if own_memory {
        (gpu_weights(&plan, table, device), 0, gpu_batches(device, recipe.micro_batch, recipe.resolution))
    } else {
        (total, total + ema + 2 * trainable, (1 + LOADER_AHEAD) as u64 * recipe.batch_size as u64 * area)
    };
    let mut plan = MemoryPlan {
        micro_batch: recipe.micro_batch,
        batch_size: recipe.batch_size,
        arena: plan.tensor_bytes as u64,
        saved: plan.saved_bytes as u64,
        workspace: plan.workspace_bytes() as u64,
        weights,
        gradients: trainable,
        optimizer: 2 * trainable,
        ema,
        checkpoint,
        images,
        available,
        largest: None,
    };
    if let Some(available) = available {
        let by_image = if own_memory { plan.images / plan.micro_batch as u64 } else { 0 };
        let fixed = plan.total() - plan.arena - plan.workspace - by_image * plan.micro_batch as u64;
        plan.largest = Some(largest(available.saturating_sub(fixed), |images| {
            let plan = training_plan(recipe, arch, table, device, images);
            (plan.tensor_bytes + plan.workspace_bytes()) as u64 + by_image * images as u64
        }));
    }
    plan
}

/// Weights on a GPU: in fp32, the pointwise ones in the activations' type too, and the running statistics of the step
/// under way.
fn gpu_weights(plan: &Plan, table: &ParamTable, device: &impl Device) -> u64 {
    let stored: usize = plan.products.iter().map(|weight| weight.elements).sum();
    (4 * (2 * table.total() - table.trainable()) + stored * device.element_bytes(Kind::Activation)) as u64
}

/// Two batches on their way to a GPU in bytes, as large as raw ones may be, with their labels.
fn gpu_batches(device: &impl Device, images: usize, resolution: usize) -> u64 {
    let image = match device.prepares_images() {
        true => raw_batch_bytes(1, resolution),
        false => resolution * resolution * 3,
    };
    (2 * images * (image + 4)) as u64
}

/// Bytes of an evaluation by `plan` in passes of `images`, on a device with memory of its own or beside what is already
/// on the host.
pub fn evaluation_need(
    plan: &Plan,
    table: &ParamTable,
    device: &impl Device,
    own_memory: bool,
    (images, resolution): (usize, usize),
) -> u64 {
    let passes = (plan.tensor_bytes + plan.workspace_bytes()) as u64;
    if !own_memory {
        return passes;
    }
    // Room for the moving average, the gradients and the optimiser is there whether it trains or not.
    let state = (4 * (table.total() + 3 * table.trainable())) as u64;
    passes + state + gpu_weights(plan, table, device) + gpu_batches(device, images, resolution)
}

fn training_plan(
    recipe: &Recipe,
    arch: &Architecture,
    table: &ParamTable,
    device: &impl Device,
    images: usize,
) -> Plan {
    let config = NetworkConfig { images, ..recipe.network_config(1) };
    Network::new(arch, table, config).plan(device)
}

/// The largest number of images whose `need` is at most `room`, by doubling and halving; 0 if none.
fn largest(room: u64, need: impl Fn(usize) -> u64) -> usize {
    const MOST: usize = 1 << 16;
    let (mut fits, mut fails) = (0, MOST + 1);
    let mut next = 1;
    while fails - fits > 1 {
        if need(next) <= room {
            fits = next
        } else {
            fails = next
        }
        next = if fails > MOST { (fits * 2).min(MOST) } else { (fits + fails) / 2 };
        if fits == MOST {
            break;
        }
    }
    fits
}

/// Bytes that this process could still take: what the kernel calls available, within the limit of its control
/// group.
pub fn available() -> Option<u64> {
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_available(&text));
    let group = group_room();
    match (memory, group) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What the limits of the control group and of those above it leave (version 2, then version 1).
fn group_room() -> Option<u64> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let room = |dir: &Path, limit: &str, used: &str| {
        Some(number(&dir.join(limit))?.saturating_sub(number(&dir.join(used))?))
    };
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mut least = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, used) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            list if list.split(',').any(|c| c == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let own = Path::new(root).join(path.trim_start_matches('/'));
        let above = own.ancestors().take_while(|dir| dir.starts_with(root));
        least = above.filter_map(|dir| room(dir, limit, used)).chain(least).min();
    }
    least
}

/// "3.2 GiB".
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("activations and gradients in flight", self.arena),
            ("  of which saved for the backward pass", self.saved),
            ("workspace of the passes", self.workspace),
            ("weights and running statistics", self.weights),
            ("gradients of the weights", self.gradients),
            ("optimiser", self.optimizer),
            ("moving average", self.ema),
            ("copy while saving", self.checkpoint),
            ("images prepared ahead", self.images),
            ("total", self.total()),
        ];
        writeln!(f, "memory plan, {} images a pass (batch {})", self.micro_batch, self.batch_size)?;
        for (what, count) in rows {
            writeln!(f, "  {what:<40} {:>12}", bytes(count))?;
        }
        match self.available {
            Some(available) => writeln!(f, "  {:<40} {:>12}", "available", bytes(available))?,
            None => writeln!(f, "  {:<40} {:>12}", "available", "unknown")?,
        }
        match self.largest {
            Some(images) => write!(f, "  {:<40} {images:>12}", "largest micro-batch that fits"),
            None => write!(f, "  {:<40} {:>12}", "largest micro-batch that fits", "unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Variant;
    use crate::ops::cpu::CpuDevice;
    use crate::ops::cuda::{CudaDevice, Precision};

    fn plan(micro_batch: usize, available: u64) -> MemoryPlan {
        let mut recipe = Recipe::reference(Variant::B0, 96);
        (recipe.resolution, recipe.micro_batch) = (32, micro_batch);
        let arch = recipe.architecture(10).unwrap();
        let table = ParamTable::new(&arch);
        with_available(&recipe, &arch, &table, &CpuDevice { threads: 2 }, false, Some(available))
    }

    #[test]
    fn what_fits_is_found_exactly() {
        for limit in [1, 7, 64, 1000, 1 << 16] {
            assert_eq!(largest(limit, |images| images as u64), limit as usize);
        }
        assert_eq!(largest(0, |images| images as u64), 0);
        assert_eq!(largest(u64::MAX, |images| images as u64), 1 << 16);
    }

    #[test]
    fn too_large_a_batch_is_refused_with_what_fits() {
        let whole = plan(96, u64::MAX);
        assert_eq!(whole.check(), Ok(()));
        let room = whole.total() - whole.arena / 4;
        let tight = plan(96, room);
        let error = tight.check().unwrap_err();
        assert_eq!((error.need, error.have), (whole.total(), room));
        let fits = error.fits.unwrap();
        assert!(96 % fits == 0 && (32..96).contains(&fits), "{fits}");
        assert_eq!(plan(fits, room).check(), Ok(()));
        let largest = tight.largest.unwrap();
        assert_eq!(plan(largest, room).check(), Ok(()));
        assert!(plan(largest + 1, room).check().is_err());
        let line = error.to_string();
        assert!(line.contains("MiB") && line.contains(&format!("--micro-batch {fits} fits")), "{line}");
        assert!(plan(1, 1000).check().unwrap_err().to_string().contains("smaller --resolution"));
        assert!(tight.to_string().lines().count() == 13, "{tight}");
    }

    /// The published reference trains with 512 images a GPU of 10 GB: so does this.
    #[test]
    fn b0_with_512_images_fits_a_gpu_of_ten_gigabytes() {
        let recipe = Recipe { ema: 0.9999, micro_batch: 512, ..Recipe::reference(Variant::B0, 512) };
        assert_eq!(recipe.resolution, 224);
        let arch = recipe.architecture(1000).unwrap();
        let table = ParamTable::new(&arch);
        let device = CudaDevice { precision: Precision::Fp16 };
        let plan = with_available(&recipe, &arch, &table, &device, true, Some(9_500_000_000));
        println!("{plan}");
        assert!(plan.total() < 9_500_000_000, "{plan}");
        assert_eq!(plan.check(), Ok(()));
    }

    #[test]
    fn the_kernel_s_figures_are_read() {
        let text = "MemTotal:  8000 kB\nMemAvailable:    1234 kB\n";
        assert_eq!(mem_available(text), Some(1234 * 1024));
        assert_eq!(mem_available("MemTotal: 1 kB"), None);
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
    }
}
