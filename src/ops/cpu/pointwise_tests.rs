//! The pointwise passes against their formulas in f64, and bit for bit across numbers of threads.

use crate::ops::cpu::{CpuDevice, CpuOps};
use crate::ops::*;

/// Collects the tensors and parameters of one pass, with their values.
#[derive(Default)]
struct Setup {
    tensors: Tensors,
    values: Vec<(Tensor, Vec<f32>)>,
    parameters: Vec<f32>,
    draws: u32,
}

impl Setup {
    /// Uniform in −1…1.
    fn draw(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.draws = self.draws.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.draws >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    fn output(&mut self, elements: usize) -> Tensor {
        self.tensors.new_tensor("output", elements, Kind::Activation)
    }

    fn given(&mut self, values: Vec<f32>) -> Tensor {
        let tensor = self.tensors.new_tensor("input", values.len(), Kind::Activation);
        self.values.push((tensor, values));
        tensor
    }

    fn random(&mut self, elements: usize) -> Tensor {
        let values = self.draw(elements);
        self.given(values)
    }

    fn param(&mut self, elements: usize) -> Param {
        let param = Param { offset: self.parameters.len(), elements };
        let values = self.draw(elements);
        self.parameters.extend(values);
        param
    }

    /// A batch norm whose coefficients and sums are given (`known`) or left to the pass.
    fn batch_norm(&mut self, rows: usize, channels: usize, known: bool) -> BatchNorm {
        let coefficients: Vec<f32> = (self.draw(4 * channels).into_iter().enumerate())
            .map(|(i, v)| if i / channels == 1 { 1.0 + v / 2.0 } else { v })
            .collect();
        BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: self.param(channels),
            bias: self.param(channels),
            running_mean: self.param(channels),
            running_var: self.param(channels),
            momentum: 0.1,
            eps: 1e-3,
            statistics: Statistics::Batch,
            coefficients: if known { self.given(coefficients) } else { self.output(4 * channels) },
            sums: if known { self.random(2 * channels) } else { self.output(2 * channels) },
        }
    }

    fn of(&self, tensor: Tensor) -> Vec<f64> {
        let found = self.values.iter().find(|(t, _)| *t == tensor).expect("a given tensor");
        found.1.iter().map(|&v| v as f64).collect()
    }

    fn weight(&self, param: Param) -> Vec<f64> {
        self.parameters[param.range()].iter().map(|&v| v as f64).collect()
    }

    /// Runs a pass with 1, 2 and 5 threads; returns the outputs, then parameters and gradients. Gradients start at 1.
    fn run(&self, pass: Pass, outputs: &[Tensor]) -> Vec<Vec<f32>> {
        let mut results = [1, 2, 5].map(|threads| {
            let device = CpuDevice { threads };
            let inputs: Vec<Tensor> = self.values.iter().map(|(t, _)| *t).collect();
            let plan = Plan::new(&device, &[pass], &self.tensors, &[outputs, &inputs].concat());
            let total = self.parameters.len();
            let mut ops = CpuOps::new(StateSize::new(total, total), &[&plan], threads).unwrap();
            ops.bind(&plan).unwrap();
            ops.write_state(Buffer::Parameters, &self.parameters).unwrap();
            ops.write_state(Buffer::Gradients, &vec![1.0; total]).unwrap();
            for (tensor, values) in &self.values {
                if plan.offsets[tensor.id as usize].is_some() {
                    ops.upload(*tensor, values).unwrap();
                }
            }
            ops.run(&pass).unwrap();
            let mut results = Vec::new();
            for output in outputs {
                results.push(vec![f32::NAN; output.elements]);
                ops.download(*output, results.last_mut().unwrap()).unwrap();
            }
            for buffer in [Buffer::Parameters, Buffer::Gradients] {
                results.push(vec![f32::NAN; total]);
                ops.read_state(buffer, results.last_mut().unwrap()).unwrap();
            }
            results
        });
        let bits = |r: &Vec<Vec<f32>>| r.concat().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&results[0]) == bits(&results[1]), "one and two threads differ");
        assert!(bits(&results[0]) == bits(&results[2]), "one and five threads differ");
        std::mem::take(&mut results[0])
    }
}

/// A value with the sum of the magnitudes that it was added up from, to which rounding errors are relative.
#[derive(Clone, Copy)]
struct Exact {
    value: f64,
    size: f64,
}

