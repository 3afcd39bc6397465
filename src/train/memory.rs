//! The memory that a run needs, compared with the memory that is available.

use std::fmt;

use indicatif::HumanBytes;
use serde::Serialize;

use super::device::{Hardware, host_memory};
use super::division::largest_divisor;
use super::loading;
use super::recipe::Recipe;
use super::recipe_limits::RecipeError;
use crate::data::loader::HELD;
use crate::model::{Architecture, ParamTable};
use crate::network::{Network, NetworkConfig};
use crate::ops::{Device, Kind, Plan};
use crate::parallel::World;
use crate::pixels::{edited_squares_bytes, raw_batch_bytes};

/// Device memory reserved for NCCL, whose buffers grow with the ranks of a machine. A generous guess, not measured.
const NCCL: u64 = 512 << 20;

/// Memory of a GPU that is left to the driver for code and graphs, and because it gives memory out in pieces: a share of
/// what is available, and at least so much.
const LEAST_RESERVE: u64 = 256 << 20;
const RESERVE_PERCENT: u64 = 3;

/// Bytes of a training run, by purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    pub micro_batch: usize,
    /// Images of a step in this process.
    pub batch_size: usize,
    /// Activations and their gradients, in one arena.
    pub arena: u64,
    /// The part of the arena that the forward pass keeps for the backward pass.
    pub saved: u64,
    pub workspace: u64,
    pub weights: u64,
    pub gradients: u64,
    pub optimizer: u64,
    pub ema: u64,
    /// A copy of the whole state, made to write a checkpoint.
    pub checkpoint: u64,
    /// Batches in this memory: those prepared ahead, or the two that are copied to a GPU.
    pub images: u64,
    /// Left to a GPU's driver, see [`reserve`].
    pub reserve: u64,
    /// Threads that prepare images, and the bytes of their batches in the host's memory beside a GPU. The total does
    /// not contain them.
    pub loader_threads: usize,
    pub host_images: u64,
    /// What the host can give to these batches; none if unknown, or if they are in the device's memory.
    pub host_available: Option<u64>,
    /// What the system can give; none if unknown.
    pub available: Option<u64>,
    /// What a micro-batch is a multiple of.
    #[serde(skip)]
    pub least_micro_batch: usize,
    /// The largest micro-batch whose plan fits; none if unknown, 0 if nothing fits.
    #[serde(rename = "largest_micro_batch")]
    pub largest: Option<usize>,
}

/// What does not fit.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum MemoryError {
    #[error("--micro-batch {micro_batch} needs {} of memory, {} are available; {}", HumanBytes(*need),
        HumanBytes(*have), advice(*fits, *on_gpu))]
    Batch {
        micro_batch: usize,
        need: u64,
        have: u64,
        /// The largest divisor of the batch that fits.
        fits: Option<usize>,
        on_gpu: bool,
    },
    /// No division of the batch fits.
    #[error("a batch of {batch_size} images of {resolution}×{resolution} needs {} of memory even in passes of {}, {} are \
        available; {}", HumanBytes(*need), if *least == 1 { "one image" } else { "two images" }, HumanBytes(*have),
        nothing_fits(*on_gpu))]
    Nothing { batch_size: usize, least: usize, resolution: usize, need: u64, have: u64, on_gpu: bool },
    #[error("{threads} loader threads prepare {} of images beside the GPU, {} of this machine's memory are free; take \
        fewer --loader-threads or a smaller --batch-size", HumanBytes(*need), HumanBytes(*have))]
    Loader { threads: usize, need: u64, have: u64 },
}

impl MemoryError {
    /// The largest micro-batch that fits, if a smaller one does.
    pub fn fits(&self) -> Option<usize> {
        match self {
            MemoryError::Batch { fits, .. } => *fits,
            MemoryError::Nothing { .. } | MemoryError::Loader { .. } => None,
        }
    }
}

fn advice(fits: Option<usize>, on_gpu: bool) -> String {
    match fits {
        Some(images) => format!("--micro-batch {images} fits"),
        None => nothing_fits(on_gpu).into(),
    }
}

fn nothing_fits(on_gpu: bool) -> &'static str {
    if on_gpu {
        "nothing fits: close what else uses the card (nvidia-smi lists it), or take a smaller --resolution or --model"
    } else {
        // The images that are prepared ahead are in the same memory.
        "nothing fits: close other programs, or take a smaller --batch-size, --resolution or --model"
    }
}

/// Bytes that are left to the driver of a GPU with so many available.
pub fn reserve(available: u64) -> u64 {
    LEAST_RESERVE.max(available / 100 * RESERVE_PERCENT)
}

