//! The network against values that timm computed in float64: logits, gradients, running statistics, and three
//! steps of the optimiser. See `tests/golden/README.md`.
//!
//! The same comparison is run on the f64 oracle, which shows that the network and the passes' definitions are
//! right, and on the CPU's passes, which shows that those are. A third test zeroes one tensor after the other
//! and expects the comparison to notice.

use crate::common::buffers;
use crate::common::fixture::{doubles, expect_none};
use crate::common::golden::{Bounds, Golden, Report, bf16_errors, files, parameters};
use crate::common::gpu::{TestGpu, engine, on_cuda};
use crate::common::reference::{Reference, ReferenceDevice};
use effnet::model::{Architecture, BatchNormConfig, ParamTable};
use effnet::network::{Depth, Itinerary, Network, NetworkConfig, Phase};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision};
use effnet::ops::{Buffer, Ops, Pass, Plan, StateSize, Statistics, StepParams, Tensor};

/// A device under test, with values in f64.
pub(crate) trait Backend: Ops + Sized {
    fn plan(network: &Network, precision: Precision) -> Plan;
    /// The passes as the device runs them.
    fn itinerary(network: &Network, precision: Precision) -> Itinerary;
    fn new(table: &ParamTable, plans: &[&Plan], precision: Precision) -> Self;
    fn put_values(&mut self, tensor: Tensor, values: &[f64]) {
        let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
        self.upload(tensor, &values).unwrap();
    }
    fn values(&mut self, tensor: Tensor) -> Vec<f64> {
        doubles(&buffers::values(self, tensor).unwrap())
    }
    fn buffer(&mut self, buffer: Buffer, elements: usize) -> Vec<f64> {
        doubles(&buffers::state(self, buffer, elements).unwrap())
    }
}

impl Backend for Reference {
    fn plan(network: &Network, _: Precision) -> Plan {
        network.plan(&ReferenceDevice)
    }
    fn itinerary(network: &Network, _: Precision) -> Itinerary {
        network.itinerary(&ReferenceDevice)
    }
    fn new(table: &ParamTable, _: &[&Plan], _: Precision) -> Self {
        Reference::new(table.trainable(), table.total())
    }
    fn put_values(&mut self, tensor: Tensor, values: &[f64]) {
        self.put(tensor, values.to_vec());
    }
    fn values(&mut self, tensor: Tensor) -> Vec<f64> {
        self.get(tensor).to_vec()
    }
    fn buffer(&mut self, buffer: Buffer, _: usize) -> Vec<f64> {
        self.state(buffer).clone()
    }
}

const THREADS: usize = 2;

impl Backend for CpuOps {
    fn plan(network: &Network, precision: Precision) -> Plan {
        network.plan(&CpuDevice::new(THREADS, precision))
    }
    fn itinerary(network: &Network, precision: Precision) -> Itinerary {
        network.itinerary(&CpuDevice::new(THREADS, precision))
    }
    fn new(table: &ParamTable, plans: &[&Plan], precision: Precision) -> Self {
        let device = CpuDevice::new(THREADS, precision);
        CpuOps::new(StateSize::new(table.trainable(), table.total()), plans, device).unwrap()
    }
}

impl<G: TestGpu> Backend for CudaOps<G> {
    fn plan(network: &Network, precision: Precision) -> Plan {
        network.plan(&CudaDevice::new(precision))
    }
    fn itinerary(network: &Network, precision: Precision) -> Itinerary {
        network.itinerary(&CudaDevice::new(precision))
    }
    fn new(table: &ParamTable, plans: &[&Plan], precision: Precision) -> Self {
        engine(G::WAYS[0], table.trainable(), table.total(), plans, precision).unwrap()
    }
}

/// One golden file, ready to run on some device.
pub(crate) struct Trial {
    pub precision: Precision,
    pub golden: Golden,
    pub arch: Architecture,
    table: ParamTable,
    values: Vec<f32>,
    pub image: Vec<f64>,
    train: Network,
    /// Without masks; the running statistics become those of the batch.
    calibrate: Network,
    evaluate: Network,
}

