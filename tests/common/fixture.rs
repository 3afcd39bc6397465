//! One pass on the CPU and on the oracle, from the same inputs.
//!
//! A [`Fixture`] collects what a pass needs; [`Fixture::check`] runs it and compares everything there is:
//!
//! - tensors that the pass writes (which hold NaN before), by relative L2 error: ‖a − b‖ ≤ bound·‖b‖;
//! - gradients, which must be *added* to what the buffer held;
//! - running statistics;
//! - what the pass does not write, which must keep its bits: inputs, other gradients, weights;
//! - the results of one, two and three threads, which must be equal bit by bit;
//! - what the oracle touched against what the pass declares to the memory planner.
//!
//! The statistics of a stored output are judged by the values that the pass itself stored: those are compared
//! with the oracle's on their own. Otherwise a channel that happens to vary little would amplify the rounding
//! of the convolution without limit.

use std::collections::BTreeMap;

use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

use super::formula::Formula;
use super::reference::Reference;
use super::reference::batch_norm::{Norm, statistics};

/// Half the distance between 1 and the next fp32 number.
pub const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// The bound for sums of `terms` products in fp32.
///
/// Each of the additions rounds a partial sum, which grows like the square root of its number of terms; the
/// errors add like a random walk, too. So the relative error is near 0.2·√terms·UNIT, of which this is
/// twenty times. The constant allows for the functions on the way (e^z within 2e-7, a division, γ·ŷ + β):
/// sixteen roundings. A wrong formula is off by 1e-3 or more.
pub fn tolerance(terms: usize) -> f64 {
    UNIT * (16.0 + 4.0 * (terms as f64).sqrt())
}

pub struct Fixture {
    pub name: String,
    pub tensors: Tensors,
    pub weights: Weights,
    handles: Vec<Tensor>,
    inputs: BTreeMap<u32, Vec<f32>>,
    labels: BTreeMap<u32, Vec<u32>>,
    /// Of how many vectors a tensor is made, where they are judged one by one.
    rows: BTreeMap<u32, usize>,
    params: Vec<(String, Param)>,
    values: Vec<f32>,
}

