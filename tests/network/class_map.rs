//! Class activation maps: the mean of a class's map plus its bias is the class's logit, on every device, for the raw weights
//! and for their moving average.

use crate::common::buffers::values;
use crate::common::gpu::{TestGpu, engine, on_cuda};
use crate::common::network::architecture;
use crate::common::reference::{Reference, ReferenceDevice};
use crate::common::trial::image_bytes;
use effnet::model::{ParamTable, Variant, initialise};
use effnet::network::Inference;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::{CudaDevice, Precision};
use effnet::ops::*;

const CLASSES: usize = 7;
const IMAGES: usize = 2;
/// The last maps have 3×3 places.
const SIDE: usize = 96;
const SETS: [Weights; 2] = [Weights::Raw, Weights::Ema];

struct Case {
    table: ParamTable,
    inference: Inference,
    /// Of each set, with numbers that a training leaves: biases and running statistics are not 0 and 1.
    parameters: [Vec<f32>; 2],
}

fn case(device: &impl Device) -> Case {
    let arch = architecture(Variant::B0, CLASSES, SIDE);
    let table = ParamTable::new(&arch);
    let inference = Inference::new(&arch, &table, IMAGES, device, &SETS);
    let parameters = [3, 4].map(|seed| {
        let mut values = initialise::initialise(&table, seed);
        let moved = image_bytes(&format!("moved {seed}"), values.len());
        for (value, byte) in values.iter_mut().zip(moved) {
            *value += 0.05 * (f32::from(byte) / 128.0 - 1.0) * value.abs().max(0.2);
        }
        values
    });
    Case { table, inference, parameters }
}

/// Compares all maps with the logits; `tolerance` is a share of the map's largest value.
fn compare<O: Ops>(mut ops: O, device: &impl Device, case: &Case, tolerance: f64) {
    let Case { inference, parameters, .. } = case;
    let network = &inference.network;
    ops.bind(&inference.plan(device)).unwrap();
    ops.write_state(Buffer::Parameters, &parameters[0]).unwrap();
    ops.write_state(Buffer::Ema, &parameters[1]).unwrap();
    inference.fold(&mut ops).unwrap();
    let pixels: Vec<u8> = image_bytes("pixels", IMAGES * SIDE * SIDE * 3).collect();
    let mut seen = Vec::new();
    for (weights, parameters) in SETS.into_iter().zip(parameters) {
        ops.upload_pixels(network.image, &pixels, [0.5; 3], [0.25; 3]).unwrap();
        ops.use_weights(weights).unwrap();
        inference.forward(&mut ops, weights).unwrap();
        let logits = values(&mut ops, network.logits).unwrap();
        let mut features = inference.features(weights, parameters);
        features.read(&mut ops).unwrap();
        assert_eq!(features.side(), 3);
        for (at, &logit) in logits.iter().enumerate() {
            let (image, class) = (at / CLASSES, at % CLASSES);
            let map = features.map(image, class);
            assert_eq!(map.len(), 9);
            let mean = map.iter().sum::<f64>() / 9.0 + features.bias(class);
            let largest = map.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            let error = (mean - f64::from(logit)).abs();
            assert!(
                error <= tolerance * largest,
                "{weights:?}, {image}, {class}: {mean} and {logit}, {largest}"
            );
            // A map that is the same everywhere would say nothing.
            let least = map.iter().copied().fold(f64::INFINITY, f64::min);
            assert!(map.iter().any(|value| value - least > 0.01 * largest), "{map:?}");
        }
        seen.push(logits);
    }
    assert_ne!(seen[0], seen[1]);
}

/// The oracle computes in f64; what is read of it is rounded to f32, 1280 numbers for each place.
#[test]
fn map_of_the_oracle_has_the_logit_as_its_mean() {
    let case = case(&ReferenceDevice);
    let ops = Reference::new(case.table.trainable(), case.table.total());
    compare(ops, &ReferenceDevice, &case, 1e-6);
}

#[test]
fn map_on_the_cpu_has_the_logit_as_its_mean() {
    let device = CpuDevice::fp32(2);
    let case = case(&device);
    let state = StateSize::new(case.table.trainable(), case.table.total());
    let ops = CpuOps::new(state, &[&case.inference.plan(&device)], CpuDevice::fp32(2)).unwrap();
    compare(ops, &device, &case, 1e-5);
}

/// Of stored half types the map is made of the same rounded values as the logit.
fn map_has_the_logit_as_its_mean<G: TestGpu>() {
    for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
        for recomputes in [false, precision != Precision::Fp32] {
            let device = CudaDevice { precision, recomputes };
            let case = case(&device);
            let plan = case.inference.plan(&device);
            let (trainable, total) = (case.table.trainable(), case.table.total());
            let ops = engine::<G>(G::WAYS[0], trainable, total, &[&plan], precision).unwrap();
            compare(ops, &device, &case, 1e-5);
        }
    }
}
on_cuda!(map_has_the_logit_as_its_mean);