impl MemoryPlan {
    pub fn total(&self) -> u64 {
        let state = self.weights + self.gradients + self.optimizer + self.ema;
        self.arena + self.workspace + state + self.checkpoint + self.images + self.reserve
    }

    /// # Errors
    /// [`MemoryError`] if the plan needs more than is available.
    pub fn check(&self) -> Result<(), MemoryError> {
        let need = self.total();
        match self.available {
            Some(have) if need > have => {
                let largest = self.largest.unwrap_or(0).min(self.batch_size);
                let fits = largest_divisor(self.batch_size, largest, self.least_micro_batch);
                let (micro_batch, on_gpu) = (self.micro_batch, self.reserve > 0);
                return Err(MemoryError::Batch { micro_batch, need, have, fits, on_gpu });
            }
            _ => {}
        }
        match self.host_available {
            Some(have) if self.host_images > have => {
                Err(MemoryError::Loader { threads: self.loader_threads, need: self.host_images, have })
            }
            _ => Ok(()),
        }
    }
}

/// Plans a run of this recipe over data of this many classes, for one of the ranks of `world`. Ranks of one machine
/// share its memory. `loader_threads` is 0 for the default.
///
/// # Errors
/// An invalid recipe.
pub fn memory_plan<H: Hardware>(
    recipe: &Recipe,
    classes: usize,
    hardware: &mut H,
    world: World,
    loader_threads: usize,
) -> Result<MemoryPlan, RecipeError> {
    recipe.validate()?;
    let arch = recipe.architecture(classes)?;
    let table = ParamTable::new(&arch);
    let own_memory = hardware.has_own_memory();
    let available = hardware.available().map(|bytes| {
        if !own_memory {
            bytes / world.local_size as u64
        } else if world.size > 1 {
            bytes.saturating_sub(NCCL)
        } else {
            bytes
        }
    });
    let recipe = &Recipe { batch_size: recipe.batch_size / world.size, ..recipe.clone() };
    let batch_bytes = recipe.batch_size as u64 * prepared_bytes(&hardware.device(), recipe.resolution);
    let threads = loading::threads(loader_threads, hardware, world.local_size, batch_bytes);
    let plan = with_available(recipe, &arch, &table, &hardware.device(), own_memory, available, threads);
    let host_available = host_memory().filter(|_| own_memory).map(|bytes| bytes / world.local_size as u64);
    Ok(MemoryPlan { host_available, ..plan })
}

fn with_available(
    recipe: &Recipe,
    arch: &Architecture,
    table: &ParamTable,
    device: &impl Device,
    own_memory: bool,
    available: Option<u64>,
    loader_threads: usize,
) -> MemoryPlan {
    let [trainable, total] = [table.trainable(), table.total()].map(|elements| elements as u64 * 4);
    let update = recipe.update();
    let slots = update.rule.slots().len() as u64;
    let factors = u64::from(update.weight_decay.by_parameter);
    // A GPU reserves room for the moving average even if the run keeps none. The loader's batches and a checkpoint are
    // in the memory of the host.
    let ema = if recipe.ema > 0.0 || own_memory { total } else { 0 };
    let image = prepared_bytes(device, recipe.resolution);
    // A step is under way on a GPU while the next one is handed over, and batches wait in memory that it reads.
    let beside = if own_memory { 1 + HELD } else { 0 };
    let prepared = ((loading::batches(loader_threads) + beside) * recipe.batch_size) as u64 * image;
    let plan = training_plan(recipe, arch, table, device, recipe.micro_batch);
    let (arena, workspace) = passes(recipe, arch, table, device, recipe.micro_batch);
    let (weights, checkpoint, images, host_images) = if own_memory {
        let words = recipe.network_config(1).labels.words(1, 0);
        let batches = gpu_batches(device, recipe.micro_batch, recipe.resolution, words);
        let edited = edited_bytes(recipe, device);
        (gpu_weights(&plan, table, device), 0, batches + edited, prepared)
    } else {
        (total + packed_weights(&plan, device), total + ema + slots * trainable, prepared, 0)
    };
    let mut plan = MemoryPlan {
        micro_batch: recipe.micro_batch,
        batch_size: recipe.batch_size,
        arena,
        saved: plan.saved_bytes as u64,
        workspace,
        weights,
        gradients: trainable,
        optimizer: (slots + factors) * trainable,
        ema,
        checkpoint,
        images,
        reserve: if own_memory { reserve(available.unwrap_or(0)) } else { 0 },
        loader_threads,
        host_images,
        host_available: None,
        available,
        least_micro_batch: recipe.least_micro_batch(),
        largest: None,
    };
    if let Some(available) = available {
        let by_image = if own_memory { plan.images / plan.micro_batch as u64 } else { 0 };
        let fixed = plan.total() - plan.arena - plan.workspace - by_image * plan.micro_batch as u64;
        plan.largest = Some(largest(available.saturating_sub(fixed), |images| {
            let (arena, workspace) = passes(recipe, arch, table, device, images);
            arena + workspace + by_image * images as u64
        }));
    }
    plan
}

