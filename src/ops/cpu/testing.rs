//! For unit tests: sets up the tensors of a few passes, runs them, and reads everything back.

use super::{CpuDevice, CpuOps};
use crate::ops::{
    BatchNorm, Buffer, Kind, Ops, Param, Pass, Plan, StateSize, Statistics, StepParams, Tensor, Tensors,
};
use crate::random::{Purpose, draw, unit};

/// The thread counts for which results must agree bit by bit.
pub const THREADS: [usize; 3] = [1, 2, 5];

/// Uniform values in [low, high), a pure function of the stream's number.
pub fn values(stream: u64, count: usize, low: f32, high: f32) -> Vec<f32> {
    let one = |i| draw(stream, i as u64, 0, Purpose::Synthetic, 0)[0];
    (0..count).map(|i| low + (high - low) * unit(one(i))).collect()
}

/// The tensors of a test.
#[derive(Default)]
pub struct Setup {
    tensors: Tensors,
    all: Vec<Tensor>,
    inputs: Vec<(Tensor, Vec<f32>)>,
    labels: Vec<(Tensor, Vec<u32>)>,
    parameters: Vec<f32>,
    pub step: StepParams,
}

/// What is left after a run.
pub struct Finished {
    pub tensors: Vec<Vec<f32>>,
    pub parameters: Vec<f32>,
    pub gradients: Vec<f32>,
}

/// What gradients hold before a run: passes add to it.
pub const GRADIENT: f32 = 0.5;

impl Setup {
    /// A tensor that the passes write.
    pub fn output(&mut self, elements: usize) -> Tensor {
        let tensor = self.tensors.new_tensor("test", elements, Kind::Float);
        self.all.push(tensor);
        tensor
    }

    pub fn input(&mut self, values: &[f32]) -> Tensor {
        let tensor = self.output(values.len());
        self.inputs.push((tensor, values.to_vec()));
        tensor
    }

    pub fn labels(&mut self, values: &[u32]) -> Tensor {
        let tensor = self.output(values.len());
        self.labels.push((tensor, values.to_vec()));
        tensor
    }

    pub fn parameter(&mut self, values: &[f32]) -> Param {
        let param = Param { offset: self.parameters.len(), elements: values.len() };
        self.parameters.extend(values);
        param
    }

    /// A batch norm whose coefficients [4, C] are given.
    pub fn batch_norm(&mut self, rows: usize, coefficients: &[f32]) -> BatchNorm {
        let channels = coefficients.len() / 4;
        BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: self.parameter(&vec![1.0; channels]),
            bias: self.parameter(&vec![0.0; channels]),
            running_mean: self.parameter(&vec![0.0; channels]),
            running_var: self.parameter(&vec![1.0; channels]),
            momentum: 0.1,
            eps: 1e-5,
            statistics: Statistics::Batch,
            coefficients: self.input(coefficients),
            sums: self.output(2 * channels),
        }
    }

    /// Runs the passes under each of [`THREADS`], asserts that all results are the same bits, and returns
    /// them.
    pub fn run(&self, passes: &[Pass]) -> Finished {
        let results = THREADS.map(|threads| self.run_with(threads, passes));
        let bits = |f: &Finished| {
            let tensors = f.tensors.iter().flatten();
            tensors.chain(&f.parameters).chain(&f.gradients).map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let [first, others @ ..] = results;
        for (other, threads) in others.iter().zip(&THREADS[1..]) {
            assert!(bits(other) == bits(&first), "{threads} threads give another result than one");
        }
        first
    }

    fn run_with(&self, threads: usize, passes: &[Pass]) -> Finished {
        let device = CpuDevice { threads };
        let plan = Plan::new(&device, passes, &self.tensors, &self.all);
        let total = self.parameters.len();
        let mut ops = CpuOps::new(StateSize::new(total, total), &[&plan], threads).unwrap();
        ops.bind(&plan).unwrap();
        ops.set_step(self.step).unwrap();
        ops.write_state(Buffer::Parameters, &self.parameters).unwrap();
        ops.write_state(Buffer::Gradients, &vec![GRADIENT; total]).unwrap();
        let used = |t: &Tensor| plan.offsets[t.id as usize].is_some();
        for tensor in self.all.iter().filter(|&t| used(t)) {
            // What a pass fails to write shows as NaN.
            ops.upload(*tensor, &vec![f32::NAN; tensor.elements]).unwrap();
        }
        for (tensor, values) in self.inputs.iter().filter(|(t, _)| used(t)) {
            ops.upload(*tensor, values).unwrap();
        }
        for (tensor, labels) in &self.labels {
            ops.upload_labels(*tensor, labels).unwrap();
        }
        passes.iter().for_each(|pass| ops.run(pass).unwrap());
        let download = |tensor: &Tensor| {
            let mut out = vec![0.0; tensor.elements];
            if used(tensor) {
                ops.download(*tensor, &mut out).unwrap();
            }
            out
        };
        let tensors = self.all.iter().map(download).collect();
        let (mut parameters, mut gradients) = (vec![0.0; total], vec![0.0; total]);
        ops.read_state(Buffer::Parameters, &mut parameters).unwrap();
        ops.read_state(Buffer::Gradients, &mut gradients).unwrap();
        Finished { tensors, parameters, gradients }
    }
}

impl Finished {
    pub fn get(&self, tensor: Tensor) -> &[f32] {
        &self.tensors[tensor.id as usize]
    }

    /// What a pass has added to a gradient.
    pub fn added(&self, param: Param) -> Vec<f32> {
        self.gradients[param.range()].iter().map(|g| g - GRADIENT).collect()
    }
}

/// Asserts that all values are within `bound`, relative to the largest expected magnitude.
pub fn assert_close(what: &str, got: &[f32], expected: &[f64], bound: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1e-30f64, |most, v| most.max(v.abs()));
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (got as f64 - expected).abs() / scale;
        assert!(error <= bound, "{what}[{i}]: {got} for {expected}, error {error:e}");
    }
}

pub fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// silu and its derivative.
pub fn silu(z: f64) -> (f64, f64) {
    let s = sigmoid(z);
    (z * s, s * (1.0 + z * (1.0 - s)))
}
