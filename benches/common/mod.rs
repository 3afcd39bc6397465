//! What the benchmarks of the operators share: networks to take shapes from, and a set-up that lays out the
//! tensors of some passes and readies a device to run them.
#![allow(dead_code)]

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use effnet::model::{Architecture, BatchNormConfig, Padding, Variant};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::{
    BatchNorm, Buffer, Dense, Kind, Ops, Param, Recorder, Result, Statistics, StepParams, Tensor, Tensors,
};

/// A network and the batch it is measured with.
pub struct Case {
    pub name: &'static str,
    pub net: Architecture,
    pub images: usize,
}

pub fn cases() -> Vec<Case> {
    let case = |name, variant, resolution, images| {
        let config = BatchNormConfig::default();
        let net = Architecture::new(variant, 1000, resolution, Padding::Symmetric, config).unwrap();
        Case { name, net, images }
    };
    vec![
        case("b0 at 32, batch 128", Variant::B0, 32, 128),
        case("b0 at 224, batch 16", Variant::B0, 224, 16),
        case("b4 at 380, batch 2", Variant::B4, 380, 2),
    ]
}

/// A group with few samples: a whole network's layers should not take minutes.
pub fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sample_size(10).warm_up_time(std::time::Duration::from_millis(200));
    group.measurement_time(std::time::Duration::from_millis(800));
    group
}

pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The tensors of some passes. All of them are laid out beside each other.
#[derive(Default)]
pub struct Setup {
    tensors: Tensors,
    all: Vec<Tensor>,
    inputs: Vec<(Tensor, Vec<f32>)>,
    parameters: usize,
}

impl Setup {
    /// A tensor of noise around zero.
    pub fn tensor(&mut self, elements: usize) -> Tensor {
        let tensor = self.tensors.new_tensor("", elements, Kind::Activation);
        self.all.push(tensor);
        tensor
    }

    pub fn input(&mut self, values: Vec<f32>) -> Tensor {
        let tensor = self.tensor(values.len());
        self.inputs.push((tensor, values));
        tensor
    }

    pub fn parameter(&mut self, elements: usize) -> Param {
        let param = Param { offset: self.parameters, elements };
        self.parameters += elements;
        param
    }

    pub fn dense(&mut self, inputs: usize, outputs: usize) -> Dense {
        Dense { weight: self.parameter(inputs * outputs), bias: self.parameter(outputs), inputs, outputs }
    }

    pub fn batch_norm(&mut self, channels: usize, rows: usize) -> BatchNorm {
        let coefficients = [0.1, 1.1, 0.9, -0.1].iter().flat_map(|&v| vec![v; channels]).collect();
        BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: self.parameter(channels),
            bias: self.parameter(channels),
            running_mean: self.parameter(channels),
            running_var: self.parameter(channels),
            momentum: 0.1,
            eps: 1e-3,
            statistics: Statistics::Batch,
            coefficients: self.input(coefficients),
            sums: self.tensor(2 * channels),
        }
    }

    /// A device with these tensors and the bytes of the tensors that the passes touch, each once a pass.
    pub fn start(&self, passes: impl Fn(&mut dyn Ops) -> Result) -> (CpuOps, u64) {
        let device = CpuDevice { threads: threads() };
        let mut recorder = Recorder::new(&device);
        passes(&mut recorder).unwrap();
        let mut bytes = 0;
        for pass in &recorder.passes {
            pass.tensors(&mut |tensor, _| bytes += tensor.elements as u64 * 4);
        }
        let plan = recorder.plan(&self.tensors, &self.all);
        let total = self.parameters;
        let mut ops = CpuOps::new(total, total, &[&plan], threads()).unwrap();
        ops.bind(&plan).unwrap();
        ops.set_step(StepParams { learning_rate: 1e-6, ema_decay: 0.999, ..Default::default() }).unwrap();
        for buffer in [Buffer::Parameters, Buffer::Ema, Buffer::Gradients] {
            ops.write_state(buffer, &noise(total, 0.1)).unwrap();
        }
        for tensor in self.all.iter().filter(|t| plan.offsets[t.id as usize].is_some()) {
            let given = self.inputs.iter().find(|(input, _)| input == tensor);
            let values = given.map_or_else(|| noise(tensor.elements, 2.0), |(_, values)| values.clone());
            ops.upload(*tensor, &values).unwrap();
        }
        (ops, bytes)
    }
}

/// Values spread over ±`size`.
pub fn noise(elements: usize, size: f32) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
    };
    (0..elements).map(|_| next()).collect()
}

/// Measures the passes, with the bytes they touch as throughput.
pub fn measure(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    setup: &Setup,
    passes: impl Fn(&mut dyn Ops) -> Result,
) {
    let (mut ops, bytes) = setup.start(&passes);
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function(name, |b| b.iter(|| passes(&mut ops).unwrap()));
}