/// Weights on a GPU: in fp32, the pointwise ones also in the type of the activations, and the running statistics of the
/// current step; and what the device takes for any network.
fn gpu_weights(plan: &Plan, table: &ParamTable, device: &impl Device) -> u64 {
    (4 * (2 * table.total() - table.trainable()) + device.fixed_bytes()) as u64 + packed_weights(plan, device)
}

/// Bytes of the products' weights in a second form: in the type of the activations on a GPU, packed for evaluation on the CPU.
fn packed_weights(plan: &Plan, device: &impl Device) -> u64 {
    let elements: usize = plan.products.iter().map(|weight| weight.elements).sum();
    (elements * device.element_bytes(Kind::Activation)) as u64
}

/// Bytes of two batches that are copied to a GPU, with so many words of labels for each image.
fn gpu_batches(device: &impl Device, images: usize, resolution: usize, words: usize) -> u64 {
    2 * images as u64 * (prepared_bytes(device, resolution) + 4 * words as u64)
}

/// Bytes in which a device edits the squares of a micro-batch, if the recipe's policy edits any.
fn edited_bytes(recipe: &Recipe, device: &impl Device) -> u64 {
    let edits = device.prepares_images() && recipe.edits_images();
    (if edits { edited_squares_bytes(recipe.micro_batch, recipe.resolution) } else { 0 }) as u64
}

/// Bytes of an image as the loader prepares it. Raw images count with their largest size.
pub fn prepared_bytes(device: &impl Device, resolution: usize) -> u64 {
    let raw = device.prepares_images();
    (if raw { raw_batch_bytes(1, resolution) } else { resolution * resolution * 3 }) as u64
}

/// Bytes that an evaluation by `plan` needs in passes of `images`. On a device with its own memory this includes the
/// state, but not the [`reserve`]; on the host the state is already in memory.
pub fn evaluation_need(
    plan: &Plan,
    table: &ParamTable,
    device: &impl Device,
    own_memory: bool,
    (images, resolution): (usize, usize),
) -> u64 {
    let passes = (plan.tensor_bytes + plan.workspace_bytes()) as u64;
    if !own_memory {
        return passes + packed_weights(plan, device);
    }
    // The device reserves room for the moving average and the gradients even without training.
    let state = (4 * (table.total() + table.trainable())) as u64;
    passes + state + gpu_weights(plan, table, device) + gpu_batches(device, images, resolution, 1)
}

/// Bytes of the arena and the workspace for training in passes of `images`, whatever the stage.
fn passes(
    recipe: &Recipe,
    arch: &Architecture,
    table: &ParamTable,
    device: &impl Device,
    images: usize,
) -> (u64, u64) {
    let stages = recipe.stages();
    let archs = stages.iter().filter_map(|stage| arch.at(stage.resolution).ok());
    let plans = archs.map(|arch| training_plan(recipe, &arch, table, device, images));
    plans.fold((0, 0), |(arena, workspace), plan| {
        (arena.max(plan.tensor_bytes as u64), workspace.max(plan.workspace_bytes() as u64))
    })
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

/// The largest number of images whose `need` is at most `room`, found by doubling and bisection; 0 if none.
fn largest(room: u64, need: impl Fn(usize) -> u64) -> usize {
    const MOST: usize = 1 << 16;
    let mut fits = 0;
    let mut fails = MOST + 1;
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
            (if self.host_images > 0 { "images being copied" } else { "images prepared ahead" }, self.images),
            ("left to the driver", self.reserve),
            ("total", self.total()),
        ];
        let line = |f: &mut fmt::Formatter, what: &str, value: &str| writeln!(f, "  {what:<40} {value:>12}");
        writeln!(f, "memory plan, {} images a pass (batch {})", self.micro_batch, self.batch_size)?;
        for (what, count) in rows {
            line(f, what, &HumanBytes(count).to_string())?;
        }
        let known = |value: Option<String>| value.unwrap_or("unknown".into());
        if self.host_images > 0 {
            let bytes = HumanBytes(self.host_images).to_string();
            line(f, "images prepared ahead, on the host", &bytes)?;
        }
        line(f, "available", &known(self.available.map(|bytes| HumanBytes(bytes).to_string())))?;
        let largest = known(self.largest.map(|images| images.to_string()));
        write!(f, "  {:<40} {largest:>12}", "largest micro-batch that fits")
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
