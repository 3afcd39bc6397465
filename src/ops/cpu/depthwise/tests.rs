//! The passes against loops in f64 written from the formula, over windows, paddings, sides and channels that
//! reach every block width, parity, cut window and vector tail; and equal bits for any number of threads.

use crate::model::{Padding, Window};
use crate::ops::cpu::{CpuDevice, CpuOps};
use crate::ops::*;

/// Uniform in −1…1, the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    /// mean, r, scale, shift.
    fn coefficients(&mut self, channels: usize) -> Vec<f32> {
        let mut rows = self.take(4 * channels);
        rows[channels..2 * channels].iter_mut().for_each(|r| *r = r.abs() + 0.5);
        rows
    }
}

/// Lays out tensors and parameters, then runs one pass.
#[derive(Default)]
struct Bench {
    tensors: Tensors,
    contents: Vec<(Tensor, Vec<f32>)>,
    parameters: Vec<f32>,
}

impl Bench {
    fn tensor(&mut self, values: Vec<f32>) -> Tensor {
        let tensor = self.tensors.new_tensor("", values.len(), Kind::Float);
        self.contents.push((tensor, values));
        tensor
    }

    fn param(&mut self, values: Vec<f32>) -> Param {
        let param = Param { offset: self.parameters.len(), elements: values.len() };
        self.parameters.extend(values);
        param
    }

    fn batch_norm(&mut self, channels: usize, rows: usize, numbers: &mut Numbers) -> BatchNorm {
        BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: self.param(numbers.take(channels)),
            bias: self.param(numbers.take(channels)),
            running_mean: self.param(numbers.take(channels)),
            running_var: self.param(vec![1.0; channels]),
            momentum: 0.1,
            eps: 1e-5,
            statistics: Statistics::Batch,
            coefficients: self.tensor(numbers.coefficients(channels)),
            sums: self.tensor(numbers.take(2 * channels)),
        }
    }

    fn value(&self, tensor: Tensor) -> &[f32] {
        &self.contents[tensor.id as usize].1
    }

    /// Runs the pass; gradients start at 1. Returns the tensors asked for and the gradients.
    fn run(&self, threads: usize, pass: Pass, wanted: &[Tensor]) -> (Vec<Vec<f32>>, Vec<f32>) {
        let device = CpuDevice { threads };
        let plan = Plan::new(&device, &[pass], &self.tensors, wanted);
        let total = self.parameters.len();
        let mut ops = CpuOps::new(StateSize::new(total, total), &[&plan], threads).unwrap();
        ops.bind(&plan).unwrap();
        ops.write_state(Buffer::Parameters, &self.parameters).unwrap();
        ops.write_state(Buffer::Gradients, &vec![1.0; total]).unwrap();
        pass.tensors(&mut |tensor, _| ops.upload(tensor, self.value(tensor)).unwrap());
        ops.run(&pass).unwrap();
        let mut gradients = vec![0.0; total];
        ops.read_state(Buffer::Gradients, &mut gradients).unwrap();
        let download = |tensor: &Tensor| {
            let mut out = vec![0.0; tensor.elements];
            ops.download(*tensor, &mut out).unwrap();
            out
        };
        (wanted.iter().map(download).collect(), gradients)
    }
}

/// NaN fails too.
#[allow(clippy::neg_cmp_op_on_partial_ord)]
fn close(got: &[f32], expected: &[f64], scale: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (*got as f64 - expected).abs();
        if !(error <= 2e-6 * (scale + expected.abs())) {
            panic!("{what}[{i}]: {got}, expected {expected}");
        }
    }
}

fn silu(z: f64) -> (f64, f64) {
    let s = 1.0 / (1.0 + (-z).exp());
    (z * s, s * (1.0 + z * (1.0 - s)))
}

#[derive(Clone, Copy, Debug)]
struct Case {
    images: usize,
    channels: usize,
    window: Window,
    identity: bool,
}

impl Case {
    /// Calls `visit` with (output index, input index, weight index) of every product.
    fn products(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let Window { kernel, stride, input, output, pad } = self.window;
        let source = |o: usize, k: usize| (o * stride + k).checked_sub(pad).filter(|i| *i < input);
        for n in 0..self.images {
            for (oy, ox) in (0..output * output).map(|o| (o / output, o % output)) {
                for (ky, kx) in (0..kernel * kernel).map(|k| (k / kernel, k % kernel)) {
                    let (Some(iy), Some(ix)) = (source(oy, ky), source(ox, kx)) else { continue };
                    for c in 0..self.channels {
                        let from = ((n * output + oy) * output + ox) * self.channels + c;
                        let to = ((n * input + iy) * input + ix) * self.channels + c;
                        visit(from, to, (c * kernel + ky) * kernel + kx);
                    }
                }
            }
        }
    }

