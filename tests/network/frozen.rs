//! Networks of which some layers are not trained, or whose batch norms keep their statistics: each against the oracle, and
//! what is frozen bit by bit.

use std::ops::Range;

use crate::common::buffers;
use crate::common::fixture::{equal_bits, norm, relative_error};
use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::network::{architecture, training};
use crate::common::reference::ReferenceDevice;
use crate::common::trial::{CLASSES, STEPS, Trial, image_bytes, label};
use crate::cuda_step::on_reference;
use effnet::model::{ParamRole, ParamTable, Variant, initialise};
use effnet::network::{Depth, Network, NetworkConfig};
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::Precision;
use effnet::ops::*;

/// Each place at which training can begin in the network of [`trial`], and the first parameter that is trained then.
const FIRST: [(Depth, &str); 6] = [
    (Depth::Stem, "conv_stem.weight"),
    (Depth::Stage(0), "blocks.0.0.conv_dw.weight"),
    (Depth::Stage(1), "blocks.1.0.conv_pw.weight"),
    (Depth::Stage(2), "blocks.2.0.conv_pw.weight"),
    (Depth::Head, "conv_head.weight"),
    (Depth::Classifier, "classifier.weight"),
];

/// The first stages of B0. A step has `step_images` in passes of two, and each pass the same images.
fn trial(precision: Precision, first: Depth, statistics: Statistics, step_images: usize) -> Trial {
    let mut arch = architecture(Variant::B0, CLASSES, 32);
    arch.blocks.truncate(4);
    arch.head_channels = 48;
    let (images, trained_from) = (2, Some(first));
    let config = NetworkConfig { trained_from, statistics, step_images, ..training(images) };
    let mut trial = Trial::new(precision, &arch, config);
    let pixels = image_bytes("pixels", trial.network.image.elements).collect();
    trial.fixed = Some((pixels, (0..images).map(label).collect()));
    trial
}

fn each() -> impl Iterator<Item = (Depth, &'static str, Statistics)> {
    let both = |(first, name)| [Statistics::Batch, Statistics::Running].map(|of| (first, name, of));
    FIRST.into_iter().flat_map(both)
}

/// The elements that training changes: parameters and running statistics.
fn moving(table: &ParamTable, name: &str, statistics: Statistics) -> [Range<usize>; 2] {
    let first = table.get(name).unwrap().offset;
    // Those of the first batch norm after this parameter; after the classifier there is none.
    let norm = table.entries().iter().find(|entry| entry.offset > first && entry.role == ParamRole::Scale);
    let running = norm.map(|entry| entry.name.replace(".weight", ".running_mean"));
    let running = running.filter(|_| statistics == Statistics::Batch);
    let running = running.map_or(table.total(), |name| table.get(&name).unwrap().offset);
    [first..table.trainable(), running..table.total()]
}

fn cpu(trial: &Trial) -> CpuOps {
    let plan = trial.network.plan(&CpuDevice::fp32(2));
    let state = StateSize::new(trial.table.trainable(), trial.table.total());
    let mut ops = CpuOps::new(state, &[&plan], CpuDevice::fp32(2)).unwrap();
    trial.start(&mut ops, &plan);
    ops
}

/// One step beside the oracle: logits and all gradients; frozen ones are 0, the others are not.
fn step_agrees_with_the_oracle<O: Ops>(mut device: impl FnMut(&Trial) -> O) {
    for (first, name, statistics) in each() {
        let trial = trial(Precision::Fp32, first, statistics, 2);
        let what = format!("trained from {first:?}, {statistics:?}");
        let (logits, gradients) = on_reference(&trial, None);
        let step = trial.step(&mut device(&trial), 0, 0..1).unwrap();
        let of = |got: &[f32], expected: &[f64]| {
            let got: Vec<f64> = got.iter().map(|v| f64::from(*v)).collect();
            relative_error(&got, expected)
        };
        // The bound of a step in fp32, see `cuda_step`.
        for (part, error) in
            [("logits", of(&step.logits, &logits)), ("gradients", of(&step.gradients, &gradients))]
        {
            assert!(error <= 1e-4, "{what}: {part} are off by {error:e}");
        }
        let [trained, _] = moving(&trial.table, name, statistics);
        for entry in trial.table.entries().iter().filter(|entry| entry.role.trainable()) {
            let own = &step.gradients[entry.range()];
            let expected = &gradients[entry.range()];
            if entry.offset < trained.start {
                assert!(own.iter().all(|g| *g == 0.0) && norm(expected) == 0.0, "{what}: {}", entry.name);
            } else if norm(expected) > 1e-6 * norm(&gradients) {
                let error = of(own, expected);
                assert!(error <= 1e-2, "{what}: {} is off by {error:e}", entry.name);
            }
        }
    }
}

