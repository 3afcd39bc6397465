//! Runs that produce numbers that are not finite, on every device: the error names the first such layer.
//!
//! See [`effnet::train::not_finite`].

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::common::buffers;
use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::training::{self, change_saved};
use effnet::data::{Batch, Normalise, Source};
use effnet::model::{ParamTable, initialise};
use effnet::network::{Network, Phase};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::Precision;
use effnet::ops::{Buffer, LossScale, Ops, StateSize, StepParams};
use effnet::train::device::{Cpu, Cuda, Hardware};
use effnet::train::events::Silent;
use effnet::train::not_finite::Search;
use effnet::train::run::train_on;
use effnet::train::{Outcome, Recipe, RunOptions, TrainError};

/// Two micro-batches of two, with masks.
fn recipe() -> Recipe {
    Recipe { batch_size: 4, micro_batch: 2, epochs: 1.0, ..training::recipe() }
}

fn run<H: Hardware>(hardware: H, out: &Path, steps: u64) -> Result<Outcome, TrainError> {
    let resume = out.join("checkpoint.bin").exists();
    let options = RunOptions { max_steps: Some(steps), resume, ..training::options(out) };
    let source = Source::synthetic(5, 32, 2, 32).unwrap();
    train_on(&recipe(), &options, source, hardware, &mut Silent, &AtomicBool::new(false))
}

/// The tensor that a run names if its weights are changed before its first step. Its loss scale is the smallest.
fn first<H: Hardware>(hardware: H, change: impl Fn(&str, &mut [f32])) -> String {
    let dir = tempfile::tempdir().unwrap();
    run(cpu(), dir.path(), 0).unwrap();
    change_saved(dir.path(), |saved, table| {
        saved.metadata.loss_scale = Some(LossScale { scale: 1.0, good_steps: 0, skipped: 0 });
        for entry in table.entries() {
            change(&entry.name, &mut saved.state.parameters[entry.range()]);
        }
    });
    let error = run(hardware, dir.path(), 3).unwrap_err();
    let TrainError::NotFinite { step: 1, ref tensor, saved: 0, .. } = error else { panic!("{error}") };
    let line = error.to_string();
    assert!(line.lines().count() == 1 && line.contains(&format!("(first not finite: {tensor})")), "{line}");
    tensor.clone()
}

fn cpu() -> Cpu {
    Cpu::new(2, "as asked")
}

fn gpu<G: TestGpu>() -> Cuda<G> {
    Cuda::new(G::open(G::WAYS[0]), Precision::Fp16, "as asked")
}

/// Makes all values of one tensor the same.
fn set(wanted: &str, value: f32) -> impl Fn(&str, &mut [f32]) {
    move |name, values| {
        if name == wanted {
            values.fill(value);
        }
    }
}

/// One weight that is not a number, in the middle of the network.
fn nan(name: &str, values: &mut [f32]) {
    if name == "blocks.4.1.conv_pwl.weight" {
        values[17] = f32::NAN;
    }
}

/// Rows of the classifier that differ so much that the loss is large and its gradient even larger.
fn steep(name: &str, values: &mut [f32]) {
    if name == "classifier.weight" {
        let channels = values.len() / 5;
        values
            .iter_mut()
            .enumerate()
            .for_each(|(at, v)| *v = if (at / channels).is_multiple_of(2) { 3e7 } else { -3e7 });
    }
}

const PROJECT: &str = "the output of blocks.4.1 project; of the weights, blocks.4.1.conv_pwl.weight";

#[test]
fn weight_that_is_not_a_number_is_named_with_its_layer() {
    assert_eq!(first(cpu(), nan), PROJECT);
}

#[test]
fn layer_that_overflows_is_named() {
    assert_eq!(first(cpu(), set("blocks.3.1.conv_dw.weight", 3e38)), "the output of blocks.3.1 depthwise");
    assert_eq!(first(cpu(), set("conv_stem.weight", 3e38)), "the output of stem");
    assert_eq!(first(cpu(), set("classifier.weight", 1e38)), "the output of head");
}

fn layers_that_overflow_fp16_are_named<G: TestGpu>() {
    assert_eq!(first(gpu::<G>(), nan), PROJECT);
    assert_eq!(
        first(gpu::<G>(), set("blocks.3.1.conv_dw.weight", 1e7)),
        "the output of blocks.3.1 depthwise"
    );
    assert_eq!(first(gpu::<G>(), set("conv_head.weight", 6e4)), "the output of head expand");
    assert_eq!(first(gpu::<G>(), steep), "the gradient of bn2.bias");
}
on_cuda!(layers_that_overflow_fp16_are_named);

/// The search repeats the step that failed: the same images and masks give the same gradients, to the bit.
#[test]
fn step_that_is_run_again_is_the_same() {
    let recipe = recipe();
    let arch = recipe.architecture(5).unwrap();
    let table = ParamTable::new(&arch);
    let network = Network::new(&arch, &table, recipe.network_config(1));
    assert!(network.recorded.numbers(Phase::Masks).len() > 1, "nothing is drawn");
    let device = CpuDevice::fp32(2);
    let (plan, itinerary) = (network.plan(&device), network.itinerary(&device));
    let (images, pixels) = (network.config.images, network.image.elements);
    let batch = Batch {
        step: 7,
        first_position: 28,
        images: 2 * images,
        pixels: (0..2 * pixels).map(|i| (i * 89 % 251) as u8).collect(),
        labels: (0..2 * images as u32).collect(),
        resolution: recipe.resolution,
        ..Batch::default()
    };
    let normalise = Normalise { mean: [0.5; 3], deviation: [0.25; 3] };
    let params = StepParams { seed: 3, step: 7, first_position: 28, ..StepParams::default() };
    let mut ops =
        CpuOps::new(StateSize::new(table.trainable(), table.total()), &[&plan], CpuDevice::fp32(2)).unwrap();
    ops.bind(&plan).unwrap();
    ops.write_state(Buffer::Parameters, &initialise::initialise(&table, 3)).unwrap();
    let gradients = |ops: &mut CpuOps| buffers::state(ops, Buffer::Gradients, table.trainable()).unwrap();

    ops.begin_step().unwrap();
    for part in 0..2 {
        let first_position = params.first_position + (part * images) as u64;
        ops.set_step(StepParams { first_position, ..params }).unwrap();
        let own = &batch.pixels[part * pixels..][..pixels];
        ops.upload_pixels(network.image, own, normalise.mean, normalise.deviation).unwrap();
        ops.upload_labels(network.labels, &batch.labels[part * images..][..images].into()).unwrap();
        itinerary.passes().iter().for_each(|pass| ops.run(pass).unwrap());
    }
    let made = gradients(&mut ops);
    let search = Search {
        network: &network,
        itinerary: &itinerary,
        table: &table,
        normalise,
        class_weights: None,
        params,
    };
    assert_eq!(search.run(&mut ops, &batch).unwrap(), None);
    assert!(made == gradients(&mut ops) && made.iter().any(|g| *g != 0.0), "another step was run");
    let other = Search { params: StepParams { step: 8, ..params }, ..search };
    assert_eq!(other.run(&mut ops, &batch).unwrap(), None);
    assert!(made != gradients(&mut ops), "the masks do not count");
}