/// Two roundings of a term (4·2^-24 for silu) and its share of those of the sums: 16·2^-24 leaves room for both.
const BOUND: f64 = 1e-6;

// The negation fails for NaN.
#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn compare(what: &str, got: &[f32], expected: &[Exact]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (&got, exact)) in got.iter().zip(expected).enumerate() {
        let error = (got as f64 - exact.value).abs();
        if !(error <= BOUND * exact.size) {
            panic!("{what}[{i}]: {got}, expected {} (magnitude {})", exact.value, exact.size);
        }
    }
}

/// Σ over `i < count`.
fn sum(count: usize, term: impl Fn(usize) -> f64) -> Exact {
    let value = (0..count).map(&term).sum();
    Exact { value, size: (0..count).map(|i| term(i).abs()).sum() }
}

fn plus(exact: Exact, value: f64) -> Exact {
    Exact { value: exact.value + value, size: exact.size + value.abs() }
}

fn values(exact: &[Exact]) -> Vec<f64> {
    exact.iter().map(|e| e.value).collect()
}

fn check_statistics(
    exact: &[Exact],
    bn: &BatchNorm,
    setup: &Setup,
    coefficients: &[f32],
    parameters: &[f32],
) {
    let (c, m, y) = (bn.channels, bn.rows, values(exact));
    let size = |j: usize| sum(m, |i| exact[i * c + j].size / m as f64).value;
    let mean: Vec<Exact> =
        (0..c).map(|j| Exact { value: sum(m, |i| y[i * c + j] / m as f64).value, size: size(j) }).collect();
    let variance = |j: usize| sum(m, |i| (y[i * c + j] - mean[j].value).powi(2)).value / m as f64;
    let r = |j: usize| 1.0 / (variance(j) + bn.eps as f64).sqrt();
    // The shift may be three deviations off: then squares are summed that are ten times the variance.
    let exact = |value: f64| Exact { value, size: 10.0 * value.abs() };
    compare("mean", &coefficients[..c], &mean);
    compare("r", &coefficients[c..2 * c], &(0..c).map(|j| exact(r(j))).collect::<Vec<_>>());
    let unbiased = m as f64 / (m as f64 - 1.0).max(1.0);
    let old = setup.weight(bn.running_var);
    let running = |j: usize| plus(exact(0.9 * old[j]), 0.1 * variance(j) * unbiased);
    let running: Vec<Exact> = (0..c).map(running).collect();
    compare("running variance", &parameters[bn.running_var.range()], &running);
}

fn expand_forward(rows: usize, inputs: usize, outputs: usize) {
    let mut setup = Setup::default();
    let pass = ExpandForward {
        rows,
        inputs,
        outputs,
        x: setup.random(rows * inputs),
        weight: setup.param(outputs * inputs),
        y: setup.output(rows * outputs),
        bn: setup.batch_norm(rows, outputs, false),
    };
    let results = setup.run(pass.into(), &[pass.y, pass.bn.coefficients]);
    let (x, w) = (setup.of(pass.x), setup.weight(pass.weight));
    let y: Vec<Exact> = (0..rows * outputs)
        .map(|at| sum(inputs, |k| x[at / outputs * inputs + k] * w[at % outputs * inputs + k]))
        .collect();
    compare("y", &results[0], &y);
    check_statistics(&y, &pass.bn, &setup, &results[1], &results[2]);
}

/// dy of a batch norm with known coefficients and sums.
fn batch_norm_backward(setup: &Setup, bn: &BatchNorm, du: &[f64], y: &[f64]) -> Vec<f64> {
    let (c, m) = (bn.channels, bn.rows as f64);
    let (of, sums) = (setup.of(bn.coefficients), setup.of(bn.sums));
    (0..du.len())
        .map(|at| {
            let j = at % c;
            let yhat = (y[at] - of[j]) * of[c + j];
            of[2 * c + j] * (du[at] - sums[j] / m - yhat * sums[c + j] / m)
        })
        .collect()
}

