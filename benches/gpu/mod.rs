//! One operator's passes on a GPU, at every layer shape of B0 and B4: microseconds, GB/s, and the share of what a
//! plain copy moves in the same run; at the end the sums over a network's layers.
//!
//! A pass runs alone, on random values, with the tensors that it names laid out beside each other. They outsize the
//! L2 cache by far in the early layers; before every run a buffer larger than it is copied, so that late layers find
//! it cold too. The figure is the median run. Where there is no GPU the benchmark measures the CPU, and says so.

use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::*;
use effnet::train::Recipe;

/// Network, resolution, images of a batch.
const CASES: [(Variant, usize, usize); 2] = [(Variant::B0, 224, 128), (Variant::B4, 380, 32)];
const RUNS: usize = 15;
/// Larger than the L2 cache of any card.
const FLUSH: usize = 128 << 20;

/// Measures the operator's passes on the GPU, or runs `on_cpu` where there is none.
pub fn main(wanted: fn(&Pass) -> bool, on_cpu: impl FnOnce()) {
    match Driver::open(0) {
        Ok(_) => {
            for precision in [Precision::Fp16, Precision::Fp32] {
                for case in CASES {
                    if let Err(error) = network(case, precision, wanted) {
                        eprintln!("error: {error}");
                        std::process::exit(1);
                    }
                }
            }
        }
        Err(error) => {
            println!("no GPU ({error}): the CPU instead");
            on_cpu();
        }
    }
}

fn network(
    (variant, side, images): (Variant, usize, usize),
    precision: Precision,
    wanted: fn(&Pass) -> bool,
) -> Result {
    let device = CudaDevice { precision };
    let arch = Architecture::new(variant, 1000, side, Padding::Symmetric, BatchNormConfig::default())
        .map_err(|error| OpsError::Device(error.to_string()))?;
    let table = ParamTable::new(&arch);
    let recipe = Recipe::reference(variant, images);
    let network = Network::new(&arch, &table, NetworkConfig { images, ..recipe.network_config(1) });
    let mut passes = network.record(&device).passes;
    passes.push(Pass::Update(recipe.update()));
    passes.retain(wanted);

    println!("\n{variant} at {side}, batch {images}, {precision}");
    println!("  {:<34} {:>9} {:>10} {:>9} {:>9} {:>9}", "pass", "times", "µs", "MB", "GB/s", "of copy");
    let (mut floor, mut measured) = (0.0, 0.0);
    let mut rest = passes.as_slice();
    // Layers of one shape follow each other.
    while let Some(pass) = rest.first() {
        let same = rest.iter().take_while(|other| shape(other) == shape(pass)).count();
        rest = &rest[same..];
        let run = measure(pass, &network, &table, device)?;
        let share = run.floor / run.microseconds;
        println!(
            "  {:<34} {same:>9} {:>10.1} {:>9.2} {:>9.1} {:>7.1} %",
            format!("{} {}", pass.name(), shape(pass).1),
            run.microseconds,
            run.bytes as f64 / 1e6,
            run.bytes as f64 / run.microseconds / 1e3,
            100.0 * share
        );
        floor += same as f64 * run.floor;
        measured += same as f64 * run.microseconds;
    }
    println!(
        "  {:<34} {:>9} {measured:>10.1} µs, floor {floor:.1} µs: {:.1} %",
        "sum over the layers",
        passes.len(),
        100.0 * floor / measured
    );
    Ok(())
}

/// What makes two passes alike: their names and the elements of their tensors.
fn shape(pass: &Pass) -> (&'static str, String) {
    let text = match pass {
        Pass::StemForward(p) => format!("{}²→{}", p.window.input, p.channels),
        Pass::StemBackward(p) => format!("{}²→{}", p.window.input, p.channels),
        Pass::ExpandForward(p) => format!("{}×{}→{}", p.rows, p.inputs, p.outputs),
        Pass::ExpandBackward(p) => format!("{}×{}→{}", p.rows, p.inputs, p.outputs),
        Pass::DepthwiseForward(p) => depthwise(p.window, p.channels),
        Pass::DepthwiseBackward(p) => depthwise(p.window, p.channels),
        Pass::SqueezeForward(p) => format!("{}×{}", p.pixels, p.channels),
        Pass::SqueezeBackward(p) => format!("{}×{}", p.pixels, p.channels),
        Pass::ProjectForward(p) => format!("{}×{}→{}", p.images * p.pixels, p.inputs, p.outputs),
        Pass::ProjectBackward(p) => format!("{}×{}→{}", p.images * p.pixels, p.inputs, p.outputs),
        Pass::ResidualForward(p) => format!("{}×{}", p.images * p.pixels, p.channels),
        Pass::HeadForward(p) => format!("{}×{}", p.pixels, p.channels),
        Pass::HeadBackward(p) => format!("{}×{}", p.pixels, p.channels),
        _ => String::new(),
    };
    (pass.name(), text)
}

fn depthwise(window: effnet::model::Window, channels: usize) -> String {
    format!("{}² k{} s{} {channels}", window.input, window.kernel, window.stride)
}

struct Run {
    microseconds: f64,
    bytes: u64,
    /// Microseconds of a copy of as many bytes, in this run.
    floor: f64,
}

fn measure(pass: &Pass, network: &Network, table: &ParamTable, device: CudaDevice) -> Result<Run> {
    let mut recorder = Recorder::new(&device);
    pass.run(&mut recorder)?;
    let mut touched = Vec::new();
    pass.tensors(&mut |tensor, _| touched.push(tensor));
    let plan = recorder.plan(&network.tensors, &touched);
    let mut ops =
        CudaOps::new(Driver::open(0)?, table.trainable(), table.total(), &[&plan], device.precision)?;
    ops.bind(&plan)?;
    ops.set_step(StepParams { learning_rate: 1e-6, ema_decay: 0.999, ..StepParams::default() })?;
    ops.write_state(Buffer::Parameters, &noise(table.total()))?;
    for tensor in touched {
        match tensor.kind {
            Kind::Index => ops.upload_labels(tensor, &vec![0; tensor.elements])?,
            _ => ops.upload(tensor, &noise(tensor.elements))?,
        }
    }
    let flush = [ops.gpu().allocate(FLUSH)?, ops.gpu().allocate(FLUSH)?];
    let (mut times, mut copies) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let gpu = ops.gpu();
        let began = gpu.mark()?;
        gpu.copy(flush[0], flush[1], FLUSH)?;
        let copied = gpu.mark()?;
        copies.push(gpu.elapsed(began, copied)?);
        let began = ops.gpu().mark()?;
        pass.run(&mut ops)?;
        let gpu = ops.gpu();
        let ended = gpu.mark()?;
        times.push(gpu.elapsed(began, ended)?);
    }
    // Bytes read and bytes written a microsecond.
    let rate = 2.0 * FLUSH as f64 / median(&mut copies);
    let bytes = pass.bytes(&device) + weights(pass, table);
    Ok(Run { microseconds: median(&mut times), bytes, floor: bytes as f64 / rate })
}

/// What the update moves, whose buffers are no tensors: parameters, mean-square and momentum both ways, gradients.
fn weights(pass: &Pass, table: &ParamTable) -> u64 {
    match pass {
        Pass::Update(_) => 7 * 4 * table.trainable() as u64,
        _ => 0,
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Values around zero.
fn noise(elements: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..elements).map(|_| next()).collect()
}
