//! Textbook layers in f64: convolutions, dense layer, activations. Activations are NHWC, weights in PyTorch's
//! order (output, input, height, width). Each function is its definition; the only concession to speed is
//! that the innermost loop runs along contiguous memory.

use effnet::model::Window;

/// 1/(1 + e^−z).
pub fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

/// z·σ(z).
pub fn silu(z: f64) -> f64 {
    z * sigmoid(z)
}

/// d(z·σ(z))/dz = σ + z·σ·(1 − σ).
pub fn silu_slope(z: f64) -> f64 {
    let s = sigmoid(z);
    s + z * s * (1.0 - s)
}

/// The window of a pointwise convolution, which sees rows as a map one pixel wide.
pub const POINT: Window = Window { kernel: 1, stride: 1, input: 1, output: 1, pad: 0 };

/// Calls `visit(output row, input row, tap)` for each pair of pixels that a convolution connects. Taps that
/// fall on the padding are left out: they multiply zeros.
fn connections(images: usize, window: Window, mut visit: impl FnMut(usize, usize, usize)) {
    let Window { kernel, stride, input, output, pad } = window;
    for image in 0..images {
        for out_y in 0..output {
            for out_x in 0..output {
                for tap in 0..kernel * kernel {
                    let y = out_y * stride + tap / kernel;
                    let x = out_x * stride + tap % kernel;
                    if y < pad || x < pad || y - pad >= input || x - pad >= input {
                        continue;
                    }
                    let to = (image * output + out_y) * output + out_x;
                    let from = (image * input + y - pad) * input + x - pad;
                    visit(to, from, tap);
                }
            }
        }
    }
}

/// to += factor·from.
fn add_scaled(to: &mut [f64], factor: f64, from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += factor * from;
    }
}

/// A full convolution (one group): `inputs` to `outputs` channels.
#[derive(Clone, Copy)]
pub struct Convolution {
    pub images: usize,
    pub window: Window,
    pub inputs: usize,
    pub outputs: usize,
}

impl Convolution {
    /// 1×1 over `rows` pixels.
    pub fn pointwise(rows: usize, inputs: usize, outputs: usize) -> Convolution {
        Convolution { images: rows, window: POINT, inputs, outputs }
    }

    fn taps(&self) -> usize {
        self.window.kernel * self.window.kernel
    }

    /// y[o] = Σ over taps and input channels of w[o, i, tap]·x[i].
    pub fn forward(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let (inputs, outputs, taps) = (self.inputs, self.outputs, self.taps());
        let mut by_input = vec![0.0; weight.len()];
        for (at, &w) in weight.iter().enumerate() {
            let (o, i, tap) = (at / taps / inputs, at / taps % inputs, at % taps);
            by_input[(tap * inputs + i) * outputs + o] = w;
        }
        let mut y = vec![0.0; self.images * self.window.output_pixels() * outputs];
        connections(self.images, self.window, |to, from, tap| {
            let out = &mut y[to * outputs..][..outputs];
            for i in 0..inputs {
                add_scaled(out, x[from * inputs + i], &by_input[(tap * inputs + i) * outputs..][..outputs]);
            }
        });
        y
    }

    /// dx[i] = Σ over taps and output channels of w[o, i, tap]·dy[o].
    pub fn input_gradient(&self, dy: &[f64], weight: &[f64]) -> Vec<f64> {
        let (inputs, outputs, taps) = (self.inputs, self.outputs, self.taps());
        let mut by_output = vec![0.0; weight.len()];
        for (at, &w) in weight.iter().enumerate() {
            by_output[at % taps * inputs * outputs + at / taps] = w;
        }
        let mut dx = vec![0.0; self.images * self.window.input_pixels() * inputs];
        connections(self.images, self.window, |to, from, tap| {
            let out = &mut dx[from * inputs..][..inputs];
            for o in 0..outputs {
                add_scaled(out, dy[to * outputs + o], &by_output[(tap * outputs + o) * inputs..][..inputs]);
            }
        });
        dx
    }

