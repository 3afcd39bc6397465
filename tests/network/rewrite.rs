//! Rewrites of the list of passes: what they leave out, and that the numbers stay the same.

use crate::common::buffers;
use crate::common::fixture::relative_error;
use crate::common::formula::Formula;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use crate::common::network::{architecture, training};
use crate::common::reference::{Reference, ReferenceDevice};
use effnet::model::{Architecture, ParamTable, Variant, Window, initialise};
use effnet::network::{Inference, Itinerary, Network, NetworkConfig, Phase};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::{CudaDevice, Precision};
use effnet::ops::*;

const IMAGES: usize = 2;

fn b0() -> (Architecture, ParamTable) {
    let arch = architecture(Variant::B0, 10, 32);
    let table = ParamTable::new(&arch);
    (arch, table)
}

/// Weights and running statistics that no two sets share.
fn values(table: &ParamTable, seed: u64) -> Vec<f32> {
    let mut values = initialise::initialise(table, seed);
    let statistics =
        Formula::of(&format!("statistics {seed}")).values(table.total() - table.trainable(), 0.5, 1.5);
    values[table.trainable()..].copy_from_slice(&statistics);
    values
}

fn image(network: &Network, number: usize) -> Vec<f32> {
    Formula::of(&format!("image {number}")).values(network.image.elements, -2.0, 2.0)
}

/// Logits of one batch by one set of weights.
fn logits<O: Ops>(
    ops: &mut O,
    network: &Network,
    number: usize,
    weights: Weights,
    forward: impl FnOnce(&mut O) -> Result,
) -> Vec<f32> {
    ops.use_weights(weights).unwrap();
    ops.upload(network.image, &image(network, number)).unwrap();
    forward(ops).unwrap();
    buffers::values(ops, network.logits).unwrap()
}

/// Two sets of weights take turns over three batches, as in training. The coefficients are computed before the first. Gives
/// the bits of all logits.
fn expect_same<O: Ops>(device: &impl Device, start: impl Fn(&ParamTable, &Plan) -> O) -> Vec<Vec<u32>> {
    let (arch, table) = b0();
    let ready = |plan: &Plan| {
        let mut ops = start(&table, plan);
        ops.bind(plan).unwrap();
        ops.write_state(Buffer::Parameters, &values(&table, 1)).unwrap();
        ops.write_state(Buffer::Ema, &values(&table, 2)).unwrap();
        ops
    };
    let sets = [Weights::Raw, Weights::Ema];
    let unfolded = Network::new(&arch, &table, NetworkConfig::inference(IMAGES));
    let folded = Inference::new(&arch, &table, IMAGES, device, &sets);
    let itinerary = unfolded.itinerary(device);
    let mut expected_of = ready(&unfolded.plan(device));
    let mut got_of = ready(&folded.plan(device));
    folded.fold(&mut got_of).unwrap();
    let mut all = Vec::new();
    for number in 0..3 {
        for weights in sets {
            let expected = logits(&mut expected_of, &unfolded, number, weights, |ops| {
                itinerary.run(Phase::Forward, ops)
            });
            let got =
                logits(&mut got_of, &folded.network, number, weights, |ops| folded.forward(ops, weights));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(expected.iter().all(|v| v.is_finite()), "{weights:?} weights, batch {number}");
            assert_eq!(bits(&got), bits(&expected), "{weights:?} weights, batch {number}");
            assert!(!all.contains(&bits(&got)), "two sets or two batches give the same logits");
            all.push(bits(&got));
        }
    }
    all
}

#[test]
fn fold_gives_the_logits_of_the_unfolded_on_the_cpu() {
    expect_same(&CpuDevice::fp32(2), |table, plan| {
        CpuOps::new(StateSize::new(table.trainable(), table.total()), &[plan], CpuDevice::fp32(2)).unwrap()
    });
}

fn fold_gives_the_logits_of_the_unfolded<G: TestGpu>() {
    let precision = Precision::Fp16;
    let start = |table: &ParamTable, plan: &Plan| {
        engine::<G>(G::WAYS[0], table.trainable(), table.total(), &[plan], precision).unwrap()
    };
    let stored = expect_same(&CudaDevice::new(precision), start);
    // Nor does it matter whether expanded tensors are computed again.
    let again = expect_same(&CudaDevice::recomputing(precision), start);
    assert_eq!(again, stored);
}
on_cuda!(fold_gives_the_logits_of_the_unfolded);