    fn sizes(&self) -> (usize, usize, usize) {
        let pixels = self.images * self.channels;
        let weights = self.channels * self.window.kernel * self.window.kernel;
        (pixels * self.window.input_pixels(), pixels * self.window.output_pixels(), weights)
    }

    /// The activated input and its slope.
    fn activated(&self, x: &[f32], bn: &[f32]) -> (Vec<f64>, Vec<f64>) {
        let c = self.channels;
        let one = |(i, x): (usize, &f32)| {
            let (scale, shift) = (bn[2 * c + i % c] as f64, bn[3 * c + i % c] as f64);
            if self.identity { (*x as f64, 1.0) } else { silu(*x as f64 * scale + shift) }
        };
        x.iter().enumerate().map(one).unzip()
    }

    fn forward(&self, threads: &[usize]) {
        let mut numbers = Numbers(7);
        let mut b = Bench::default();
        let (inputs, outputs, weights) = self.sizes();
        let input_bn = b.batch_norm(self.channels, inputs / self.channels, &mut numbers);
        let pass = DepthwiseForward {
            images: self.images,
            window: self.window,
            channels: self.channels,
            x: b.tensor(numbers.take(inputs)),
            input_bn: (!self.identity).then_some(input_bn),
            weight: b.param(numbers.take(weights)),
            y: b.tensor(vec![f32::NAN; outputs]),
            bn: b.batch_norm(self.channels, outputs / self.channels, &mut numbers),
        };
        let (a, _) = self.activated(b.value(pass.x), b.value(input_bn.coefficients));
        let mut y = vec![0.0; outputs];
        let w = &b.parameters[pass.weight.range()];
        self.products(|o, i, k| y[o] += a[i] * w[k] as f64);
        let rows = pass.bn.rows as f64;
        let mut bn = [vec![], vec![]];
        for c in 0..self.channels {
            let column = || y.iter().skip(c).step_by(self.channels);
            let mean = column().sum::<f64>() / rows;
            let variance = column().map(|y| (y - mean) * (y - mean)).sum::<f64>() / rows;
            bn[0].push(mean);
            bn[1].push((variance + 1e-5).sqrt());
        }
        let wanted = [pass.y, pass.bn.coefficients];
        let results: Vec<_> =
            threads.iter().map(|t| b.run(*t, Pass::DepthwiseForward(pass), &wanted)).collect();
        let (got, _) = &results[0];
        let what = format!("{self:?}");
        close(&got[0], &y, 2.0, &format!("y of {what}"));
        close(&got[1][..self.channels], &bn[0], 1.0, &format!("mean of {what}"));
        // 1/r: r itself is beyond any bound where the variance is next to nothing.
        let deviation: Vec<f32> = got[1][self.channels..2 * self.channels].iter().map(|r| 1.0 / r).collect();
        close(&deviation, &bn[1], 2.0, &format!("deviation of {what}"));
        assert!(results.iter().all(|r| r == &results[0]), "threads change {what}");
    }