    /// dw[o, i, tap] = Σ over pixels of dy[o]·x[i].
    pub fn weight_gradient(&self, dy: &[f64], x: &[f64]) -> Vec<f64> {
        let (inputs, outputs, taps) = (self.inputs, self.outputs, self.taps());
        let mut by_tap = vec![0.0; taps * outputs * inputs];
        connections(self.images, self.window, |to, from, tap| {
            let x = &x[from * inputs..][..inputs];
            for o in 0..outputs {
                let row = &mut by_tap[(tap * outputs + o) * inputs..][..inputs];
                add_scaled(row, dy[to * outputs + o], x);
            }
        });
        let mut dw = vec![0.0; by_tap.len()];
        for (at, &value) in by_tap.iter().enumerate() {
            dw[at % (inputs * outputs) * taps + at / (inputs * outputs)] = value;
        }
        dw
    }
}

/// A depthwise convolution: each channel with its own kernel.
#[derive(Clone, Copy)]
pub struct Depthwise {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
}

impl Depthwise {
    fn by_tap(&self, weight: &[f64]) -> Vec<f64> {
        let taps = self.window.kernel * self.window.kernel;
        (0..weight.len()).map(|at| weight[at % self.channels * taps + at / self.channels]).collect()
    }

    /// y[c] = Σ over taps of w[c, tap]·x[c].
    pub fn forward(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let (c, weight) = (self.channels, self.by_tap(weight));
        let mut y = vec![0.0; self.images * self.window.output_pixels() * c];
        connections(self.images, self.window, |to, from, tap| {
            let products = x[from * c..][..c].iter().zip(&weight[tap * c..][..c]).map(|(x, w)| x * w);
            y[to * c..][..c].iter_mut().zip(products).for_each(|(y, product)| *y += product);
        });
        y
    }

    /// dx[c] = Σ over taps of w[c, tap]·dy[c].
    pub fn input_gradient(&self, dy: &[f64], weight: &[f64]) -> Vec<f64> {
        let (c, weight) = (self.channels, self.by_tap(weight));
        let mut dx = vec![0.0; self.images * self.window.input_pixels() * c];
        connections(self.images, self.window, |to, from, tap| {
            let products = dy[to * c..][..c].iter().zip(&weight[tap * c..][..c]).map(|(dy, w)| dy * w);
            dx[from * c..][..c].iter_mut().zip(products).for_each(|(dx, product)| *dx += product);
        });
        dx
    }

    /// dw[c, tap] = Σ over pixels of dy[c]·x[c].
    pub fn weight_gradient(&self, dy: &[f64], x: &[f64]) -> Vec<f64> {
        let (c, taps) = (self.channels, self.window.kernel * self.window.kernel);
        let mut dw = vec![0.0; c * taps];
        connections(self.images, self.window, |to, from, tap| {
            for channel in 0..c {
                dw[channel * taps + tap] += dy[to * c + channel] * x[from * c + channel];
            }
        });
        dw
    }
}

/// A dense layer over a batch: y = x·Wᵀ + b, with W [outputs, inputs].
#[derive(Clone, Copy)]
pub struct DenseLayer {
    pub images: usize,
    pub inputs: usize,
    pub outputs: usize,
}

/// What [`DenseLayer::backward`] gives.
pub struct DenseGradients {
    pub input: Vec<f64>,
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
}

impl DenseLayer {
    pub fn forward(&self, x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
        let mut y = Vec::with_capacity(self.images * self.outputs);
        for x in x.chunks_exact(self.inputs) {
            for (row, b) in weight.chunks_exact(self.inputs).zip(bias) {
                y.push(b + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
            }
        }
        y
    }

    /// dx = dy·W, dW = dyᵀ·x, db = Σ over the batch of dy.
    pub fn backward(&self, dy: &[f64], x: &[f64], weight: &[f64]) -> DenseGradients {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let mut input = vec![0.0; self.images * inputs];
        let (mut dweight, mut bias) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
        for image in 0..self.images {
            for o in 0..outputs {
                let slope = dy[image * outputs + o];
                bias[o] += slope;
                add_scaled(&mut input[image * inputs..][..inputs], slope, &weight[o * inputs..][..inputs]);
                add_scaled(&mut dweight[o * inputs..][..inputs], slope, &x[image * inputs..][..inputs]);
            }
        }
        DenseGradients { input, weight: dweight, bias }
    }
}

/// Mean over the pixels of each image and channel: [images·pixels, C] → [images, C].
pub fn average_pool(a: &[f64], images: usize, pixels: usize, channels: usize) -> Vec<f64> {
    let mut mean = vec![0.0; images * channels];
    for (row, a) in a.chunks_exact(channels).enumerate() {
        add_scaled(&mut mean[row / pixels * channels..][..channels], 1.0 / pixels as f64, a);
    }
    mean
}
