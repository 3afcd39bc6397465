//! A training step, recorded: its passes, their launches, and what each has to do.

use std::collections::{BTreeMap, BTreeSet};

use effnet::model::{ParamTable, Variant};
use effnet::network::Network;
use effnet::ops::buckets::bucket_bytes;
use effnet::ops::cuda::image::{self, RawOnDevice};
use effnet::ops::cuda::{Address, CudaDevice, CudaOps, Precision, masks, optimiser};
use effnet::ops::{Buckets, Device, Frozen, Ops, OpsError, Pass, Result, StateSize, StepParams, Tensor};
use effnet::pixels::Editing;
use effnet::train::Recipe;

use crate::recorder::{Launched, RecordingGpu};
use crate::work::{self, Work};

/// Network, side of an image, images of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    pub model: Variant,
    pub side: usize,
    pub images: usize,
    pub precision: Precision,
    /// Whether expanded tensors are computed again where kernels can.
    pub recomputes: bool,
}

impl Case {
    /// One that stores all expanded tensors.
    pub fn new(model: Variant, side: usize, images: usize, precision: Precision) -> Case {
        Case { model, side, images, precision, recomputes: false }
    }

    fn device(&self) -> CudaDevice {
        CudaDevice { precision: self.precision, recomputes: self.recomputes }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model = self.model.name().to_uppercase();
        let again = if self.recomputes { ", recomputing" } else { "" };
        write!(f, "{model} at {}², batch {}, {}{again}", self.side, self.images, self.precision)
    }
}

/// A pass with its launches.
pub struct Recorded {
    pub name: &'static str,
    /// Bytes of the tensors that the pass names, each once: plan A's floor.
    pub floor: u64,
    pub launches: Vec<(Launched, Work)>,
    /// Address and bytes of each tensor that the pass writes.
    pub written: Vec<(u64, usize)>,
}

/// Several ranks compute the statistics of their batch norms together.
fn outline(case: Case, ranks: usize) -> Result<(Recipe, ParamTable, Network)> {
    let reference = Recipe::reference(case.model, case.images);
    let recipe = Recipe { resolution: case.side, sync_bn: ranks > 1, ..reference };
    let arch = recipe.architecture(1000).map_err(|error| OpsError::Device(error.to_string()))?;
    let table = ParamTable::new(&arch);
    let network = Network::new(&arch, &table, recipe.network_config(ranks));
    Ok((recipe, table, network))
}

/// How the gradients are cut among buckets, and all tensors. Bucket numbers count the passes as [`record`] does, without
/// the input, which comes first there.
pub fn buckets(case: Case) -> Result<(Buckets, ParamTable)> {
    let (_, table, network) = outline(case, 1)?;
    let passes = network.itinerary(&case.device()).passes();
    let trainable = table.trainable();
    Ok((Buckets::new(&passes, trainable, Frozen::NOTHING, bucket_bytes(trainable)), table))
}

/// Runs the launchers of a whole step on the recording GPU: the input, then the network's passes one by one,
/// then the update.
pub fn record(case: Case) -> Result<Vec<Recorded>> {
    record_among(case, 1)
}

/// What one of several ranks launches that a rank alone does not, with synchronised batch norm: launches of kernels that
/// only exist for this. Sums over ranks are not among them: those are NCCL's.
pub fn record_rank(case: Case, ranks: usize) -> Result<Vec<Recorded>> {
    let mut steps = record_among(case, ranks)?;
    for step in &mut steps {
        step.launches.retain(|(launch, _)| RANKS_KERNELS.contains(&launch.kernel.as_str()));
    }
    Ok(steps)
}

/// All masks together.
const MASKS: &str = "masks";
const RANKS_KERNELS: [&str; 2] = ["batch_norm_merge", "optimiser_finite"];

fn record_among(case: Case, ranks: usize) -> Result<Vec<Recorded>> {
    let device = case.device();
    let (recipe, table, network) = outline(case, ranks)?;
    let plan = network.plan(&device);
    let mut ops = CudaOps::new(
        RecordingGpu::new(),
        StateSize::new(table.trainable(), table.total()),
        &[&plan],
        case.precision,
    )?;
    ops.bind(&plan)?;
    ops.gpu().launched.clear();

    ops.set_step(StepParams::default())?;
    ops.begin_step()?;
    let pixels = Address(1);
    let raw = RawOnDevice { bytes: pixels, side: case.side, editing: Editing::None, squares: Address::NULL };
    image::prepare(ops.context(), raw, network.image, [0.5; 3], [0.25; 3])?;
    let mut steps = vec![taken(&mut ops, &table, "begin, input", &[(network.image, true)], 0)?];
    let update = Pass::Update(recipe.update());
    // One launch draws all masks: that of the last one.
    let (mut drawn, mut drawn_floor) = (Vec::new(), 0);
    let passes = network.itinerary(&device).passes();
    for (number, pass) in passes.iter().chain([&update]).enumerate() {
        if ranks > 1 && matches!(pass, Pass::Update(_)) {
            optimiser::look_at_gradients(ops.context(), Frozen::NOTHING)?;
        }
        ops.run(pass)?;
        let mut tensors = Vec::new();
        pass.tensors(&mut |tensor, writes| tensors.push((tensor, writes)));
        let floor = pass.bytes(&device);
        if !masks::waits(pass) {
            steps.push(taken(&mut ops, &table, pass.name(), &tensors, floor)?);
            continue;
        }
        drawn.append(&mut tensors);
        drawn_floor += floor;
        if masks::waits(&passes[number + 1]) {
            steps.push(Recorded { name: MASKS, floor: 0, launches: Vec::new(), written: Vec::new() });
        } else {
            masks::draw_waiting(ops.context())?;
            steps.push(taken(&mut ops, &table, MASKS, &drawn, drawn_floor)?);
        }
    }
    Ok(steps)
}