impl Trial {
    pub fn new(golden: Golden) -> Trial {
        let arch = golden.architecture();
        let table = ParamTable::new(&arch);
        assert_eq!(table.trainable(), golden.parameters, "{}: parameters", golden.file);
        let images = golden.batch;
        let (statistics, label_smoothing) = (Statistics::Batch, golden.label_smoothing);
        let trained_from = Some(Depth::Stem);
        let plain =
            NetworkConfig { trained_from, statistics, label_smoothing, ..NetworkConfig::inference(images) };
        // The stated rates are rate·i/n; the network takes the rate.
        let blocks = arch.blocks.len();
        let drop_path =
            golden.drop_path_rates.last().map_or(0.0, |last| last * blocks as f64 / (blocks - 1) as f64);
        let masked = NetworkConfig { drop_path, dropout: golden.dropout, ..plain };
        let all_new = BatchNormConfig { momentum: 1.0, ..arch.batch_norm };
        let calibrating = Architecture { batch_norm: all_new, ..arch.clone() };
        Trial {
            precision: Precision::Fp32,
            values: parameters(&table),
            image: golden.image(),
            train: Network::new(&arch, &table, masked),
            calibrate: Network::new(&calibrating, &table, plain),
            evaluate: Network::new(&arch, &table, NetworkConfig::inference(images)),
            golden,
            arch,
            table,
        }
    }

    fn device<B: Backend>(&self) -> (B, [Plan; 3]) {
        let plans =
            [&self.train, &self.calibrate, &self.evaluate].map(|network| B::plan(network, self.precision));
        (B::new(&self.table, &plans.each_ref(), self.precision), plans)
    }

    /// Starts a network: binds its plan and uploads image, labels and masks.
    fn start<B: Backend>(&self, ops: &mut B, network: &Network, plan: &Plan) {
        ops.bind(plan).unwrap();
        self.feed(ops, network);
    }

    /// Uploads image, labels and masks. This is necessary for each step, since other tensors may reuse the image's memory.
    fn feed<B: Backend>(&self, ops: &mut B, network: &Network) {
        ops.put_values(network.image, &self.image);
        if network.config.statistics == Statistics::Batch {
            ops.upload_labels(network.labels, &(&self.golden.labels).into()).unwrap();
        }
        for entry in &network.recorded.entries()[network.recorded.numbers(Phase::Masks)] {
            match &entry.pass {
                Pass::DropPathMask(pass) => {
                    let index = pass.block as usize;
                    ops.put_values(pass.keep, &self.golden.keep(&self.arch.blocks[index].name, index));
                }
                Pass::DropoutMask(pass) => {
                    ops.put_values(pass.mask, &self.golden.dropout_factors(pass.channels));
                }
                other => panic!("{} is no mask", other.name()),
            }
        }
    }

    fn mean_loss<B: Backend>(&self, ops: &mut B) -> f64 {
        ops.values(self.train.losses).iter().sum::<f64>() / self.golden.batch as f64
    }

    /// The first step's forward pass: logits, loss, running statistics.
    fn first_forward<B: Backend>(&self, ops: &mut B, plan: &Plan, bounds: &Bounds, report: &mut Report) {
        let golden = &self.golden;
        self.start(ops, &self.train, plan);
        self.train.recorded.run(Phase::Forward, ops).unwrap();
        let logits = ops.values(self.train.logits);
        report.vector("train logits", &logits, &golden.train_logits, bounds.train_logits);
        self.train.recorded.run(Phase::Loss, ops).unwrap();
        let loss = self.mean_loss(ops);
        report.judge("loss 1", (loss / golden.loss[0] - 1.0).abs(), bounds.losses[0]);
        let buffer = ops.buffer(Buffer::Parameters, self.table.total());
        let (running, bound) = (&golden.running_after_first_step, bounds.running);
        report.tensors("running statistics", running, &self.table, &buffer, bound, bounds.one_tensor);
    }

    /// The first step's gradients.
    fn first_backward<B: Backend>(&self, ops: &mut B, bounds: &Bounds, report: &mut Report) {
        ops.zero_gradients().unwrap();
        self.train.recorded.run(Phase::Backward, ops).unwrap();
        let buffer = ops.buffer(Buffer::Gradients, self.table.trainable());
        let (gradients, bound) = (&self.golden.gradients, bounds.gradients);
        report.tensors("gradients", gradients, &self.table, &buffer, bound, bounds.one_tensor);
    }