fn expand_backward(images: usize, pixels: usize, inputs: usize, outputs: usize, extras: bool) {
    let mut setup = Setup::default();
    let rows = images * pixels;
    let previous = PreviousBlock {
        y: setup.random(rows * inputs),
        bn: setup.batch_norm(rows, inputs, true),
        keep: extras.then(|| setup.random(images)),
        pixels,
    };
    // The sums are what the pass fills.
    let sums = setup.output(2 * inputs);
    let previous = PreviousBlock { bn: BatchNorm { sums, ..previous.bn }, ..previous };
    let pass = ExpandBackward {
        rows,
        inputs,
        outputs,
        x: setup.random(rows * inputs),
        weight: setup.param(outputs * inputs),
        y: setup.random(rows * outputs),
        bn: setup.batch_norm(rows, outputs, true),
        du: setup.random(rows * outputs),
        dx: setup.output(rows * inputs),
        shortcut: extras.then(|| setup.random(rows * inputs)),
        previous,
    };
    let results = setup.run(pass.into(), &[pass.dx, sums]);
    let (x, w) = (setup.of(pass.x), setup.weight(pass.weight));
    let dy = batch_norm_backward(&setup, &pass.bn, &setup.of(pass.du), &setup.of(pass.y));
    let shortcut = pass.shortcut.map_or(vec![0.0; rows * inputs], |t| setup.of(t));
    let keep = previous.keep.map_or(vec![1.0; images], |t| setup.of(t));
    let dx: Vec<Exact> = (0..rows * inputs)
        .map(|at| {
            let (i, j) = (at / inputs, at % inputs);
            plus(sum(outputs, |k| dy[i * outputs + k] * w[k * inputs + j]), shortcut[at])
        })
        .collect();
    compare("dx", &results[0], &dx);
    let dw: Vec<Exact> = (0..outputs * inputs)
        .map(|at| plus(sum(rows, |i| dy[i * outputs + at / inputs] * x[i * inputs + at % inputs]), 1.0))
        .collect();
    compare("dW", &results[3][pass.weight.range()], &dw);
    let (y3, of) = (setup.of(previous.y), setup.of(previous.bn.coefficients));
    let du = |i: usize, j: usize| keep[i / pixels] * dx[i * inputs + j].value;
    let expected: Vec<Exact> = (0..2 * inputs)
        .map(|at| {
            let j = at % inputs;
            let yhat = |i: usize| (y3[i * inputs + j] - of[j]) * of[inputs + j];
            let factor = |i: usize| if at < inputs { 1.0 } else { yhat(i) };
            let size = |i: usize| keep[i / pixels] * dx[i * inputs + j].size * factor(i);
            Exact { value: sum(rows, |i| du(i, j) * factor(i)).value, size: sum(rows, size).size }
        })
        .collect();
    compare("sums", &results[1], &expected);
    let with_one: Vec<Exact> = expected[inputs..].iter().map(|&v| plus(v, 1.0)).collect();
    compare("dγ", &results[3][previous.bn.weight.range()], &with_one);
}

/// silu, its derivative.
fn silu(z: f64) -> (f64, f64) {
    let s = 1.0 / (1.0 + (-z).exp());
    (z * s, s * (1.0 + z * (1.0 - s)))
}

fn project_forward(images: usize, pixels: usize, inputs: usize, outputs: usize) {
    let mut setup = Setup::default();
    let rows = images * pixels;
    let pass = ProjectForward {
        images,
        pixels,
        inputs,
        outputs,
        x: setup.random(rows * inputs),
        input_bn: setup.batch_norm(rows, inputs, true),
        gate: setup.random(images * inputs),
        weight: setup.param(outputs * inputs),
        y: setup.output(rows * outputs),
        bn: setup.batch_norm(rows, outputs, false),
    };
    let results = setup.run(pass.into(), &[pass.y, pass.bn.coefficients]);
    let (x, w, gate) = (setup.of(pass.x), setup.weight(pass.weight), setup.of(pass.gate));
    let of = setup.of(pass.input_bn.coefficients);
    let a = |i: usize, k: usize| {
        let z = x[i * inputs + k] * of[2 * inputs + k] + of[3 * inputs + k];
        silu(z).0 * gate[i / pixels * inputs + k]
    };
    let y: Vec<Exact> = (0..rows * outputs)
        .map(|at| sum(inputs, |k| a(at / outputs, k) * w[at % outputs * inputs + k]))
        .collect();
    compare("y", &results[0], &y);
    check_statistics(&y, &pass.bn, &setup, &results[1], &results[2]);
}

