//! One operator's passes at every layer shape of some networks, each pass alone, on random values.
//!
//! What is measured is taken from the networks' own lists of passes; [`Pass::shape`] says which are alike, so each shape
//! is measured once. On a GPU the result is a table: microseconds, GB/s, and the share of what a plain copy moves in the
//! same run, at the end the sums over a network's layers. Where there is no GPU, criterion measures the CPU, in each
//! precision; `-- bf16` after the benchmark's name chooses one. How fast arithmetic can be there is what
//! `cargo bench --bench peak` prints.

#[path = "../../tests/common/formula.rs"]
mod formula;
#[allow(dead_code)] // tests use the rest
#[path = "../../tests/common/network.rs"]
mod test_network;

use criterion::{Criterion, Throughput};
use effnet::model::{ParamTable, Variant};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::*;
use effnet::train::Recipe;
use formula::Formula;
use test_network::architecture;

/// Network, resolution, images of a batch.
type Case = (Variant, usize, usize);

const ON_CPU: [Case; 3] = [(Variant::B0, 32, 128), (Variant::B0, 224, 16), (Variant::B4, 380, 2)];
const ON_GPU: [Case; 2] = [(Variant::B0, 224, 128), (Variant::B4, 380, 32)];
const RUNS: usize = 15;
/// Larger than the L2 cache of any card.
const FLUSH: usize = 128 << 20;