impl Fixture {
    /// `name` says what is tested, for messages; the values follow from it.
    pub fn new(name: impl Into<String>) -> Fixture {
        Fixture {
            name: name.into(),
            tensors: Tensors::default(),
            weights: Weights::Raw,
            handles: Vec::new(),
            inputs: BTreeMap::new(),
            labels: BTreeMap::new(),
            rows: BTreeMap::new(),
            params: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Numbers for `label`, uniform in [low, high).
    pub fn noise(&self, label: &str, count: usize, low: f64, high: f64) -> Vec<f32> {
        Formula::of(&format!("{}/{label}", self.name)).values(count, low, high)
    }

    /// Values [rows, channels] as a convolution may give them: each channel with a mean and a deviation of
    /// its own.
    pub fn activation(&self, label: &str, rows: usize, channels: usize) -> Vec<f32> {
        let mean = self.noise(&format!("{label} mean"), channels, -1.0, 1.0);
        let width = self.noise(&format!("{label} width"), channels, 0.5, 3.0);
        let mut values = self.noise(label, rows * channels, -1.0, 1.0);
        for (at, value) in values.iter_mut().enumerate() {
            *value = mean[at % channels] + width[at % channels] * *value;
        }
        values
    }

    /// A tensor that the pass writes.
    pub fn output(&mut self, label: &str, elements: usize) -> Tensor {
        let tensor = self.tensors.new_tensor(label, elements, Kind::Float);
        self.handles.push(tensor);
        tensor
    }

    /// A tensor that the pass writes, made of `rows` vectors of different meaning.
    pub fn output_rows(&mut self, label: &str, rows: usize, elements: usize) -> Tensor {
        let tensor = self.output(label, rows * elements);
        self.rows.insert(tensor.id, rows);
        tensor
    }

    pub fn input(&mut self, label: &str, values: Vec<f32>) -> Tensor {
        let tensor = self.output(label, values.len());
        self.inputs.insert(tensor.id, values);
        tensor
    }

    pub fn input_noise(&mut self, label: &str, elements: usize, low: f64, high: f64) -> Tensor {
        let values = self.noise(label, elements, low, high);
        self.input(label, values)
    }

    pub fn input_labels(&mut self, labels: Vec<u32>) -> Tensor {
        let tensor = self.tensors.new_tensor("labels", labels.len(), Kind::Index);
        self.labels.insert(tensor.id, labels);
        tensor
    }

    /// Stochastic-depth factors: none, or some images dropped (the first of several is).
    pub fn keep(&mut self, label: &str, images: usize, drops: bool) -> Option<Tensor> {
        let factor = |image: usize| if image % 3 == 0 && images > 1 { 0.0 } else { 1.25 };
        drops.then(|| self.input(label, (0..images).map(factor).collect()))
    }

    pub fn param(&mut self, label: &str, elements: usize, low: f64, high: f64) -> Param {
        let values = self.noise(label, elements, low, high);
        self.param_of(label, values)
    }

    pub fn param_of(&mut self, label: &str, values: Vec<f32>) -> Param {
        let param = Param { offset: self.values.len(), elements: values.len() };
        self.values.extend(values);
        self.params.push((label.to_string(), param));
        param
    }

    /// A weight whose outputs are about as large as its inputs.
    pub fn weight(&mut self, label: &str, elements: usize, fan: usize) -> Param {
        let bound = (3.0 / fan as f64).sqrt();
        self.param(label, elements, -bound, bound)
    }

    pub fn dense(&mut self, label: &str, inputs: usize, outputs: usize) -> Dense {
        Dense {
            weight: self.weight(&format!("{label} weight"), inputs * outputs, inputs),
            bias: self.param(&format!("{label} bias"), outputs, -0.5, 0.5),
            inputs,
            outputs,
        }
    }

    /// A batch norm whose coefficients and sums the pass writes.
    pub fn norm(&mut self, label: &str, channels: usize, rows: usize) -> BatchNorm {
        BatchNorm {
            channels,
            rows,
            weight: self.param(&format!("{label} weight"), channels, 0.5, 1.5),
            bias: self.param(&format!("{label} bias"), channels, -0.5, 0.5),
            running_mean: self.param(&format!("{label} running mean"), channels, -0.5, 0.5),
            running_var: self.param(&format!("{label} running variance"), channels, 0.5, 1.5),
            momentum: 0.1,
            eps: 1e-3,
            statistics: Statistics::Batch,
            coefficients: self.output_rows(&format!("{label} coefficients"), 4, channels),
            sums: self.output_rows(&format!("{label} sums"), 2, channels),
        }
    }

    /// A batch norm that has seen y [rows, channels]: its coefficients are an input.
    ///
    /// Fewer than four rows may vary so little that y − μ cancels; then the statistics are those of other
    /// values, as in inference.
    pub fn norm_of(&mut self, label: &str, y: &[f32], channels: usize) -> BatchNorm {
        let bn = self.norm(label, channels, y.len() / channels);
        let norm = match bn.rows {
            0..4 => self.norm_values(&bn, &self.activation("other values", 64, channels)),
            _ => self.norm_values(&bn, y),
        };
        let scale: Vec<f64> = norm.gamma.iter().zip(&norm.r).map(|(gamma, r)| gamma * r).collect();
        let shift = (0..channels).map(|c| norm.beta[c] - norm.mean[c] * scale[c]).collect();
        let all = [norm.mean, norm.r, scale, shift].concat();
        self.inputs.insert(bn.coefficients.id, all.into_iter().map(|v| v as f32).collect());
        bn
    }

    fn norm_values(&self, bn: &BatchNorm, y: &[f32]) -> Norm {
        let (mean, variance) = statistics(&doubles(y), bn.channels);
        let r = variance.iter().map(|v| 1.0 / (v + bn.eps as f64).sqrt()).collect();
        let of = |param: Param| doubles(&self.values[param.range()]);
        Norm { mean, r, gamma: of(bn.weight), beta: of(bn.bias) }
    }

    /// Makes the sums of a batch norm an input: those of `du` at y.
    pub fn set_sums(&mut self, bn: &BatchNorm, y: &[f32], du: &[f64]) {
        let (beta, gamma) = self.norm_values(bn, y).parameter_gradients(du, &doubles(y));
        let sums = [beta, gamma].concat();
        self.inputs.insert(bn.sums.id, sums.into_iter().map(|v| v as f32).collect());
    }

    /// BN(y) in f64, for tests that have to make consistent inputs.
    pub fn normed(&self, bn: &BatchNorm, y: &[f32]) -> Vec<f64> {
        self.norm_values(bn, y).forward(&doubles(y))
    }

    pub fn value(&self, tensor: Tensor) -> &[f32] {
        &self.inputs[&tensor.id]
    }

    /// Hands a device the state and the tensors that `pass` touches.
    fn load<O: Ops>(&self, ops: &mut O, pass: &Pass) -> Result {
        // The buffer that is not to be used holds NaN.
        let unused = vec![f32::NAN; self.values.len()];
        let (raw, ema) = match self.weights {
            Weights::Raw => (&self.values, &unused),
            Weights::Ema => (&unused, &self.values),
        };
        ops.write_state(Buffer::Parameters, raw)?;
        ops.write_state(Buffer::Ema, ema)?;
        ops.use_weights(self.weights)?;
        let mut touched = Vec::new();
        pass.tensors(&mut |tensor, _| touched.push(tensor));
        for tensor in touched {
            if let Some(values) = self.inputs.get(&tensor.id) {
                ops.upload(tensor, values)?;
            } else if let Some(labels) = self.labels.get(&tensor.id) {
                ops.upload_labels(tensor, labels)?;
            }
        }
        Ok(())
    }

    fn on_reference(&self, pass: &Pass) -> Reference {
        let total = self.values.len();
        let mut ops = Reference::new(total, total);
        self.load(&mut ops, pass).unwrap();
        ops.take_touched();
        run(&mut ops, pass).unwrap();
        ops
    }

    fn on_cpu(&self, pass: &Pass, threads: usize, gradients: &[f32]) -> Outcome {
        let device = CpuDevice { threads };
        let mut recorder = Recorder::new(&device);
        run(&mut recorder, pass).unwrap();
        let plan = recorder.plan(&self.tensors, &self.handles);
        let total = self.values.len();
        let mut ops = CpuOps::new(total, total, &[&plan], threads).unwrap();
        ops.bind(&plan).unwrap();
        ops.write_state(Buffer::Gradients, gradients).unwrap();
        let mut written = Vec::new();
        pass.tensors(&mut |tensor, writes| {
            if writes {
                written.push(tensor);
            }
        });
        for &tensor in &written {
            ops.upload(tensor, &vec![f32::NAN; tensor.elements]).unwrap();
        }
        self.load(&mut ops, pass).unwrap();
        run(&mut ops, pass).unwrap();
        let mut tensors = BTreeMap::new();
        pass.tensors(&mut |tensor, _| {
            let mut values = vec![0.0; tensor.elements];
            ops.download(tensor, &mut values).unwrap();
            tensors.insert(tensor.id, values);
        });
        let mut state = |buffer| {
            let mut values = vec![0.0; total];
            ops.read_state(buffer, &mut values).unwrap();
            values
        };
        Outcome { tensors, parameters: state(Buffer::Parameters), gradients: state(Buffer::Gradients) }
    }

    /// What a pass on the CPU writes to one tensor.
    pub fn output_on_cpu(&self, pass: Pass, tensor: Tensor) -> Vec<f32> {
        let mut outcome = self.on_cpu(&pass, 1, &vec![0.0; self.values.len()]);
        outcome.tensors.remove(&tensor.id).expect("a tensor of the pass")
    }

    /// Runs the pass on both and says what differs. `terms` is the length of the longest sum in it.
    pub fn check(&self, pass: Pass, terms: usize) -> Vec<String> {
        self.check_within(pass, tolerance(terms))
    }

    pub fn check_within(&self, pass: Pass, bound: f64) -> Vec<String> {
        let mut judge = Judge { fixture: self, pass: &pass, bound, failures: Vec::new() };
        let mut reference = self.on_reference(&pass);
        judge.declarations(&reference);
        let before = self.gradients_before(&reference.gradients);
        let outcome = self.on_cpu(&pass, 1, &before);
        for threads in [2, 3] {
            let other = self.on_cpu(&pass, threads, &before);
            judge.same_bits(&outcome, &other, threads);
        }
        judge.tensors(&mut reference, &outcome);
        judge.gradients(&reference, &before, &outcome.gradients);
        judge.parameters(&reference.parameters, &outcome.parameters);
        judge.failures
    }

    /// What the gradient buffer holds before the pass: numbers as large as those that are added, so that
    /// neither hides the other's errors.
    fn gradients_before(&self, added: &[f64]) -> Vec<f32> {
        let mut before = self.noise("gradients before", added.len(), -1.0, 1.0);
        for (_, param) in &self.params {
            let size = norm(&added[param.range()]) / (param.elements as f64).sqrt();
            if size > 0.0 {
                before[param.range()].iter_mut().for_each(|g| *g *= size as f32);
            }
        }
        before
    }
}

/// What the CPU left behind.
struct Outcome {
    tensors: BTreeMap<u32, Vec<f32>>,
    parameters: Vec<f32>,
    gradients: Vec<f32>,
}

struct Judge<'a> {
    fixture: &'a Fixture,
    pass: &'a Pass,
    bound: f64,
    failures: Vec<String>,
}

impl Judge<'_> {
    fn fail(&mut self, what: std::fmt::Arguments) {
        self.failures.push(format!("{} of {}: {what}", self.pass.name(), self.fixture.name));
    }

