//! What the benchmarks share. [`main`] measures one operator's passes at every layer shape of some networks:
//! microseconds, GB/s, GFLOP/s, and the share of what a plain copy moves in the same run; at the end the sums over a
//! network's layers. It measures the GPU, or where there is none the CPU, on all cores.
//!
//! A pass runs alone, on random values, with the tensors that it names laid out beside each other. Before every run a
//! buffer larger than the last cache is copied, so that small layers find the cache cold too. The figure is the median
//! run.
//!
//! `cargo bench --bench depthwise -- 'b4 at 380'` measures the networks whose name contains these words; `--test` runs
//! everything once.
#![allow(dead_code)] // each benchmark uses a part

use std::time::Instant;

use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant, Window};
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::{Address, CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::*;
use effnet::train::Recipe;
use rayon::prelude::*;

/// Bytes of the buffer that is copied: more than the last cache of any card has.
const FLUSH: usize = 128 << 20;
const CLASSES: usize = 1000;

/// What was asked for on the command line.
pub struct Options {
    /// How often each figure is measured.
    pub runs: usize,
    filter: String,
}

impl Options {
    pub fn parse() -> Options {
        let mut options = Options { runs: 15, filter: String::new() };
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--bench" => {}
                "--test" => options.runs = 1,
                _ => options.filter = argument,
            }
        }
        options
    }

    pub fn wants(&self, name: &str) -> bool {
        name.contains(&self.filter)
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Values around zero.
pub fn noise(elements: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..elements).map(|_| next()).collect()
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where passes are measured.
trait Target: Copy {
    type Device: Device;
    type Ops: Ops;
    type Flush;

    fn device(self) -> Self::Device;
    fn open(self, trainable: usize, total: usize, plan: &Plan) -> Result<Self::Ops>;
    fn flush(ops: &mut Self::Ops) -> Result<Self::Flush>;
    /// Copies one half of the flush buffer to the other.
    fn copy(ops: &mut Self::Ops, flush: &mut Self::Flush) -> Result;
    /// Microseconds that the work takes.
    fn time(ops: &mut Self::Ops, work: impl FnOnce(&mut Self::Ops) -> Result) -> Result<f64>;
}

#[derive(Clone, Copy)]
struct Cpu;

impl Target for Cpu {
    type Device = CpuDevice;
    type Ops = CpuOps;
    type Flush = [Vec<u8>; 2];

    fn device(self) -> CpuDevice {
        CpuDevice { threads: cores() }
    }
    fn open(self, trainable: usize, total: usize, plan: &Plan) -> Result<CpuOps> {
        CpuOps::new(trainable, total, &[plan], cores())
    }
    fn flush(_: &mut CpuOps) -> Result<[Vec<u8>; 2]> {
        Ok([vec![1; FLUSH], vec![2; FLUSH]])
    }
    fn copy(_: &mut CpuOps, [from, to]: &mut [Vec<u8>; 2]) -> Result {
        let pieces = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    }
    fn time(ops: &mut CpuOps, work: impl FnOnce(&mut CpuOps) -> Result) -> Result<f64> {
        let began = Instant::now();
        work(ops)?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}

#[derive(Clone, Copy)]
struct Cuda(Precision);

impl Target for Cuda {
    type Device = CudaDevice;
    type Ops = CudaOps<Driver>;
    type Flush = [Address; 2];

    fn device(self) -> CudaDevice {
        CudaDevice { precision: self.0 }
    }
    fn open(self, trainable: usize, total: usize, plan: &Plan) -> Result<CudaOps<Driver>> {
        CudaOps::new(Driver::open(0)?, trainable, total, &[plan], self.0)
    }
    fn flush(ops: &mut CudaOps<Driver>) -> Result<[Address; 2]> {
        Ok([ops.gpu().allocate(FLUSH)?, ops.gpu().allocate(FLUSH)?])
    }
    fn copy(ops: &mut CudaOps<Driver>, [from, to]: &mut [Address; 2]) -> Result {
        ops.gpu().copy(*from, *to, FLUSH)
    }
    fn time(ops: &mut CudaOps<Driver>, work: impl FnOnce(&mut CudaOps<Driver>) -> Result) -> Result<f64> {
        let began = ops.gpu().mark()?;
        work(ops)?;
        let ended = ops.gpu().mark()?;
        ops.gpu().elapsed(began, ended)
    }
}

/// Measures the passes that `wanted` picks. A network's step ends with the `updates`, or with its recipe's.
pub fn main(wanted: fn(&Pass) -> bool, updates: &[Update]) {
    let measured = match Driver::open(0) {
        Ok(_) => [Precision::Fp16, Precision::Fp32].into_iter().try_for_each(|precision| {
            let cases = [(Variant::B0, 224, 128), (Variant::B4, 380, 32)];
            let line = |name: &str| format!("{name}, {precision}");
            cases.into_iter().try_for_each(|case| network(Cuda(precision), case, wanted, updates, line))
        }),
        Err(error) => {
            println!("no GPU ({error}): the CPU instead, on {} cores", cores());
            let cases = [(Variant::B0, 32, 128), (Variant::B0, 224, 16), (Variant::B4, 380, 2)];
            cases.into_iter().try_for_each(|case| network(Cpu, case, wanted, updates, str::to_owned))
        }
    };
    if let Err(error) = measured {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}

/// Measures a network: variant, resolution, images of a batch.
fn network<T: Target>(
    target: T,
    (variant, side, images): (Variant, usize, usize),
    wanted: fn(&Pass) -> bool,
    updates: &[Update],
    line: impl Fn(&str) -> String,
) -> Result {
    let options = Options::parse();
    let name = line(&format!("{variant} at {side}, batch {images}"));
    if !options.wants(&name) {
        return Ok(());
    }
    let device = target.device();
    let arch = Architecture::new(variant, CLASSES, side, Padding::Symmetric, BatchNormConfig::default())
        .map_err(|error| OpsError::Device(error.to_string()))?;
    let table = ParamTable::new(&arch);
    let recipe = Recipe::reference(variant, images);
    let network = Network::new(&arch, &table, NetworkConfig { images, ..recipe.network_config(1) });
    let mut passes = network.record(&device).passes;
    let own = [recipe.update()];
    passes.extend(if updates.is_empty() { &own } else { updates }.iter().copied().map(Pass::Update));
    passes.retain(wanted);

    println!("\n{name}");
    println!("  {:<38} times        µs      MB    GB/s  GFLOP/s  of copy", "pass");
    let (mut floor, mut measured) = (0.0, 0.0);
    let mut rest = passes.as_slice();
    // Layers of one shape follow each other.
    while let Some(pass) = rest.first() {
        let same = rest.iter().take_while(|other| shape(other) == shape(pass)).count();
        rest = &rest[same..];
        let run = measure(target, &options, pass, &network, &table)?;
        println!(
            "  {:<38} {same:>5} {:>9.1} {:>7.2} {:>7.1} {:>8.1} {:>6.1} %",
            shape(pass),
            run.microseconds,
            run.bytes as f64 / 1e6,
            run.bytes as f64 / run.microseconds / 1e3,
            operations(pass) as f64 / run.microseconds / 1e3,
            100.0 * run.floor / run.microseconds
        );
        floor += same as f64 * run.floor;
        measured += same as f64 * run.microseconds;
    }
    let sum = format!("sum of {}: {measured:.1} µs, floor {floor:.1} µs", passes.len());
    println!("  {sum}: {:.1} %", 100.0 * floor / measured);
    Ok(())
}

/// What makes two passes alike: their names and their sizes.
fn shape(pass: &Pass) -> String {
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
        Pass::ResidualForward(p) => {
            let shortcut = if p.shortcut.is_some() { ", shortcut" } else { "" };
            format!("{}×{}{shortcut}", p.images * p.pixels, p.channels)
        }
        Pass::HeadForward(p) => format!("{}×{}", p.pixels, p.channels),
        Pass::HeadBackward(p) => format!("{}×{}", p.pixels, p.channels),
        Pass::Update(p) => format!("{:?}{}", p.rule, if p.ema { " and EMA" } else { "" }),
        _ => String::new(),
    };
    format!("{} {text}", pass.name())
}

fn depthwise(window: Window, channels: usize) -> String {
    format!("{}² k{} s{} {channels}", window.input, window.kernel, window.stride)
}

/// Operations of a pass's products, a multiply-add counted as two; 0 where it makes none worth counting.
fn operations(pass: &Pass) -> u64 {
    // Pairs of tap and output that meet the map.
    let taps = |window: &Window| {
        let Window { kernel, stride, input, output, pad } = *window;
        let pairs = (0..output).flat_map(|o| (0..kernel).map(move |k| o * stride + k));
        pairs.filter(|at| (pad..pad + input).contains(at)).count().pow(2)
    };
    let products = match pass {
        Pass::StemForward(p) => 3 * p.images * taps(&p.window) * p.channels,
        Pass::StemBackward(p) => 3 * p.images * taps(&p.window) * p.channels,
        Pass::ExpandForward(p) => p.rows * p.inputs * p.outputs,
        Pass::ExpandBackward(p) => 2 * p.rows * p.inputs * p.outputs,
        Pass::DepthwiseForward(p) => p.images * taps(&p.window) * p.channels,
        Pass::DepthwiseBackward(p) => 2 * p.images * taps(&p.window) * p.channels,
        Pass::ProjectForward(p) => p.images * p.pixels * p.inputs * p.outputs,
        Pass::ProjectBackward(p) => 2 * p.images * p.pixels * p.inputs * p.outputs,
        _ => 0,
    };
    2 * products as u64
}

struct Run {
    microseconds: f64,
    bytes: u64,
    /// Microseconds of a copy of as many bytes, in this run.
    floor: f64,
}

fn measure<T: Target>(
    target: T,
    options: &Options,
    pass: &Pass,
    network: &Network,
    table: &ParamTable,
) -> Result<Run> {
    let device = target.device();
    let mut recorder = Recorder::new(&device);
    pass.run(&mut recorder)?;
    let mut touched = Vec::new();
    pass.tensors(&mut |tensor, _| touched.push(tensor));
    let plan = recorder.plan(&network.tensors, &touched);
    let mut ops = target.open(table.trainable(), table.total(), &plan)?;
    ops.bind(&plan)?;
    ops.set_step(StepParams { learning_rate: 1e-6, ema_decay: 0.999, ..StepParams::default() })?;
    ops.write_state(Buffer::Parameters, &noise(table.total()))?;
    for tensor in touched {
        match tensor.kind {
            Kind::Index => ops.upload_labels(tensor, &vec![0; tensor.elements])?,
            _ => ops.upload(tensor, &noise(tensor.elements))?,
        }
    }
    let mut flush = T::flush(&mut ops)?;
    let mut copies = Vec::new();
    let mut times = Vec::new();
    for _ in 0..options.runs {
        copies.push(T::time(&mut ops, |ops| T::copy(ops, &mut flush))?);
        times.push(T::time(&mut ops, |ops| pass.run(ops))?);
    }
    // Bytes read and bytes written a microsecond.
    let rate = 2.0 * FLUSH as f64 / median(&mut copies);
    let bytes = pass.bytes(&device) + weights(pass, table);
    Ok(Run { microseconds: median(&mut times), bytes, floor: bytes as f64 / rate })
}

/// What the update moves, whose buffers are no tensors: parameters and momentum both ways, gradients; RMSprop's mean
/// square and the EMA both ways.
fn weights(pass: &Pass, table: &ParamTable) -> u64 {
    let Pass::Update(Update { rule, ema, .. }) = pass else { return 0 };
    let trainable = if matches!(rule, Rule::Sgd { .. }) { 5 } else { 7 };
    4 * (trainable * table.trainable() + if *ema { 2 * table.total() } else { 0 }) as u64
}