    /// The first step's update, then two more steps.
    fn further_steps<B: Backend>(&self, ops: &mut B, bounds: &Bounds, report: &mut Report) {
        let golden = &self.golden;
        let update = golden.update();
        ops.set_step(StepParams { learning_rate: golden.optimizer.lr as f32, ..StepParams::default() })
            .unwrap();
        for (number, slot) in update.rule.slots().iter().enumerate() {
            let values = vec![slot.initial; self.table.trainable()];
            ops.write_state(Buffer::Slot(number), &values).unwrap();
        }
        ops.run(&update.into()).unwrap();
        for step in 1..golden.optimizer.steps {
            self.feed(ops, &self.train);
            ops.zero_gradients().unwrap();
            self.train.recorded.run(Phase::Forward, ops).unwrap();
            self.train.recorded.run(Phase::Loss, ops).unwrap();
            let error = (self.mean_loss(ops) / golden.loss[step] - 1.0).abs();
            report.judge(&format!("loss {}", step + 1), error, bounds.losses[step]);
            self.train.recorded.run(Phase::Backward, ops).unwrap();
            ops.run(&update.into()).unwrap();
        }
        let buffer = ops.buffer(Buffer::Parameters, self.table.total());
        let (expected, bound) = (&golden.parameters_after_three_steps, bounds.parameters);
        report.tensors("parameters", expected, &self.table, &buffer, bound, bounds.one_tensor);
    }

    /// Logits with the running statistics of the formula, then with those of this batch.
    fn inference<B: Backend>(&self, ops: &mut B, plans: &[Plan; 3], bounds: &Bounds, report: &mut Report) {
        let golden = &self.golden;
        ops.write_state(Buffer::Parameters, &self.values).unwrap();
        let logits = |ops: &mut B| {
            self.start(ops, &self.evaluate, &plans[2]);
            B::itinerary(&self.evaluate, self.precision).run(Phase::Forward, ops).unwrap();
            ops.values(self.evaluate.logits)
        };
        let by_formula = logits(ops);
        report.vector("eval logits", &by_formula, &golden.eval_logits, bounds.eval_logits);
        self.start(ops, &self.calibrate, &plans[1]);
        self.calibrate.recorded.run(Phase::Forward, ops).unwrap();
        let (expected, bound) = (&golden.eval_logits_calibrated, bounds.eval_logits_calibrated);
        report.vector("calibrated eval logits", &logits(ops), expected, bound);
    }

    /// The parameters, with the running statistics of this batch.
    pub fn calibrated<B: Backend>(&self) -> Vec<f32> {
        let (mut ops, plans) = self.device::<B>();
        ops.write_state(Buffer::Parameters, &self.values).unwrap();
        self.start(&mut ops, &self.calibrate, &plans[1]);
        self.calibrate.recorded.run(Phase::Forward, &mut ops).unwrap();
        ops.buffer(Buffer::Parameters, self.table.total()).into_iter().map(|value| value as f32).collect()
    }

    /// Compares everything in the file.
    fn run<B: Backend>(&self, bounds: &Bounds) -> Report {
        let (mut ops, plans) = self.device::<B>();
        let mut report = Report::default();
        ops.write_state(Buffer::Parameters, &self.values).unwrap();
        self.first_forward(&mut ops, &plans[0], bounds, &mut report);
        self.first_backward(&mut ops, bounds, &mut report);
        self.further_steps(&mut ops, bounds, &mut report);
        self.inference(&mut ops, &plans, bounds, &mut report);
        report
    }
}

/// Prints what was measured (`--nocapture` shows it) and gives the failures, named.
fn tell(file: &str, report: Report) -> Vec<String> {
    for (what, error, bound) in &report.measured {
        println!("{file}: {what}: {error:.1e} of {bound:.1e}");
    }
    report.failures.into_iter().map(|failure| format!("{file}: {failure}")).collect()
}

/// Both sides compute in f64, so the difference is rounding, amplified by batch norms over few values and by two further
/// steps: at most 6e-13 (a gradient of B4), compared with 2e-4 in fp32.
const DOUBLE: f64 = 1e-11;

/// Compares a device with every file.
fn expect_all<B: Backend>(bounds: fn(&Golden) -> Bounds) {
    let failures = files().into_iter().flat_map(|path| {
        let trial = Trial::new(Golden::read(&path));
        tell(&trial.golden.file, trial.run::<B>(&bounds(&trial.golden)))
    });
    expect_none(failures.collect());
}