/// A batch runs no pass that depends on the weights alone.
#[test]
fn fold_leaves_the_batch_norms_out_of_a_batch() {
    let (arch, table) = b0();
    let is_norm = |pass: &Pass| matches!(pass, Pass::BatchNormInference(_));
    let count = |itinerary: &Itinerary| itinerary.passes().iter().filter(|pass| is_norm(pass)).count();
    let unfolded = Network::new(&arch, &table, NetworkConfig::inference(IMAGES));
    assert_eq!(count(&unfolded.recorded), table.batch_norms().count());
    let folded = effnet::network::rewrite::fold::fold(&unfolded.recorded);
    assert_eq!(count(&folded.itinerary), 0);
    assert!(
        folded.coefficients.len() == count(&unfolded.recorded) && folded.coefficients.iter().all(is_norm)
    );
    let passes = folded.itinerary.passes().len() + folded.coefficients.len();
    assert_eq!(passes, unfolded.recorded.passes().len());
}

/// A device for the planner that stores expanded tensors of up to so many channels.
struct Recomputing {
    stored: usize,
}

impl Device for Recomputing {
    fn element_bytes(&self, kind: Kind) -> usize {
        ReferenceDevice.element_bytes(kind)
    }
    fn workspace(&self, pass: &Pass) -> Workspace {
        ReferenceDevice.workspace(pass)
    }
    fn threads(&self) -> usize {
        1
    }
    fn stores_expanded(&self, expanded: usize, _: usize, _: Window) -> bool {
        expanded <= self.stored
    }
}

/// The widest tensors disappear from the list, forward and backward alike, where the device does not store them.
#[test]
fn recompute_fuses_the_blocks_that_a_device_does_not_store() {
    let (arch, table) = b0();
    let network = Network::new(&arch, &table, training(IMAGES));
    let recorded = network.recorded.passes();
    for stored in [0, 240, usize::MAX] {
        let device = Recomputing { stored };
        let expanding = arch.blocks.iter().filter(|block| block.expands && block.expanded > stored).count();
        let passes = network.itinerary(&device).passes();
        assert_eq!(passes.len(), recorded.len() - 2 * expanding, "stored up to {stored}");
        let of = |backward: bool| {
            let fused = passes.iter().filter(|pass| match pass {
                Pass::ExpandDepthwiseForward(_) => !backward,
                Pass::ExpandDepthwiseBackward(_) => backward,
                _ => false,
            });
            fused.count()
        };
        assert_eq!([of(false), of(true)], [expanding; 2], "stored up to {stored}");
        let mut gone = Vec::new();
        for pass in &passes {
            match pass {
                Pass::ExpandDepthwiseForward(p) => gone.push(p.expand.y),
                Pass::ExpandDepthwiseBackward(p) => gone.push(p.expand.y),
                _ => {}
            }
        }
        let plan = network.plan(&device);
        assert!(
            gone.iter().all(|tensor| plan.offsets[tensor.id as usize].is_none()),
            "stored up to {stored}"
        );
    }
}

/// The oracle runs the fused pass as its two parts, so any difference is the list's.
#[test]
fn recompute_gives_the_gradients_of_the_recorded_list() {
    let (arch, table) = b0();
    let network = Network::new(&arch, &table, training(IMAGES));
    let gradients = |itinerary: &Itinerary| {
        let mut ops = Reference::new(table.trainable(), table.total());
        ops.write_state(Buffer::Parameters, &values(&table, 1)).unwrap();
        ops.set_step(StepParams { seed: 5, ..StepParams::default() }).unwrap();
        ops.upload(network.image, &image(&network, 0)).unwrap();
        ops.upload_labels(network.labels, &[3; IMAGES][..].into()).unwrap();
        itinerary.passes().iter().for_each(|pass| ops.run(pass).unwrap());
        ops.gradients
    };
    let recorded = gradients(&network.recorded);
    assert!(recorded.iter().any(|gradient| *gradient != 0.0));
    assert_eq!(gradients(&network.itinerary(&Recomputing { stored: 144 })), recorded);
}

/// The oracle as a device whose inference applies batch norms to what it stores.
struct Applying;

impl Device for Applying {
    fn element_bytes(&self, kind: Kind) -> usize {
        ReferenceDevice.element_bytes(kind)
    }
    fn workspace(&self, pass: &Pass) -> Workspace {
        ReferenceDevice.workspace(pass)
    }
    fn threads(&self) -> usize {
        1
    }
    fn applies_norms_on_store(&self) -> bool {
        true
    }
}

