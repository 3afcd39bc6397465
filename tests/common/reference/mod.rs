//! The oracle: every pass once more, in f64, by naive loops from the textbook's formulas.
//!
//! It shares nothing with the fast passes: no partial sums, no fusion, no shared helper. Tensors are vectors
//! by handle, so nothing overlaps and a tensor that is read before it is written is a panic. Where a pass is
//! given sums that another pass took (`bn.sums`), the oracle computes them again from their definition. It
//! also notes which tensors a pass touched, so that the declaration the planner relies on can be checked.
//!
//! Constants arrive as fp32. One that stands for a decimal (0.1, 1e-5) is read as that decimal, so that the
//! oracle follows the formula and not the rounding of its constants: see [`decimal`].

pub mod backward;
pub mod batch_norm;
pub mod forward;
pub mod layers;
pub mod optimiser;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use batch_norm::Norm;
use effnet::ops::*;
use effnet::random::{Purpose, draw, unit};

/// The shortest decimal that rounds to this fp32 number, as f64.
pub fn decimal(value: f32) -> f64 {
    value.to_string().parse().expect("a float's text is a float")
}

/// The oracle for the planner: eight bytes an element, no scratch.
pub struct ReferenceDevice;

impl Device for ReferenceDevice {
    fn element_bytes(&self, _: Kind) -> usize {
        8
    }
    fn workspace(&self, _: &Pass) -> Workspace {
        Workspace::default()
    }
    fn threads(&self) -> usize {
        1
    }
}

/// Handles of the tensors that passes touched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Touched {
    pub read: BTreeSet<u32>,
    pub written: BTreeSet<u32>,
}

#[derive(Default)]
pub struct Reference {
    tensors: HashMap<u32, Rc<Vec<f64>>>,
    labels: HashMap<u32, Vec<u32>>,
    pub parameters: Vec<f64>,
    pub gradients: Vec<f64>,
    pub slots: [Vec<f64>; 2],
    pub decay_factors: Vec<f64>,
    pub ema: Vec<f64>,
    ema_weights: bool,
    step: StepParams,
    /// Steps that were skipped.
    skipped: u32,
    touched: RefCell<Touched>,
    /// Sums that a pass was given, computed again.
    sums: RefCell<HashMap<u32, Vec<f64>>>,
}

impl Reference {
    pub fn new(trainable: usize, total: usize) -> Reference {
        Reference {
            parameters: vec![0.0; total],
            gradients: vec![0.0; trainable],
            slots: [vec![0.0; trainable], vec![0.0; trainable]],
            decay_factors: vec![0.0; trainable],
            ema: vec![0.0; total],
            ..Reference::default()
        }
    }

    /// Sets a tensor without the detour through fp32.
    pub fn put(&mut self, tensor: Tensor, values: Vec<f64>) {
        assert_eq!(values.len(), tensor.elements, "tensor {}", tensor.id);
        self.touched.borrow_mut().written.insert(tensor.id);
        self.tensors.insert(tensor.id, Rc::new(values));
    }

    /// A tensor's values.
    pub fn get(&self, tensor: Tensor) -> Rc<Vec<f64>> {
        self.touched.borrow_mut().read.insert(tensor.id);
        let values = self.tensors.get(&tensor.id);
        let values = values.unwrap_or_else(|| panic!("tensor {} is read before it is written", tensor.id));
        assert_eq!(values.len(), tensor.elements, "tensor {}", tensor.id);
        values.clone()
    }

    /// What was touched since the last call.
    pub fn take_touched(&self) -> Touched {
        self.touched.take()
    }

    /// By tensor, the sums that passes were given and that the oracle computed again.
    pub fn derived_sums(&self) -> HashMap<u32, Vec<f64>> {
        self.sums.take()
    }

    pub fn state(&mut self, buffer: Buffer) -> &mut Vec<f64> {
        match buffer {
            Buffer::Parameters => &mut self.parameters,
            Buffer::Gradients => &mut self.gradients,
            Buffer::Slot(number) => &mut self.slots[number],
            Buffer::DecayFactors => &mut self.decay_factors,
            Buffer::Ema => &mut self.ema,
        }
    }

    /// A weight of the forward pass: raw or EMA.
    fn weight(&self, param: Param) -> Vec<f64> {
        let buffer = if self.ema_weights { &self.ema } else { &self.parameters };
        buffer[param.range()].to_vec()
    }

    /// A weight of the backward pass.
    fn raw_weight(&self, param: Param) -> Vec<f64> {
        self.parameters[param.range()].to_vec()
    }

