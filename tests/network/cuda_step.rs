//! Training steps of B0 on the CUDA engine, whose kernels run on the host harness or on a GPU. One step is compared with
//! the CPU's operators, with the effect of storing activations in a half type alone, and with itself in other orders.
//! Twenty steps learn a batch by heart.

use crate::common::fixture::{doubles, equal_bits, norm};
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use crate::common::reference::{Reference, ReferenceDevice};
use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant, initialise};
use effnet::network::{Network, NetworkConfig, Phase};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::precision::{narrow, widen};
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision};
use effnet::ops::*;

const CLASSES: usize = 10;

/// A network of B0 with a batch.
struct Trial {
    network: Network,
    table: ParamTable,
    pixels: Vec<u8>,
    labels: Vec<u32>,
    update: Update,
}

/// The state after a step.
struct Step {
    figures: StepFigures,
    logits: Vec<f32>,
    gradients: Vec<f32>,
    parameters: Vec<f32>,
}

impl Trial {
    fn new(images: usize, side: usize, masks: bool) -> Trial {
        let arch =
            Architecture::new(Variant::B0, CLASSES, side, Padding::Symmetric, BatchNormConfig::default())
                .unwrap();
        let table = ParamTable::new(&arch);
        let config = NetworkConfig {
            statistics: Statistics::Batch,
            statistics_ranks: 1,
            drop_path: if masks { 0.2 } else { 0.0 },
            dropout: if masks { 0.2 } else { 0.0 },
            label_smoothing: 0.1,
            ..NetworkConfig::inference(images)
        };
        let network = Network::new(&arch, &table, config);
        let pixels = Formula::of("pixels").values(images * side * side * 3, 0.0, 256.0);
        let rule = Rule::RmsProp { form: RmsPropForm::PyTorch, alpha: 0.9, momentum: 0.9, eps: 0.01 };
        Trial {
            network,
            table,
            pixels: pixels.into_iter().map(|v| v as u8).collect(),
            labels: (0..images).map(|i| (i * 37 % CLASSES) as u32).collect(),
            update: Update { rule, weight_decay: WeightDecay::uniform(1e-5), ema: true },
        }
    }

    fn cpu(&self) -> CpuOps {
        let plan = self.network.plan(&CpuDevice { threads: 2 });
        let mut ops =
            CpuOps::new(StateSize::new(self.table.trainable(), self.table.total()), &[&plan], 2).unwrap();
        self.start(&mut ops, &plan);
        ops
    }

    fn cuda<G: TestGpu>(&self, precision: Precision, way: G::Way, scale: f32) -> CudaOps<G> {
        let plan = self.network.plan(&CudaDevice { precision });
        let (trainable, total) = (self.table.trainable(), self.table.total());
        let mut ops = engine::<G>(way, trainable, total, &[&plan], precision).unwrap();
        self.start(&mut ops, &plan);
        ops.set_loss_scale(LossScale { scale, good_steps: 0, skipped: 0 }).unwrap();
        ops
    }

    fn start<O: Ops>(&self, ops: &mut O, plan: &Plan) {
        let values = initialise::initialise(&self.table, 3);
        ops.bind(plan).unwrap();
        ops.write_state(Buffer::Parameters, &values).unwrap();
        ops.write_state(Buffer::Ema, &values).unwrap();
    }

    fn target(&self) -> BatchTarget {
        BatchTarget {
            image: self.network.image,
            labels: Some(self.network.labels),
            mean: [0.5; 3],
            deviation: [0.25; 3],
        }
    }

    fn params(&self, step: u64, learning_rate: f32) -> StepParams {
        StepParams { seed: 5, step, learning_rate, ema_decay: 0.9, ..StepParams::default() }
    }

    /// One step, as the engine makes it.
    fn step<O: Ops>(&self, ops: &mut O, number: u64, learning_rate: f32) -> Step {
        let network = &self.network;
        let (target, params) = (self.target(), self.params(number, learning_rate));
        let slot = (number % 2) as usize;
        ops.set_step(params).unwrap();
        let pixels = BatchPixels::Squares(&self.pixels);
        ops.send_batch(slot, &BatchInput { pixels, labels: &self.labels, target }).unwrap();
        let sequence = Sequence::Training { slot, first: true, last: true };
        ops.replay(sequence, |ops| {
            ops.begin_step()?;
            ops.unpack_batch(slot, &target)?;
            network.recorded.run(Phase::Masks, ops)?;
            network.recorded.run(Phase::Forward, ops)?;
            network.recorded.run(Phase::Loss, ops)?;
            network.recorded.run(Phase::Backward, ops)?;
            ops.run(&self.update.into())
        })
        .unwrap();
        ops.end_step().unwrap();
        let figures = ops.take_figures(true).unwrap().expect("a step was made");
        let mut logits = vec![f32::NAN; network.logits.elements];
        ops.download(network.logits, &mut logits).unwrap();
        let mut state = |buffer, elements| {
            let mut values = vec![f32::NAN; elements];
            ops.read_state(buffer, &mut values).unwrap();
            values
        };
        let gradients = state(Buffer::Gradients, self.table.trainable());
        let parameters = state(Buffer::Parameters, self.table.total());
        Step { figures, logits, gradients, parameters }
    }
}

