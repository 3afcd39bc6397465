//! Expanded tensors that the CUDA engine computes again: the steps are those of a network that stores them, bit by bit.

use crate::common::fixture::equal_bits;
use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::network::training;
use crate::common::trial::{CLASSES, Step, Trial};
use effnet::model::{Architecture, BatchNormConfig, Padding, Variant, Window};
use effnet::network::{Depth, NetworkConfig};
use effnet::ops::cuda::{CudaDevice, Precision};
use effnet::ops::*;

/// The first blocks of a network, up to the 5×5 kernel with stride two: all blocks that few channels go into.
fn trial(precision: Precision, network: (Variant, Padding), side: usize, images: usize) -> Trial {
    trial_of(precision, network, side, training(images))
}

fn trial_of(
    precision: Precision,
    (model, padding): (Variant, Padding),
    side: usize,
    config: NetworkConfig,
) -> Trial {
    let mut arch = Architecture::new(model, CLASSES, side, padding, BatchNormConfig::default()).unwrap();
    let last = arch.blocks.iter().position(|block| (block.window.kernel, block.window.stride) == (5, 2));
    arch.blocks.truncate(last.expect("all networks have one") + 1);
    arch.head_channels = 48;
    Trial::new(precision, &arch, config)
}

const B0: (Variant, Padding) = (Variant::B0, Padding::Symmetric);

fn expect_same(step: &Step, expected: &Step, what: &str) {
    for (part, got, expected) in [
        ("logits", &step.logits, &expected.logits),
        ("gradients", &step.gradients, &expected.gradients),
        ("parameters", &step.parameters, &expected.parameters),
        ("running statistics", &step.running, &expected.running),
    ] {
        assert!(expected.iter().any(|value| *value != 0.0), "{what}: {part} are zero");
        assert!(equal_bits(got, expected), "{what}: {part} differ");
    }
    assert_eq!(step.figures, expected.figures, "{what}");
}

/// Maps of 16 to 4 pixels fit a block's tile; those of 45 to 12 have odd sides and several tiles. B4 has 24 and 32 inputs.
fn recomputed_steps_are_those_of_stored_tensors<G: TestGpu>() {
    let same = (Variant::B4, Padding::Same);
    for (precision, network, side, images) in [
        (Precision::Fp16, B0, 32, 2),
        (Precision::Fp16, B0, 90, 2),
        (Precision::Bf16, B0, 90, 1),
        (Precision::Fp16, same, 58, 3),
        (Precision::Bf16, same, 61, 1),
    ] {
        let scale = if precision == Precision::Fp16 { 64.0 } else { 1.0 };
        let stores = trial(precision, network, side, images);
        let recomputes = trial(precision, network, side, images).recomputing();
        let mut expected = stores.ops::<G>(G::WAYS[0], scale);
        let mut ops = recomputes.ops::<G>(G::WAYS[0], scale);
        for number in 0..3 {
            let expected = stores.step(&mut expected, number, 0..1).unwrap();
            let step = recomputes.step(&mut ops, number, 0..1).unwrap();
            assert!(!step.figures.skipped);
            expect_same(&step, &expected, &format!("{network:?} in {precision}, side {side}, step {number}"));
        }
    }
}
on_cuda!(recomputed_steps_are_those_of_stored_tensors);

/// Frozen blocks recompute in the forward pass alone; the first trained one stores its expanded tensor, and the others do as
/// always.
fn frozen_blocks_recompute_to_the_same_step<G: TestGpu>() {
    let device = CudaDevice::recomputing(Precision::Fp16);
    for (first, statistics, fused) in [
        (Depth::Stem, Statistics::Running, [3, 3]),
        (Depth::Stage(0), Statistics::Batch, [3, 3]),
        (Depth::Stage(1), Statistics::Batch, [2, 2]),
        (Depth::Stage(2), Statistics::Running, [2, 0]),
        (Depth::Head, Statistics::Batch, [3, 0]),
    ] {
        let config = NetworkConfig { trained_from: Some(first), statistics, ..training(2) };
        let stores = trial_of(Precision::Fp16, B0, 32, config);
        let recomputes = trial_of(Precision::Fp16, B0, 32, config).recomputing();
        let passes = recomputes.network.itinerary(&device).passes();
        let of = |wanted: fn(&Pass) -> bool| passes.iter().filter(|pass| wanted(pass)).count();
        let found = [
            of(|pass| matches!(pass, Pass::ExpandDepthwiseForward(_))),
            of(|pass| matches!(pass, Pass::ExpandDepthwiseBackward(_))),
        ];
        assert_eq!(found, fused, "{first:?}");
        let mut expected = stores.ops::<G>(G::WAYS[0], 16.0);
        let mut ops = recomputes.ops::<G>(G::WAYS[0], 16.0);
        for number in 0..2 {
            let expected = stores.step(&mut expected, number, 0..1).unwrap();
            let step = recomputes.step(&mut ops, number, 0..1).unwrap();
            assert!(!step.figures.skipped, "{first:?}");
            expect_same(&step, &expected, &format!("trained from {first:?}, step {number}"));
        }
    }
}
on_cuda!(frozen_blocks_recompute_to_the_same_step);

/// The three blocks of a network that have few inputs to expand, forward and backward; none in fp32.
#[test]
fn recomputing_device_stores_no_expanded_tensor_of_the_first_stages() {
    let fused = |precision| {
        let trial = trial(precision, B0, 64, 2).recomputing();
        let device = CudaDevice::recomputing(precision);
        let passes = trial.network.itinerary(&device).passes();
        let of = |wanted: fn(&Pass) -> bool| passes.iter().filter(|pass| wanted(pass)).count();
        let saved = trial.network.plan(&device).saved_bytes;
        let stored = trial.network.plan(&CudaDevice::new(precision)).saved_bytes;
        let gone = [
            of(|pass| matches!(pass, Pass::ExpandDepthwiseForward(_))),
            of(|pass| matches!(pass, Pass::ExpandDepthwiseBackward(_))),
        ];
        (gone, stored - saved)
    };
    // Of two images: 96 channels of 32², and twice 144 of 16².
    let bytes = 2 * 2 * (96 * 32 * 32 + 2 * 144 * 16 * 16);
    for precision in [Precision::Fp16, Precision::Bf16] {
        assert_eq!(fused(precision), ([3, 3], bytes), "{precision}");
    }
    assert_eq!(fused(Precision::Fp32), ([0, 0], 0));
}

/// No window is recomputed for which there is no kernel.
#[test]
fn only_windows_of_few_inputs_are_recomputed() {
    let device = CudaDevice::recomputing(Precision::Bf16);
    let recomputes = |expanded, inputs, kernel, stride| {
        !device.stores_expanded(expanded, inputs, Window::new(kernel, stride, 56, Padding::Symmetric))
    };
    assert!(recomputes(96, 16, 3, 2) && recomputes(144, 24, 3, 1) && recomputes(192, 32, 5, 2));
    assert!(!recomputes(240, 40, 5, 1) && !recomputes(144, 24, 5, 1) && !recomputes(288, 32, 3, 1));
}