    /// Relative L2 error, written so that NaN fails.
    fn close(&mut self, what: &str, got: &[f64], expected: &[f64]) {
        self.close_beside(what, got, expected, 0.0);
    }

    /// Relative to `size` where the expected values are smaller than that because their terms cancel.
    fn close_beside(&mut self, what: &str, got: &[f64], expected: &[f64], size: f64) {
        assert_eq!(got.len(), expected.len());
        let difference: Vec<f64> = got.iter().zip(expected).map(|(g, e)| g - e).collect();
        let (error, size) = (norm(&difference), norm(expected).max(size));
        if !(error <= self.bound * size) {
            let missing = got.iter().filter(|v| v.is_nan()).count();
            let (error, bound) = (error / size, self.bound);
            self.fail(format_args!("{what}: error {error:.2e}, bound {bound:.2e}, {missing} NaN"));
        }
    }

    fn kept(&mut self, what: &str, got: &[f32], before: &[f32]) {
        if !equal_bits(got, before) {
            self.fail(format_args!("{what} was changed"));
        }
    }

    fn declarations(&mut self, reference: &Reference) {
        let mut declared = super::reference::Touched::default();
        self.pass.tensors(&mut |tensor, writes| {
            let set = if writes { &mut declared.written } else { &mut declared.read };
            set.insert(tensor.id);
        });
        let touched = reference.take_touched();
        if touched != declared {
            self.fail(format_args!("touches {touched:?}, declares {declared:?}"));
        }
    }