/// Relative L2 error.
fn error(got: &[f64], expected: &[f64]) -> f64 {
    let difference: Vec<f64> = got.iter().zip(expected).map(|(g, e)| g - e).collect();
    norm(&difference) / norm(expected)
}

/// A step of B0, batch 4 at 64×64, with masks.
fn trial() -> Trial {
    Trial::new(4, 64, true)
}

/// A loss scale with which fp16 gradients do not vanish.
fn scale(precision: Precision) -> f32 {
    if precision == Precision::Fp16 { 256.0 } else { 1.0 }
}

fn on_cpu_and_cuda<G: TestGpu>(precision: Precision) -> (Step, Step) {
    let trial = trial();
    let cpu = trial.step(&mut trial.cpu(), 0, 1e-3);
    let scale = scale(precision);
    let mut cuda = trial.step(&mut trial.cuda::<G>(precision, G::WAYS[0], scale), 0, 1e-3);
    cuda.gradients.iter_mut().for_each(|g| *g /= scale);
    assert!(!cuda.figures.skipped);
    (cpu, cuda)
}

fn expect(precision: Precision, errors: &[(&str, f64, f64)]) {
    for (what, error, bound) in errors {
        println!("{precision}: {what}: {error:.1e} of {bound:.1e}");
    }
    for (what, error, bound) in errors {
        assert!(error <= bound, "{precision}: {what} is off by {error:.2e}, bound {bound:.1e}");
    }
}

fn loss_error(got: &Step, expected: &Step) -> f64 {
    (got.figures.loss / expected.figures.loss - 1.0).abs()
}

fn step_in_fp32_agrees_with_the_cpu<G: TestGpu>() {
    let (cpu, cuda) = on_cpu_and_cuda::<G>(Precision::Fp32);
    let of = |part: fn(&Step) -> &Vec<f32>| error(&doubles(part(&cuda)), &doubles(part(&cpu)));
    expect(
        Precision::Fp32,
        &[
            ("loss", loss_error(&cuda, &cpu), 1e-4),
            ("logits", of(|step| &step.logits), 1e-4),
            ("gradients", of(|step| &step.gradients), 1e-4),
            ("parameters", of(|step| &step.parameters), 1e-4),
        ],
    );
}
on_cuda!(step_in_fp32_agrees_with_the_cpu);

/// Logits and gradients of the oracle in f64. With a `precision`, only the values that a device stores in it are rounded:
/// activations, their gradients and the weights of the pointwise products.
fn on_reference(trial: &Trial, precision: Option<Precision>) -> (Vec<f64>, Vec<f64>) {
    let Trial { network, table, .. } = trial;
    let round = |values: &[f64]| -> Vec<f64> {
        let Some(precision) = precision else { return values.to_vec() };
        let mut stored: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let bytes = narrow(&stored, precision);
        widen(&bytes, precision, &mut stored);
        doubles(&stored)
    };
    let passes = network.itinerary(&ReferenceDevice).passes();
    let mut reference = Reference::new(table.trainable(), table.total());
    reference.parameters = doubles(&initialise::initialise(table, 3));
    for weight in network.plan(&ReferenceDevice).products {
        let rounded = round(&reference.parameters[weight.range()]);
        reference.parameters[weight.range()].copy_from_slice(&rounded);
    }
    reference.set_step(trial.params(0, 0.0)).unwrap();
    let target = trial.target();
    reference.upload_pixels(target.image, &trial.pixels, target.mean, target.deviation).unwrap();
    reference.upload_labels(network.labels, &trial.labels).unwrap();
    let image = round(&reference.get(network.image));
    reference.put(network.image, image);
    let scale = precision.map_or(1.0, |precision| f64::from(scale(precision)));
    for pass in &passes {
        reference.run(pass).unwrap();
        for tensor in pass.written() {
            if tensor.kind == Kind::Activation {
                let stored = round(&reference.get(tensor));
                // Statistics are taken of the stored values.
                if let Some(bn) = own_norm(pass) {
                    reference.take_statistics(&bn, &stored);
                }
                reference.put(tensor, stored);
            }
        }
        if let Pass::Loss(loss) = pass {
            let scaled = reference.get(loss.dlogits).iter().map(|d| d * scale).collect();
            reference.put(loss.dlogits, scaled);
        }
    }
    let gradients = reference.gradients.iter().map(|g| g / scale).collect();
    (reference.get(network.logits).to_vec(), gradients)
}