#[test]
fn step_agrees_with_the_oracle_on_the_cpu() {
    step_agrees_with_the_oracle(cpu);
}

fn step_agrees_with_the_oracle_in_kernels<G: TestGpu>() {
    step_agrees_with_the_oracle(|trial| trial.ops::<G>(G::WAYS[0], 1.0));
}
on_cuda!(step_agrees_with_the_oracle_in_kernels);

/// Several steps of two micro-batches, with weight decay, momentum and a moving average: nothing frozen changes, in any
/// buffer, and of what is not frozen every tensor does.
fn frozen_state_keeps_its_bits<O: Ops>(precision: Precision, mut device: impl FnMut(&Trial) -> O) {
    for (first, name, statistics) in each() {
        let mut trial = trial(precision, first, statistics, 4);
        trial.update.weight_decay = WeightDecay::uniform(1e-2);
        let what = format!("trained from {first:?}, {statistics:?}");
        let (trainable, total) = (trial.table.trainable(), trial.table.total());
        let mut ops = device(&trial);
        for number in 0..STEPS {
            let step = trial.step(&mut ops, number, 0..2).unwrap();
            assert!(!step.figures.skipped, "{what}: step {number}");
        }
        let before = initialise::initialise(&trial.table, 3);
        let zeros = vec![0.0; trainable];
        let [trained, running] = moving(&trial.table, name, statistics);
        let buffers = [
            (Buffer::Parameters, &before),
            (Buffer::Ema, &before),
            (Buffer::Slot(0), &zeros),
            (Buffer::Slot(1), &zeros),
        ];
        for (buffer, before) in buffers {
            let after = buffers::state(&mut ops, buffer, before.len()).unwrap();
            for entry in trial.table.entries().iter().filter(|entry| entry.range().end <= before.len()) {
                let moves = trained.contains(&entry.offset) || running.contains(&entry.offset);
                let same = equal_bits(&after[entry.range()], &before[entry.range()]);
                assert_eq!(same, !moves, "{what}: {} in {buffer:?}", entry.name);
            }
        }
        assert_eq!(running.end, total);
    }
}

#[test]
fn frozen_state_keeps_its_bits_on_the_cpu() {
    frozen_state_keeps_its_bits(Precision::Fp32, cpu);
}

fn frozen_state_keeps_its_bits_in_kernels<G: TestGpu>() {
    frozen_state_keeps_its_bits(Precision::Fp16, |trial| trial.ops::<G>(G::WAYS[0], 16.0));
}
on_cuda!(frozen_state_keeps_its_bits_in_kernels);

/// What is frozen follows from the passes. They store and plan nothing for it: no pass names a gradient of a frozen layer,
/// the deeper training begins, the less is saved, and the plan is smaller than that of the whole network.
#[test]
fn deeper_beginning_needs_less_memory() {
    let arch = architecture(Variant::B0, 10, 64);
    let table = ParamTable::new(&arch);
    let places = (0..7).map(Depth::Stage);
    let places = [Depth::Stem].into_iter().chain(places).chain([Depth::Head, Depth::Classifier]);
    let mut all: Vec<(usize, usize)> = Vec::new();
    for first in places {
        let config = NetworkConfig { trained_from: Some(first), ..training(4) };
        let network = Network::new(&arch, &table, config);
        let plan = network.plan(&ReferenceDevice);
        let passes = network.itinerary(&ReferenceDevice).passes();
        let frozen = Frozen::of(&passes, table.trainable(), table.total());
        let trained: Vec<&str> = table
            .entries()
            .iter()
            .filter(|e| e.role.trainable() && e.offset >= frozen.parameters)
            .map(|e| e.name.as_str())
            .collect();
        for pass in &passes {
            pass.tensors(&mut |tensor, _| {
                let label = network.tensors.label(tensor);
                let layer = label.split(' ').next().unwrap();
                let gradient = [" du", " dout", " da", " du1", " sums", " five sums", " keep"];
                if layer.starts_with("blocks.") && gradient.iter().any(|end| label.ends_with(end)) {
                    assert!(trained.iter().any(|name| name.starts_with(layer)), "{first:?}: {label}");
                }
            });
        }
        let now = (plan.saved_bytes, plan.tensor_bytes);
        if let (Some(whole), Some(before)) = (all.first(), all.last()) {
            assert!(now.0 < before.0 && now.1 < whole.1, "{first:?}: {now:?} after {all:?}");
        }
        all.push(now);
    }
    // The classifier alone: a forward pass, and what it says of the images.
    let config = NetworkConfig::inference(4);
    let inference = Network::new(&arch, &table, config).plan(&ReferenceDevice);
    let (saved, planned) = *all.last().unwrap();
    assert!(saved < 4 * 3 * 8 * 1280 && planned < 2 * inference.tensor_bytes, "{saved}, {planned}");
}