fn project_backward(images: usize, pixels: usize, inputs: usize, outputs: usize, extras: bool) {
    let mut setup = Setup::default();
    let rows = images * pixels;
    let pass = ProjectBackward {
        images,
        pixels,
        inputs,
        outputs,
        x: setup.random(rows * inputs),
        input_bn: setup.batch_norm(rows, inputs, true),
        gate: setup.random(images * inputs),
        weight: setup.param(outputs * inputs),
        y: setup.random(rows * outputs),
        bn: setup.batch_norm(rows, outputs, true),
        dout: setup.random(rows * outputs),
        keep: extras.then(|| setup.random(images)),
        da: setup.output(rows * inputs),
        five_sums: setup.output(5 * images * inputs),
    };
    let results = setup.run(pass.into(), &[pass.da, pass.five_sums]);
    let (x, w, gate) = (setup.of(pass.x), setup.weight(pass.weight), setup.of(pass.gate));
    let of = setup.of(pass.input_bn.coefficients);
    let keep = pass.keep.map_or(vec![1.0; images], |t| setup.of(t));
    let mut du = setup.of(pass.dout);
    du.iter_mut().enumerate().for_each(|(at, v)| *v *= keep[at / outputs / pixels]);
    let dy = batch_norm_backward(&setup, &pass.bn, &du, &setup.of(pass.y));
    let da: Vec<Exact> = (0..rows * inputs)
        .map(|at| sum(outputs, |k| dy[at / inputs * outputs + k] * w[k * inputs + at % inputs]))
        .collect();
    compare("da", &results[0], &da);
    let z = |at: usize| x[at] * of[2 * inputs + at % inputs] + of[3 * inputs + at % inputs];
    let a: Vec<f64> = (0..rows * inputs)
        .map(|at| silu(z(at)).0 * gate[at / inputs / pixels * inputs + at % inputs])
        .collect();
    let dw: Vec<Exact> = (0..outputs * inputs)
        .map(|at| plus(sum(rows, |i| dy[i * outputs + at / inputs] * a[i * inputs + at % inputs]), 1.0))
        .collect();
    compare("dW", &results[3][pass.weight.range()], &dw);
    let mut five = vec![Exact { value: 0.0, size: 0.0 }; 5 * images * inputs];
    for at in 0..rows * inputs {
        let (image, k) = (at / inputs / pixels, at % inputs);
        let ((silu, slope), yhat) = (silu(z(at)), (x[at] - of[k]) * of[inputs + k]);
        let factors = [silu, slope, slope, slope * yhat, slope * yhat];
        let of_da = [true, true, false, true, false];
        for (number, factor) in factors.into_iter().enumerate() {
            let one = Exact { value: 1.0, size: 1.0 };
            let da = if of_da[number] { da[at] } else { one };
            let sum = &mut five[(number * images + image) * inputs + k];
            sum.value += da.value * factor;
            // silu and silu' are exact to about 1e-7 in absolute terms where they pass through zero.
            sum.size += da.size * factor.abs().max(1.0);
        }
    }
    let size = images * inputs;
    for number in 0..5 {
        let range = number * size..(number + 1) * size;
        compare(&format!("S{number}"), &results[1][range.clone()], &five[range]);
    }
}

#[test]
fn expand_is_its_formula() {
    for (rows, inputs, outputs) in [(1, 8, 48), (100, 24, 144), (700, 16, 96), (129, 40, 200)] {
        expand_forward(rows, inputs, outputs);
    }
}

#[test]
fn expand_backward_is_its_formula() {
    // One group; slices of the weight gradient; many groups, each with its own.
    for (images, pixels, inputs, outputs) in [(3, 1, 8, 48), (5, 49, 40, 240), (3, 1000, 16, 96)] {
        for extras in [false, true] {
            expand_backward(images, pixels, inputs, outputs, extras);
        }
    }
}

#[test]
fn project_is_its_formula() {
    for (images, pixels, inputs, outputs) in [(1, 1, 32, 16), (3, 49, 144, 24), (7, 64, 528, 80)] {
        project_forward(images, pixels, inputs, outputs);
    }
}

#[test]
fn project_backward_is_its_formula() {
    // Many images a tile, one, several tiles an image, several tasks an image.
    let shapes = [(150, 1, 96, 40), (9, 49, 144, 24), (3, 196, 200, 80), (2, 2500, 32, 16)];
    for (images, pixels, inputs, outputs) in shapes {
        for extras in [false, true] {
            project_backward(images, pixels, inputs, outputs, extras);
        }
    }
}