/// No block of an evaluation stores raw outputs of its depthwise convolution and its projection, or sweeps over them.
#[test]
fn apply_leaves_no_sweep_over_raw_outputs() {
    let (arch, table) = b0();
    let network = Network::new(&arch, &table, NetworkConfig::inference(IMAGES));
    let passes = network.itinerary(&Applying).passes();
    let count = |name: &str| passes.iter().filter(|pass| pass.name() == name).count();
    for name in ["depthwise inference", "squeeze inference", "project inference"] {
        assert_eq!(count(name), arch.blocks.len(), "{name}");
    }
    for name in ["depthwise forward", "squeeze forward", "project forward", "residual forward"] {
        assert_eq!(count(name), 0, "{name}");
    }
    assert_eq!(passes.len(), network.recorded.passes().len() - arch.blocks.len());
    let plan = network.plan(&Applying);
    for pass in network.recorded.passes() {
        if let Pass::ProjectForward(project) = pass {
            assert!(plan.offsets[project.y.id as usize].is_none(), "y3 has no place");
        }
    }
}

/// What training needs on the way back stays stored, with the batch's statistics and with running ones.
#[test]
fn apply_keeps_the_list_of_training() {
    let (arch, table) = b0();
    for statistics in [Statistics::Batch, Statistics::Running] {
        let config = NetworkConfig { statistics, ..training(IMAGES) };
        let network = Network::new(&arch, &table, config);
        let names = |itinerary: &Itinerary| -> Vec<_> {
            itinerary.passes().iter().map(|pass| (pass.name(), pass.written())).collect()
        };
        assert_eq!(names(&network.itinerary(&Applying)), names(&network.recorded), "{statistics:?}");
    }
}

/// In float64 the lists differ by rounding alone, in the order in which means are added up.
#[test]
fn apply_gives_the_logits_of_the_recorded_list() {
    let (arch, table) = b0();
    let network = Network::new(&arch, &table, NetworkConfig::inference(IMAGES));
    let of = |itinerary: &Itinerary| {
        let mut ops = Reference::new(table.trainable(), table.total());
        ops.write_state(Buffer::Parameters, &values(&table, 1)).unwrap();
        ops.upload(network.image, &image(&network, 0)).unwrap();
        itinerary.passes().iter().for_each(|pass| ops.run(pass).unwrap());
        ops.get(network.logits)
    };
    let (recorded, applied) = (of(&network.recorded), of(&network.itinerary(&Applying)));
    let error = relative_error(&applied, &recorded);
    assert!(error <= 1e-13, "{error:e}");
}

/// Logits of `count` images from the image `first` of many on, on the CPU.
fn logits_on_the_cpu(device: CpuDevice, first: usize, count: usize) -> Vec<u32> {
    let arch = architecture(Variant::B0, 10, 96);
    let table = ParamTable::new(&arch);
    let inference = Inference::new(&arch, &table, count, &device, &[Weights::Raw]);
    let plan = inference.plan(&device);
    let size = StateSize::new(table.trainable(), table.total());
    let mut ops = CpuOps::new(size, &[&plan], device).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Parameters, &values(&table, 1)).unwrap();
    inference.fold(&mut ops).unwrap();
    let network = &inference.network;
    let elements = network.image.elements / count;
    let all = Formula::of("many images").values(20 * elements, -2.0, 2.0);
    ops.upload(network.image, &all[first * elements..(first + count) * elements]).unwrap();
    inference.forward(&mut ops, Weights::Raw).unwrap();
    let logits = buffers::values(&mut ops, network.logits).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// An image's logits are the same bits in every batch and for every number of threads.
#[test]
fn inference_on_the_cpu_depends_on_the_image_alone() {
    for precision in CpuDevice::PRECISIONS {
        let of = |threads, first, count| logits_on_the_cpu(CpuDevice::new(threads, precision), first, count);
        let expected: Vec<u32> = (0..20).flat_map(|image| of(1, image, 1)).collect();
        for (threads, batch) in [(2, 20), (3, 5), (1, 2)] {
            let got: Vec<u32> = (0..20).step_by(batch).flat_map(|first| of(threads, first, batch)).collect();
            assert_eq!(got, expected, "{precision}, {threads} threads, {batch} images");
        }
    }
}

/// Roles and kinds agree, whatever is recorded, so that a device stores each tensor as its passes expect.
#[test]
fn tensors_are_stored_as_their_roles_say() {
    let (arch, table) = b0();
    for config in [training(IMAGES), NetworkConfig::inference(IMAGES)] {
        let network = Network::new(&arch, &table, config);
        for pass in network.recorded.passes() {
            pass.parts(&mut |part| {
                if let Part::Tensor { tensor, role, .. } = part {
                    let label = network.tensors.label(*tensor);
                    assert_eq!(tensor.kind, role.kind(), "{}: {label} as {role:?}", pass.name());
                }
            });
        }
    }
}