    fn same_bits(&mut self, one: &Outcome, other: &Outcome, threads: usize) {
        let same = one.tensors.iter().all(|(id, values)| equal_bits(values, &other.tensors[id]))
            && equal_bits(&one.parameters, &other.parameters)
            && equal_bits(&one.gradients, &other.gradients);
        if !same {
            self.fail(format_args!("{threads} threads give other bits than one"));
        }
    }

    fn tensors(&mut self, reference: &mut Reference, outcome: &Outcome) {
        let (fixture, pass) = (self.fixture, self.pass);
        let stored = stored_output(pass);
        if let Some((y, bn)) = stored {
            let values = doubles(&outcome.tensors[&y.id]);
            self.close("y", &values, &reference.get(y));
            // From here on the oracle goes on with what the pass stored.
            reference.parameters = doubles(&fixture.values);
            reference.take_statistics(bn, &values);
            reference.put(y, values);
        }
        pass.tensors(&mut |tensor, writes| {
            let (got, label) = (&outcome.tensors[&tensor.id], fixture.tensors.label(tensor));
            if !writes {
                if let Some(before) = fixture.inputs.get(&tensor.id) {
                    self.kept(label, got, before);
                }
                return;
            }
            let expected = reference.get(tensor);
            let rows = fixture.rows.get(&tensor.id).copied().unwrap_or(1);
            let length = tensor.elements / rows;
            let sizes = sizes_beside(pass, reference, tensor);
            for row in 0..rows {
                let part = row * length..(row + 1) * length;
                let what = if rows > 1 { format!("{label}, row {row}") } else { label.to_string() };
                self.close_beside(&what, &doubles(&got[part.clone()]), &expected[part], sizes[row.min(1)]);
            }
        });
    }