fn float32(golden: &Golden) -> Bounds {
    Bounds::float32(&golden.float32_reference_error)
}

#[test]
fn oracle_meets_the_golden_values() {
    expect_all::<Reference>(|_| Bounds::all(DOUBLE));
}

#[test]
fn cpu_meets_the_golden_values() {
    expect_all::<CpuOps>(float32);
}

/// In bf16 with PyTorch's own bf16 as the yardstick. Every network here amplifies rounding, so the bounds are wide: what
/// they find is a wrong composition of passes, each of which is compared with the oracle by itself.
#[test]
fn cpu_meets_the_golden_values_in_bf16() {
    let mut errors = bf16_errors();
    let failures = files().into_iter().flat_map(|path| {
        let trial = Trial { precision: Precision::Bf16, ..Trial::new(Golden::read(&path)) };
        // The files of another folder are not judged in bf16.
        let Some(error) = errors.remove(&trial.golden.file) else { return Vec::new() };
        tell(&trial.golden.file, trial.run::<CpuOps>(&Bounds::bf16(&error)))
    });
    expect_none(failures.collect());
    assert!(errors.is_empty(), "no golden files for {:?}", errors.keys());
}

/// The files with images of 64 pixels. Larger images take minutes on the harness.
const SMALL: [&str; 3] =
    ["efficientnet_b0_64.json", "efficientnet_b0_64_masks.json", "tf_efficientnet_b0_64.json"];

fn kernels_meet<G: TestGpu>(golden: Golden) {
    let trial = Trial::new(golden);
    expect_none(tell(&trial.golden.file, trial.run::<CudaOps<G>>(&float32(&trial.golden))));
}

on_cuda!(kernels_meet_the_golden_values, kernels_meet(Golden::own(SMALL[0])));
on_cuda!(kernels_meet_the_golden_values_with_masks, kernels_meet(Golden::own(SMALL[1])));
on_cuda!(kernels_meet_the_golden_values_of_tensorflow_s_form, kernels_meet(Golden::own(SMALL[2])));

#[test]
#[cfg_attr(not(effnet_gpu), ignore = "needs an NVIDIA GPU")]
fn larger_golden_files_are_met_on_a_gpu() {
    for golden in files().iter().map(|path| Golden::read(path)) {
        if !SMALL.contains(&&golden.file[..]) {
            kernels_meet::<Driver>(golden);
        }
    }
}

/// With one tensor zeroed, the comparison must fail because of what the network computes: the parameters themselves,
/// which would trivially differ, are not compared.
///
/// There is no exception. In theory some tensors do not affect the training logits: running statistics, and the bias at
/// the end of a block, which the batch norm after the next pointwise convolution removes. But they change the running
/// statistics.
#[test]
fn comparison_notices_every_zeroed_tensor() {
    let mut trial = Trial::new(Golden::own("efficientnet_b0_64.json"));
    let bounds = float32(&trial.golden);
    let (mut ops, plans) = trial.device::<CpuOps>();
    let mut unnoticed = Vec::new();
    let entries = trial.table.entries().to_vec();
    for entry in &entries {
        let intact = trial.values[entry.range()].to_vec();
        trial.values[entry.range()].fill(0.0);
        let mut report = Report::default();
        ops.write_state(Buffer::Parameters, &trial.values).unwrap();
        trial.first_forward(&mut ops, &plans[0], &bounds, &mut report);
        if report.failures.is_empty() {
            trial.first_backward(&mut ops, &bounds, &mut report);
        }
        if report.failures.is_empty() {
            trial.inference(&mut ops, &plans, &bounds, &mut report);
        }
        if report.failures.is_empty() {
            unnoticed.push(entry.name.as_str());
        }
        trial.values[entry.range()].copy_from_slice(&intact);
    }
    assert!(unnoticed.is_empty(), "nothing changes without {unnoticed:?}");
    // Without a zeroed tensor the same procedure finds nothing.
    let mut report = Report::default();
    ops.write_state(Buffer::Parameters, &trial.values).unwrap();
    trial.first_forward(&mut ops, &plans[0], &bounds, &mut report);
    trial.first_backward(&mut ops, &bounds, &mut report);
    trial.inference(&mut ops, &plans, &bounds, &mut report);
    expect_none(report.failures);
}