    fn backward(&self, threads: &[usize]) {
        let mut numbers = Numbers(11);
        let mut b = Bench::default();
        let (inputs, outputs, weights) = self.sizes();
        let (n, c) = (self.images, self.channels);
        let pixels = self.window.input_pixels();
        let input_bn = b.batch_norm(c, inputs / c, &mut numbers);
        let previous_y = b.tensor(numbers.take(inputs));
        let keep = b.tensor(numbers.take(n));
        let shortcut = b.tensor(numbers.take(inputs));
        let previous = PreviousBlock { y: previous_y, bn: input_bn, keep: Some(keep), pixels };
        let pass = DepthwiseBackward {
            images: n,
            window: self.window,
            channels: c,
            x: b.tensor(numbers.take(inputs)),
            input: match self.identity {
                true => DepthwiseInput::Identity { shortcut: Some(shortcut), previous },
                false => DepthwiseInput::Normalised(input_bn),
            },
            weight: b.param(numbers.take(weights)),
            y: b.tensor(numbers.take(outputs)),
            bn: b.batch_norm(c, outputs / c, &mut numbers),
            da: b.tensor(numbers.take(outputs)),
            gate: b.tensor(numbers.take(n * c)),
            squeeze_gradient: b.tensor(numbers.take(n * c)),
            dx: b.tensor(vec![f32::NAN; inputs]),
        };
        let at = |t: Tensor, i: usize| b.value(t)[i] as f64;
        let (bn, rows) = (pass.bn, pass.bn.rows as f64);
        let dy: Vec<f64> = (0..outputs)
            .map(|o| {
                let (ch, image) = (o % c, o / c / self.window.output_pixels());
                let [mean, r, scale, shift] = [0, 1, 2, 3].map(|row| at(bn.coefficients, row * c + ch));
                let y = at(pass.y, o);
                let (_, slope) = silu(y * scale + shift);
                let gate = at(pass.gate, image * c + ch);
                let du = (at(pass.da, o) * gate + at(pass.squeeze_gradient, image * c + ch)) * slope;
                scale * (du - at(bn.sums, ch) / rows - (y - mean) * r * at(bn.sums, c + ch) / rows)
            })
            .collect();
        let (a, slope) = self.activated(b.value(pass.x), b.value(input_bn.coefficients));
        let mut dx = vec![0.0; inputs];
        let mut dw = vec![0.0; weights];
        let w = &b.parameters[pass.weight.range()];
        self.products(|o, i, k| {
            dx[i] += dy[o] * w[k] as f64;
            dw[k] += dy[o] * a[i];
        });
        let mut sums = vec![0.0; 2 * c];
        for i in 0..inputs {
            let mut du = dx[i] * slope[i];
            let mut y = at(pass.x, i);
            dx[i] = du;
            if self.identity {
                dx[i] = du + at(shortcut, i);
                du = dx[i] * at(keep, i / c / pixels);
                y = at(previous_y, i);
            }
            sums[i % c] += du;
            sums[c + i % c] +=
                du * (y - at(input_bn.coefficients, i % c)) * at(input_bn.coefficients, c + i % c);
        }
        let wanted = [pass.dx, input_bn.sums];
        let results: Vec<_> =
            threads.iter().map(|t| b.run(*t, Pass::DepthwiseBackward(pass), &wanted)).collect();
        let (got, gradients) = &results[0];
        let what = format!("{self:?}");
        // A sum of m terms of size 1 is compared at the scale of √m.
        let spread = (inputs as f64 / c as f64).sqrt();
        let plus_one = |v: &[f64]| v.iter().map(|v| v + 1.0).collect::<Vec<_>>();
        close(&got[0], &dx, 4.0, &format!("dx of {what}"));
        close(&got[1], &sums, 4.0 * spread, &format!("sums of {what}"));
        let of = |p: Param| &gradients[p.range()];
        close(of(pass.weight), &plus_one(&dw), 4.0 * spread, &format!("dw of {what}"));
        close(of(input_bn.bias), &plus_one(&sums[..c]), 4.0 * spread, &format!("dβ of {what}"));
        close(of(input_bn.weight), &plus_one(&sums[c..]), 4.0 * spread, &format!("dγ of {what}"));
        assert!(results.iter().all(|r| r == &results[0]), "threads change {what}");
    }
}

fn each_case(run: impl Fn(Case)) {
    let mut number = 0;
    for kernel in [3, 5] {
        for stride in [1, 2] {
            for padding in [Padding::Symmetric, Padding::Same] {
                for side in [1, 2, 3, 4, 5, 7, 8, 9, 14, 19] {
                    for channels in [8, 16, 24, 40, 96, 13] {
                        number += 1;
                        let window = Window::new(kernel, stride, side, padding);
                        run(Case { images: number % 3 + 1, channels, window, identity: number % 7 == 0 });
                    }
                }
            }
        }
    }
}

#[test]
fn forward_is_the_formula() {
    each_case(|case| case.forward(&[1]));
}

#[test]
fn backward_is_the_formula() {
    each_case(|case| case.backward(&[1]));
}

#[test]
fn several_groups_and_slices_on_any_number_of_threads() {
    for (kernel, stride, side, channels) in [(5, 1, 2, 300), (3, 2, 5, 152), (5, 2, 14, 200), (3, 1, 1, 272)]
    {
        for identity in [false, true] {
            let window = Window::new(kernel, stride, side, Padding::Same);
            let case = Case { images: 37, channels, window, identity };
            case.forward(&[1, 2, 5]);
            case.backward(&[1, 2, 5]);
        }
    }
}