    fn gradients(&mut self, reference: &Reference, before: &[f32], after: &[f32]) {
        let summed = summed_norm(self.pass);
        let sizes = summed.map_or([0.0; 2], |(bn, ..)| sizes_beside(self.pass, reference, bn.sums));
        let added = &reference.gradients;
        for (label, param) in &self.fixture.params {
            let (added, before, after) =
                (&added[param.range()], &before[param.range()], &after[param.range()]);
            let what = format!("gradient of {label}");
            let size = match summed {
                Some((bn, ..)) if bn.bias == *param => sizes[0],
                Some((bn, ..)) if bn.weight == *param => sizes[1],
                _ => 0.0,
            };
            if norm(added) == 0.0 {
                self.kept(&what, after, before);
            } else {
                let got: Vec<f64> = after.iter().zip(before).map(|(a, b)| *a as f64 - *b as f64).collect();
                self.close_beside(&what, &got, added, size);
            }
        }
    }

    fn parameters(&mut self, expected: &[f64], after: &[f32]) {
        if self.fixture.weights == Weights::Ema {
            return self.kept("a raw parameter", after, &vec![f32::NAN; after.len()]);
        }
        for (label, param) in &self.fixture.params {
            let (expected, after) = (&expected[param.range()], &after[param.range()]);
            let before = &self.fixture.values[param.range()];
            if expected == doubles(before) {
                self.kept(label, after, before);
            } else {
                self.close(label, &doubles(after), expected);
            }
        }
    }
}

/// The output and batch norm of a pass that takes statistics.
fn stored_output(pass: &Pass) -> Option<(Tensor, &BatchNorm)> {
    let (y, bn) = match pass {
        Pass::StemForward(p) => (p.y, &p.bn),
        Pass::ExpandForward(p) => (p.y, &p.bn),
        Pass::DepthwiseForward(p) => (p.y, &p.bn),
        Pass::ProjectForward(p) => (p.y, &p.bn),
        _ => return None,
    };
    (bn.statistics == Statistics::Batch).then_some((y, bn))
}