/// The batch norm whose statistics a pass takes of its output.
fn own_norm(pass: &Pass) -> Option<BatchNorm> {
    let mut own = None;
    pass.parts(&mut |part| {
        if let Part::Norm { bn, used: NormUse::TakesStatistics { .. } } = part {
            own = Some(*bn);
        }
    });
    own
}

/// The loss and the weights after the step agree with those of fp32 within 2e-2. The logits and the gradients of an
/// untrained network do not on any device: its last batch norms see 16 values and amplify every rounding (about
/// 300 times in fp32). So their errors are compared with those of rounding the stored values alone, with exact arithmetic:
/// 4.1e-2 for fp16 gradients, 0.27 for bf16.
///
/// The kernels round more: a block stores four tensors in the forward pass and three in the backward pass, and they also
/// round five operands of the depthwise convolution and the products. That makes √(12/7) = 1.3 times the error, so 1.5
/// bounds the millions of gradients. The logits are only forty, whose amplified error has few directions: two draws of it
/// may differ by another half, so the bound is 1.5 · 1.3.
fn step_in_a_half_type_differs_only_by_its_storage<G: TestGpu>(precision: Precision) {
    let (cpu, cuda) = on_cpu_and_cuda::<G>(precision);
    let trial = trial();
    let (logits, gradients) = on_reference(&trial, None);
    let (stored_logits, stored_gradients) = on_reference(&trial, Some(precision));
    let bounds = [1.5 * 1.3 * error(&stored_logits, &logits), 1.5 * error(&stored_gradients, &gradients)];
    expect(
        precision,
        &[
            ("loss", loss_error(&cuda, &cpu), 2e-2),
            ("logits", error(&doubles(&cuda.logits), &logits), bounds[0]),
            ("gradients", error(&doubles(&cuda.gradients), &gradients), bounds[1]),
            ("parameters", error(&doubles(&cuda.parameters), &doubles(&cpu.parameters)), 2e-2),
        ],
    );
}
on_cuda!(
    step_in_fp16_differs_only_by_its_storage,
    step_in_a_half_type_differs_only_by_its_storage(Precision::Fp16)
);
on_cuda!(
    step_in_bf16_differs_only_by_its_storage,
    step_in_a_half_type_differs_only_by_its_storage(Precision::Bf16)
);

fn step_is_the_same_bit_by_bit_in_every_run<G: TestGpu>() {
    let trial = Trial::new(2, 32, true);
    let mut first: Option<Step> = None;
    for way in G::WAYS {
        let step = trial.step(&mut trial.cuda::<G>(Precision::Fp16, *way, 256.0), 0, 1e-3);
        if let Some(first) = &first {
            for (what, one, other) in [
                ("logits", &first.logits, &step.logits),
                ("gradients", &first.gradients, &step.gradients),
                ("parameters", &first.parameters, &step.parameters),
            ] {
                assert!(equal_bits(one, other), "{what} differ in {way:?}");
            }
            assert_eq!(first.figures, step.figures);
        }
        first.get_or_insert(step);
    }
}
on_cuda!(step_is_the_same_bit_by_bit_in_every_run);

/// On the CPU the loss falls from 5.17 to 0.76 with it.
const RATE: f32 = 3e-3;

fn twenty_steps_in_fp16_learn_one_batch_by_heart<G: TestGpu>() {
    let mut trial = Trial::new(4, 32, false);
    trial.update.rule = Rule::Sgd { momentum: 0.5 };
    let mut ops = trial.cuda::<G>(Precision::Fp16, G::WAYS[0], 64.0);
    let losses: Vec<f64> =
        (0..20).map(|number| trial.step(&mut ops, number, RATE).figures.loss / 4.0).collect();
    // Label smoothing of 0.1 over ten classes leaves 0.50.
    println!("{losses:.3?}");
    assert!(losses[0] > 4.0 && losses[19] < 1.0, "{losses:.3?}");
}
on_cuda!(twenty_steps_in_fp16_learn_one_batch_by_heart);