    fn add_gradient(&mut self, param: Param, values: &[f64]) {
        assert_eq!(values.len(), param.elements);
        let gradient = &mut self.gradients[param.range()];
        gradient.iter_mut().zip(values).for_each(|(gradient, value)| *gradient += value);
    }

    /// μ and r as the forward pass left them, with γ and β of the chosen weights.
    fn norm(&self, bn: &BatchNorm, weights: fn(&Reference, Param) -> Vec<f64>) -> Norm {
        let coefficients = self.get(bn.coefficients);
        let row = |number: usize| coefficients[number * bn.channels..][..bn.channels].to_vec();
        Norm { mean: row(0), r: row(1), gamma: weights(self, bn.weight), beta: weights(self, bn.bias) }
    }

    fn set_coefficients(&mut self, bn: &BatchNorm, mean: Vec<f64>, variance: &[f64]) {
        let (gamma, beta) = (self.weight(bn.weight), self.weight(bn.bias));
        let r: Vec<f64> = variance.iter().map(|v| 1.0 / (v + decimal(bn.eps)).sqrt()).collect();
        let scale: Vec<f64> = gamma.iter().zip(&r).map(|(gamma, r)| gamma * r).collect();
        let shift = (0..bn.channels).map(|c| beta[c] - mean[c] * scale[c]).collect();
        self.put(bn.coefficients, [mean, r, scale, shift].concat());
    }

    /// The statistics of a stored output: coefficients, and the running ones moved. PyTorch's running
    /// variance is the unbiased one.
    pub fn take_statistics(&mut self, bn: &BatchNorm, y: &[f64]) {
        if bn.statistics == Statistics::Running {
            return;
        }
        assert_eq!(y.len(), bn.rows * bn.channels);
        let (mean, variance) = batch_norm::statistics(y, bn.channels);
        let unbiased = bn.rows as f64 / (bn.rows as f64 - 1.0).max(1.0);
        let momentum = decimal(bn.momentum);
        for c in 0..bn.channels {
            let running = &mut self.parameters[bn.running_mean.offset + c];
            *running = (1.0 - momentum) * *running + momentum * mean[c];
            let running = &mut self.parameters[bn.running_var.offset + c];
            *running = (1.0 - momentum) * *running + momentum * variance[c] * unbiased;
        }
        self.set_coefficients(bn, mean, &variance);
    }

    /// The parameter gradients of a batch norm, given the gradient at its output.
    fn finish_norm(&mut self, bn: &BatchNorm, y: &[f64], du: &[f64]) {
        let (beta, gamma) = self.norm(bn, Reference::raw_weight).parameter_gradients(du, y);
        self.fill_sums(bn, beta, gamma);
    }

    fn fill_sums(&mut self, bn: &BatchNorm, beta: Vec<f64>, gamma: Vec<f64>) {
        self.add_gradient(bn.bias, &beta);
        self.add_gradient(bn.weight, &gamma);
        self.put(bn.sums, [beta, gamma].concat());
    }

    /// A stochastic-depth factor for every image.
    fn keep(&self, keep: Option<Tensor>, images: usize) -> Rc<Vec<f64>> {
        keep.map_or_else(|| Rc::new(vec![1.0; images]), |keep| self.get(keep))
    }
}