/// The batch norm whose sums a pass takes from the gradient it writes: with y, that gradient, and what it is
/// multiplied by.
fn summed_norm(pass: &Pass) -> Option<(BatchNorm, Tensor, Tensor, Option<(Tensor, usize)>)> {
    let before = |p: &PreviousBlock, dx: Tensor| {
        let keep = p.keep.map(|keep| (keep, p.pixels * p.bn.channels));
        Some((p.bn, p.y, dx, keep))
    };
    match pass {
        Pass::HeadBackward(p) => Some((p.bn, p.y, p.du, None)),
        Pass::ExpandBackward(p) => before(&p.previous, p.dx),
        Pass::DepthwiseBackward(p) => match &p.input {
            DepthwiseInput::Normalised(bn) => Some((*bn, p.x, p.dx, None)),
            DepthwiseInput::Identity { previous, .. } => before(previous, p.dx),
        },
        _ => None,
    }
}

/// How large a tensor would be if the terms it sums had random signs, for its first row and the others; zero
/// for tensors whose own size will do.
///
/// Σdu and Σdu·ŷ cancel, to nothing where du comes through a batch norm whose gradient sums to zero: such
/// terms sum to their own L2 norm if their signs are random. A mean is subtracted from y, so its error counts in
/// deviations.
fn sizes_beside(pass: &Pass, reference: &Reference, tensor: Tensor) -> [f64; 2] {
    if let Some((_, bn)) = stored_output(pass)
        && bn.coefficients == tensor
    {
        let r = &reference.get(tensor)[bn.channels..2 * bn.channels];
        return [norm(&r.iter().map(|r| 1.0 / r).collect::<Vec<f64>>()), 0.0];
    }
    match summed_norm(pass) {
        Some((bn, y, du, keep)) if bn.sums == tensor => {
            let coefficients = reference.get(bn.coefficients);
            let (y, mut du) = (reference.get(y), reference.get(du).to_vec());
            if let Some((keep, image)) = keep {
                let keep = reference.get(keep);
                du.iter_mut().enumerate().for_each(|(at, du)| *du *= keep[at / image]);
            }
            let normal = |at: usize| {
                let c = at % bn.channels;
                (y[at] - coefficients[c]) * coefficients[bn.channels + c]
            };
            let first = norm(&du);
            du.iter_mut().enumerate().for_each(|(at, du)| *du *= normal(at));
            [first, norm(&du)]
        }
        _ => [0.0; 2],
    }
}

/// Runs one pass.
pub fn run<O: Ops>(ops: &mut O, pass: &Pass) -> Result {
    match pass {
        Pass::DropPathMask(p) => ops.drop_path_mask(p),
        Pass::DropoutMask(p) => ops.dropout_mask(p),
        Pass::BatchNormInference(p) => ops.batch_norm_inference(p),
        Pass::StemForward(p) => ops.stem_forward(p),
        Pass::ExpandForward(p) => ops.expand_forward(p),
        Pass::DepthwiseForward(p) => ops.depthwise_forward(p),
        Pass::SqueezeForward(p) => ops.squeeze_forward(p),
        Pass::ProjectForward(p) => ops.project_forward(p),
        Pass::ResidualForward(p) => ops.residual_forward(p),
        Pass::HeadForward(p) => ops.head_forward(p),
        Pass::Loss(p) => ops.loss(p),
        Pass::HeadBackward(p) => ops.head_backward(p),
        Pass::ProjectBackward(p) => ops.project_backward(p),
        Pass::SqueezeBackward(p) => ops.squeeze_backward(p),
        Pass::DepthwiseBackward(p) => ops.depthwise_backward(p),
        Pass::ExpandBackward(p) => ops.expand_backward(p),
        Pass::StemBackward(p) => ops.stem_backward(p),
        Pass::ExpandDepthwiseForward(e, d) => ops.expand_depthwise_forward(e, d),
        Pass::ExpandDepthwiseBackward(e, d) => ops.expand_depthwise_backward(e, d),
        Pass::Update(p) => ops.update(p),
    }
}

pub fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v as f64).collect()
}

pub fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

pub fn equal_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Fails with all that was found over a grid of cases.
pub fn expect_none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n"));
}