/// The launches for a batch of edited and mixed images that a batch of others lacks. What they have to do depends on the
/// edits, see [`edits`](crate::edits).
pub fn record_editing(case: Case) -> Result<Vec<Launched>> {
    let (_, table, network) = outline(case, 1)?;
    let plan = network.plan(&case.device());
    let size = StateSize::new(table.trainable(), table.total());
    let mut ops = CudaOps::new(RecordingGpu::new(), size, &[&plan], case.precision)?;
    ops.bind(&plan)?;
    ops.gpu().launched.clear();
    let raw =
        RawOnDevice { bytes: Address(1), side: case.side, editing: Editing::Mixing, squares: Address(1) };
    image::prepare(ops.context(), raw, network.image, [0.5; 3], [0.25; 3])?;
    let mut launched = std::mem::take(&mut ops.gpu().launched);
    launched.retain(|launch| !launch.kernel.starts_with("image_prepare"));
    Ok(launched)
}

/// Takes the launches since the last call, and counts the bytes that their pointers name. A tensor of the pass that no launch
/// points to is an error: then these counts would miss it.
fn taken(
    ops: &mut CudaOps<RecordingGpu>,
    table: &ParamTable,
    name: &'static str,
    tensors: &[(Tensor, bool)],
    floor: u64,
) -> Result<Recorded> {
    let launched = std::mem::take(&mut ops.gpu().launched);
    let places = ops.gpu().places.clone();
    let precision = ops.context().precision;
    let device = CudaDevice::new(precision);
    let bytes_of = |tensor: &Tensor| device.element_bytes(tensor.kind) * tensor.elements;
    let mut missing: BTreeSet<u32> = tensors.iter().map(|(tensor, _)| tensor.id).collect();
    let mut launches = Vec::new();
    for launch in launched {
        let mut work = work::of(&launch).map_err(OpsError::Device)?;
        for (field, at) in launch.pointers() {
            // A tensor that lives within the pass is named twice.
            if let Some((tensor, _)) = tensors.iter().find(|(tensor, _)| ops.context().tensor(*tensor) == at)
            {
                work.bytes += bytes_of(tensor) as f64 * share(&launch.kernel, field);
                missing.remove(&tensor.id);
            }
            if !launch.kernel.starts_with("optimiser_") {
                work.bytes += parameter_bytes(&places, table, at);
            }
        }
        launches.push((launch, work));
    }
    let written = tensors.iter().filter(|(_, writes)| *writes);
    let written = written.map(|(tensor, _)| (ops.context().tensor(*tensor).0, bytes_of(tensor))).collect();
    match missing.is_empty() {
        true => Ok(Recorded { name, floor, launches, written }),
        false => Err(OpsError::Device(format!("{name}: no kernel points to tensors {missing:?}"))),
    }
}

/// The part of a tensor that a kernel reads: of the five sums one makes the gate's gradient, four the batch norm's.
fn share(kernel: &str, field: &str) -> f64 {
    match (kernel, field) {
        ("squeeze_hidden_gradient", "gate_gradient") => 0.2,
        ("squeeze_gradients", "five_sums") => 0.8,
        _ => 1.0,
    }
}

/// Bytes of the parameter at this address: read; a gradient or running statistic is read and written.
fn parameter_bytes(places: &BTreeMap<String, (Address, usize)>, table: &ParamTable, at: Address) -> f64 {
    let buffers = [
        ("parameters", 0, 1),
        ("EMA", 0, 1),
        ("gradients", 0, 2),
        ("running statistics", table.trainable(), 2),
    ];
    for (label, first, ways) in buffers {
        let (start, bytes) = places[label];
        if at >= start && at.0 < start.0 + bytes as u64 {
            let offset = first + ((at.0 - start.0) / 4) as usize;
            let entry = table.entries().iter().find(|entry| entry.offset == offset);
            return entry.map_or(0.0, |entry| (ways * 4 * entry.elements()) as f64);
        }
    }
    0.0
}