/// Whether a draw falls below the rate, as fp32 decides it, and the factor in f64.
fn factor(bits: u32, rate: f32) -> f64 {
    if unit(bits) < rate { 0.0 } else { 1.0 / (1.0 - decimal(rate)) }
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

fn round_into(values: &[f64], out: &mut [f32]) {
    assert_eq!(values.len(), out.len());
    out.iter_mut().zip(values).for_each(|(out, &value)| *out = value as f32);
}

impl Ops for Reference {
    fn bind(&mut self, _: &Plan) -> Result {
        self.tensors.clear();
        self.labels.clear();
        Ok(())
    }

    fn set_step(&mut self, step: StepParams) -> Result {
        self.step = step;
        Ok(())
    }

    fn use_weights(&mut self, weights: Weights) -> Result {
        self.ema_weights = weights == Weights::Ema;
        Ok(())
    }

    fn zero_gradients(&mut self) -> Result {
        self.gradients.fill(0.0);
        Ok(())
    }

    fn end_step(&mut self) -> Result {
        Ok(())
    }

    fn set_loss_scale(&mut self, state: LossScale) -> Result {
        self.skipped = state.skipped;
        Ok(())
    }

    fn take_figures(&mut self, _: bool) -> Result<Option<StepFigures>> {
        Ok(None)
    }

    fn start_profile(&mut self) -> Result {
        Ok(())
    }

    fn take_profile(&mut self) -> Result<ProfileReport> {
        Ok(ProfileReport::default())
    }

    fn read_state(&mut self, buffer: Buffer, out: &mut [f32]) -> Result {
        round_into(self.state(buffer), out);
        Ok(())
    }

    fn write_state(&mut self, buffer: Buffer, values: &[f32]) -> Result {
        assert_eq!(self.state(buffer).len(), values.len());
        *self.state(buffer) = to_f64(values);
        Ok(())
    }

    fn upload(&mut self, tensor: Tensor, values: &[f32]) -> Result {
        self.put(tensor, to_f64(values));
        Ok(())
    }

    fn upload_labels(&mut self, tensor: Tensor, labels: &Labels) -> Result {
        assert_eq!(labels.words(), tensor.elements);
        self.labels.insert(tensor.id, labels.pieces().concat());
        Ok(())
    }

    fn upload_pixels(&mut self, image: Tensor, pixels: &[u8], mean: [f32; 3], deviation: [f32; 3]) -> Result {
        let value = |(at, &pixel): (usize, &u8)| {
            (pixel as f64 / 255.0 - decimal(mean[at % 3])) / decimal(deviation[at % 3])
        };
        self.put(image, pixels.iter().enumerate().map(value).collect());
        Ok(())
    }

    fn download(&mut self, tensor: Tensor, out: &mut [f32]) -> Result {
        round_into(&self.get(tensor), out);
        Ok(())
    }

    fn run(&mut self, pass: &Pass) -> Result {
        match pass {
            Pass::DropPathMask(p) => self.drop_path(p),
            Pass::DropoutMask(p) => self.dropout(p),
            Pass::BatchNormInference(p) => self.inference(&p.bn),
            Pass::StemForward(p) => self.stem(p),
            Pass::ExpandForward(p) => self.expand(p),
            Pass::DepthwiseForward(p) => self.depthwise(p),
            Pass::DepthwiseInference(p) => self.depthwise_inference(p),
            Pass::ExpandDepthwiseForward(p) => {
                self.expand(&p.expand);
                self.depthwise(&p.depthwise);
            }
            Pass::ExpandDepthwiseInference(p) => self.expand_depthwise_inference(p),
            Pass::SqueezeForward(p) => self.squeeze(p),
            Pass::SqueezeInference(p) => self.squeeze_inference(p),
            Pass::ProjectForward(p) => self.project(p),
            Pass::ProjectInference(p) => self.project_inference(p),
            Pass::ResidualForward(p) => self.residual(p),
            Pass::HeadForward(p) => self.head(p),
            Pass::Loss(p) => self.cross_entropy(p),
            Pass::HeadBackward(p) => self.head_gradient(p),
            Pass::ProjectBackward(p) => self.project_gradient(p),
            Pass::SqueezeBackward(p) => self.squeeze_gradient(p),
            Pass::DepthwiseBackward(p) => self.depthwise_gradient(p),
            Pass::ExpandBackward(p) => self.expand_gradient(p),
            Pass::ExpandDepthwiseBackward(p) => self.expand_depthwise_gradient(p),
            Pass::StemBackward(p) => self.stem_gradient(p),
            Pass::Update(p) => self.optimise(p),
        }
        Ok(())
    }
}

impl Reference {
    fn drop_path(&mut self, p: &DropPathMask) {
        let StepParams { seed, step, first_position, .. } = self.step;
        let value = |image: usize| {
            let position = first_position + image as u64;
            factor(draw(seed, position, step as u32, Purpose::DropPath, p.block)[0], p.rate)
        };
        self.put(p.keep, (0..p.images).map(value).collect());
    }

    fn dropout(&mut self, p: &DropoutMask) {
        let StepParams { seed, step, first_position, .. } = self.step;
        let value = |at: usize| {
            let (position, feature) = (first_position + (at / p.channels) as u64, at % p.channels);
            let four = draw(seed, position, step as u32, Purpose::Dropout, feature as u32 / 4);
            factor(four[feature % 4], p.rate)
        };
        self.put(p.mask, (0..p.images * p.channels).map(value).collect());
    }

    fn inference(&mut self, bn: &BatchNorm) {
        let (mean, variance) = (self.weight(bn.running_mean), self.weight(bn.running_var));
        self.set_coefficients(bn, mean, &variance);
    }
}