/// Measures these passes on the GPU or, without one, on the CPU.
pub fn main(wanted: fn(&Pass) -> bool) {
    let measured = match Driver::open(0) {
        Ok(_) => on_gpu(wanted),
        Err(error) => {
            println!("no GPU ({error}): the CPU instead");
            on_cpu(wanted)
        }
    };
    if let Err(error) = measured {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// The passes of a training step, on the network's tensors.
struct Layers {
    network: Network,
    table: ParamTable,
    /// One pass of each shape, and how many layers have it.
    passes: Vec<(Pass, usize)>,
}

impl Layers {
    fn new((variant, side, images): Case, device: &impl Device, wanted: fn(&Pass) -> bool) -> Layers {
        let arch = architecture(variant, 1000, side);
        let table = ParamTable::new(&arch);
        let recipe = Recipe::reference(variant, images);
        let network = Network::new(&arch, &table, NetworkConfig { images, ..recipe.network_config(1) });
        let mut passes: Vec<(Pass, usize)> = Vec::new();
        let all = network.itinerary(device).passes().into_iter().chain(updates(recipe.update()));
        for pass in all.filter(wanted) {
            match passes.iter_mut().find(|(seen, _)| title(seen) == title(&pass)) {
                Some((_, layers)) => *layers += 1,
                None => passes.push((pass, 1)),
            }
        }
        Layers { network, table, passes }
    }

    /// The plan for one pass, in which no two tensors overlap.
    fn plan(&self, pass: &Pass, device: &impl Device) -> Plan {
        Plan::new(device, &[*pass], &self.network.tensors, &touched(pass))
    }

    /// Prepares a device to run a pass.
    fn fill<O: Ops>(&self, ops: &mut O, pass: &Pass, plan: &Plan) -> Result {
        let noise = |count| Formula::of("noise").values(count, -1.0, 1.0);
        ops.bind(plan)?;
        ops.set_step(StepParams { learning_rate: 1e-6, ema_decay: 0.999, ..StepParams::default() })?;
        ops.write_state(Buffer::Parameters, &noise(self.table.total()))?;
        touched(pass).into_iter().try_for_each(|tensor| match tensor.kind {
            Kind::Index => ops.upload_labels(tensor, &(&vec![0; tensor.elements]).into()),
            _ => ops.upload(tensor, &noise(tensor.elements)),
        })
    }

    /// Bytes that a pass must move: those of its tensors; of an update those of the flat buffers.
    fn bytes(&self, pass: &Pass, device: &impl Device) -> u64 {
        match pass {
            Pass::Update(update) => update.bytes(self.table.trainable(), self.table.total()),
            _ => pass.bytes(device),
        }
    }
}

fn touched(pass: &Pass) -> Vec<Tensor> {
    let mut touched = Vec::new();
    pass.tensors(&mut |tensor, _| touched.push(tensor));
    touched
}

/// Each rule, with and without the moving average.
fn updates(recipe: Update) -> impl Iterator<Item = Pass> {
    let rms = |form| Rule::RmsProp { form, alpha: 0.9, momentum: 0.9, eps: 1e-3 };
    let rules = [
        rms(RmsPropForm::PyTorch),
        rms(RmsPropForm::TensorFlow),
        Rule::Sgd { momentum: 0.9, nesterov: false },
        Rule::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
    ];
    let both = rules.into_iter().flat_map(|rule| [false, true].map(|ema| (rule, ema)));
    both.map(move |(rule, ema)| Update { rule, ema, ..recipe }.into())
}

fn title(pass: &Pass) -> String {
    format!("{} {}", pass.name(), pass.shape())
}

fn on_cpu(wanted: fn(&Pass) -> bool) -> Result {
    let mut criterion = Criterion::default().configure_from_args();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let devices = CpuDevice::PRECISIONS.map(|precision| CpuDevice::new(threads, precision));
    for (case, device) in ON_CPU.into_iter().flat_map(|case| devices.map(|device| (case, device))) {
        let layers = Layers::new(case, &device, wanted);
        let ((variant, side, images), precision) = (case, device.precision());
        let mut group =
            criterion.benchmark_group(format!("{variant} at {side}, batch {images}, {precision}"));
        // A whole network's layers should not take minutes.
        group.sample_size(10).warm_up_time(std::time::Duration::from_millis(200));
        group.measurement_time(std::time::Duration::from_millis(800));
        for (pass, count) in &layers.passes {
            let plan = layers.plan(pass, &device);
            let (trainable, total) = (layers.table.trainable(), layers.table.total());
            let mut ops = CpuOps::new(StateSize::new(trainable, total), &[&plan], device)?;
            layers.fill(&mut ops, pass, &plan)?;
            group.throughput(Throughput::Bytes(layers.bytes(pass, &device)));
            let name = format!("{} ({count} layers)", title(pass));
            group
                .bench_function(name, |b| b.iter(|| ops.run(pass).expect("a pass on the CPU does not fail")));
        }
    }
    criterion.final_summary();
    Ok(())
}

fn on_gpu(wanted: fn(&Pass) -> bool) -> Result {
    for precision in [Precision::Fp16, Precision::Fp32] {
        for case in ON_GPU {
            table(case, CudaDevice::new(precision), wanted)?;
        }
    }
    Ok(())
}

fn table(case: Case, device: CudaDevice, wanted: fn(&Pass) -> bool) -> Result {
    let layers = Layers::new(case, &device, wanted);
    let (variant, side, images) = case;
    println!("\n{variant} at {side}, batch {images}, {}", device.precision);
    println!("  {:<34} {:>9} {:>10} {:>9} {:>9} {:>9}", "pass", "layers", "µs", "MB", "GB/s", "of copy");
    let mut floor = 0.0;
    let mut measured = 0.0;
    for (pass, count) in &layers.passes {
        let run = measure(pass, &layers, device)?;
        println!(
            "  {:<34} {count:>9} {:>10.1} {:>9.2} {:>9.1} {:>7.1} %",
            title(pass),
            run.microseconds,
            run.bytes as f64 / 1e6,
            run.bytes as f64 / run.microseconds / 1e3,
            100.0 * run.floor / run.microseconds
        );
        floor += *count as f64 * run.floor;
        measured += *count as f64 * run.microseconds;
    }
    println!(
        "  {:<34} {:>9} {measured:>10.1} µs, floor {floor:.1} µs: {:.1} %",
        "sum over the layers",
        layers.passes.iter().map(|(_, count)| count).sum::<usize>(),
        100.0 * floor / measured
    );
    Ok(())
}

struct Run {
    /// Of the median run.
    microseconds: f64,
    bytes: u64,
    /// Microseconds of a copy of as many bytes, in this run.
    floor: f64,
}

/// Before every run a buffer larger than the L2 cache is copied, so that late layers find it cold too.
fn measure(pass: &Pass, layers: &Layers, device: CudaDevice) -> Result<Run> {
    let plan = layers.plan(pass, &device);
    let (trainable, total) = (layers.table.trainable(), layers.table.total());
    let mut ops =
        CudaOps::new(Driver::open(0)?, StateSize::new(trainable, total), &[&plan], device.precision)?;
    layers.fill(&mut ops, pass, &plan)?;
    let flush = [ops.gpu().allocate(FLUSH)?, ops.gpu().allocate(FLUSH)?];
    let mut times = Vec::new();
    let mut copies = Vec::new();
    for _ in 0..RUNS {
        let gpu = ops.gpu();
        let began = gpu.mark()?;
        gpu.copy(flush[0], flush[1], FLUSH)?;
        let copied = gpu.mark()?;
        copies.push(gpu.elapsed(began, copied)?);
        let began = ops.gpu().mark()?;
        ops.run(pass)?;
        let gpu = ops.gpu();
        let ended = gpu.mark()?;
        times.push(gpu.elapsed(began, ended)?);
    }
    // Bytes read and bytes written a microsecond.
    let rate = 2.0 * FLUSH as f64 / median(&mut copies);
    let bytes = layers.bytes(pass, &device);
    Ok(Run { microseconds: median(&mut times), bytes, floor: bytes as f64 / rate })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
