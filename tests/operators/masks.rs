//! Stochastic-depth and dropout factors: the CPU's against the oracle, the kernels' bit by bit against the CPU's.
//!
//! They are functions of seed, step, position and block or feature, so they are the same on every device and however a
//! batch is cut.

use crate::common::buffers::values;
use crate::common::fixture::equal_bits;
use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::reference::Reference;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::cuda::{CudaDevice, CudaOps, Precision};
use effnet::ops::*;

/// Both halves of the seed and of the position, the wrap from the lower half to the upper one within a batch, and a
/// step above 2³¹ matter.
const STEPS: [StepParams; 5] = [
    step(0, 0, 0),
    step(7, 12, 640),
    step(u64::MAX - 5, u32::MAX as u64 - 1, 9),
    step(3 << 33, 13, (1 << 32) - 70),
    step(7, 12, (1 << 40) + 1),
];
const RATES: [f32; 4] = [0.0, 0.0125, 0.2, 0.5];

const fn step(seed: u64, step: u64, first_position: u64) -> StepParams {
    StepParams { seed, step, first_position, learning_rate: 0.0, body: 0, body_rate: 0.0, ema_decay: 0.0 }
}

/// What a pass writes to `mask` in each of the steps, NaN before.
fn factors<O: Ops>(ops: &mut O, pass: &Pass, mask: Tensor) -> Vec<Vec<f32>> {
    let one = |step| {
        ops.upload(mask, &vec![f32::NAN; mask.elements]).unwrap();
        ops.set_step(step).unwrap();
        ops.run(pass).unwrap();
        values(ops, mask).unwrap()
    };
    STEPS.into_iter().map(one).collect()
}

/// A pass on a new mask, and its tensors.
fn masked(elements: usize, pass: impl Fn(Tensor) -> Pass) -> (Tensors, Tensor, Pass) {
    let mut tensors = Tensors::default();
    let mask = tensors.new_tensor("mask", elements, Kind::Float);
    (tensors, mask, pass(mask))
}

fn plan(device: &impl Device, pass: &Pass, tensors: &Tensors, mask: Tensor) -> Plan {
    Plan::new(device, &[*pass], tensors, &[mask])
}

fn on_cpu(tensors: &Tensors, mask: Tensor, pass: &Pass, threads: usize) -> Vec<Vec<f32>> {
    let plan = plan(&CpuDevice::fp32(threads), pass, tensors, mask);
    let mut cpu = CpuOps::new(StateSize::new(0, 0), &[&plan], CpuDevice::fp32(threads)).unwrap();
    cpu.bind(&plan).unwrap();
    factors(&mut cpu, pass, mask)
}

/// Compares with the oracle; the stated share of factors is 0, and all others are 1/(1 − rate).
fn check_on_cpu(elements: usize, what: &str, rate: f32, pass: impl Fn(Tensor) -> Pass) {
    let (tensors, mask, pass) = masked(elements, pass);
    let expected = factors(&mut Reference::new(0, 0), &pass, mask);
    for threads in [1, 2] {
        for (got, expected) in on_cpu(&tensors, mask, &pass, threads).iter().zip(&expected) {
            let close = |(a, b): (&f32, &f32)| (a == b) || (*b > 0.0 && (a / b - 1.0).abs() <= f32::EPSILON);
            assert!(got.iter().zip(expected).all(close), "{what}, {threads} threads");
            assert!(got.iter().all(|factor| [0.0, 1.0 / (1.0 - rate)].contains(factor)), "{what}");
            let dropped = got.iter().filter(|factor| **factor == 0.0).count() as f32 / elements as f32;
            let deviation = (rate * (1.0 - rate) / elements as f32).sqrt();
            assert!((dropped - rate).abs() <= 5.0 * deviation, "{what}: a share of {dropped} was dropped");
        }
    }
}

#[test]
fn drop_path_on_the_cpu_agrees_with_the_oracle() {
    for (block, rate) in [0, 15, 54, 65_535].into_iter().zip(RATES) {
        let pass = |keep| DropPathMask { images: 5000, block, rate, keep }.into();
        check_on_cpu(5000, &format!("block {block}, rate {rate}"), rate, pass);
    }
}

#[test]
fn dropout_on_the_cpu_agrees_with_the_oracle() {
    for (images, channels) in [(500, 8), (500, 10), (50, 1282)] {
        for rate in RATES {
            let what = format!("{images} images, {channels} channels, rate {rate}");
            let pass = |mask| DropoutMask { images, channels, rate, mask }.into();
            check_on_cpu(images * channels, &what, rate, pass);
        }
    }
}

fn check<G: TestGpu>(elements: usize, what: &str, pass: impl Fn(Tensor) -> Pass) {
    let (tensors, mask, pass) = masked(elements, pass);
    let expected = on_cpu(&tensors, mask, &pass, 1).concat();
    assert!(expected.iter().all(|factor| factor.is_finite()), "{what}");

    let precision = Precision::Fp16;
    let mut plan = plan(&CudaDevice::new(precision), &pass, &tensors, mask);
    plan.tensor_bytes = 4 * elements; // the arena ends with the mask
    for way in G::ways(precision) {
        let mut ops = CudaOps::new(G::open(*way), StateSize::new(0, 0), &[&plan], precision).unwrap();
        ops.bind(&plan).unwrap();
        let found = factors(&mut ops, &pass, mask).concat();
        let differ = found.iter().zip(&expected).filter(|(a, b)| !equal_bits(&[**a], &[**b])).count();
        assert_eq!(differ, 0, "{what}, {way:?}: of {} factors", found.len());
    }
}

fn drop_path_of_the_kernels_equals_the_cpu<G: TestGpu>() {
    for images in [1, 31, 128, 129, 1000] {
        for (block, rate) in [0, 15, 54, 65_535].into_iter().zip(RATES) {
            let what = format!("{images} images, block {block}, rate {rate}");
            check::<G>(images, &what, |keep| DropPathMask { images, block, rate, keep }.into());
        }
    }
}
on_cuda!(drop_path_of_the_kernels_equals_the_cpu);

fn dropout_of_the_kernels_equals_the_cpu<G: TestGpu>() {
    for (images, channels) in [(1, 1), (3, 2), (129, 3), (5, 8), (50, 10), (2, 1280), (1, 2559)] {
        for rate in RATES {
            let what = format!("{images} images, {channels} channels, rate {rate}");
            check::<G>(images * channels, &what, |mask| DropoutMask { images, channels, rate, mask }.into());
        }
    }
}
on_cuda!(dropout_of_the_kernels_equals_the_cpu);

/// More masks than one launch draws, and two numbers of images: each as if it were alone.
fn masks_drawn_together_are_those_drawn_alone<G: TestGpu>() {
    let precision = Precision::Fp16;
    let mut tensors = Tensors::default();
    let mut new = |elements| tensors.new_tensor("mask", elements, Kind::Float);
    let mut all: Vec<(Tensor, Pass)> = Vec::new();
    for block in 0..70 {
        let (images, keep) = (130, new(130));
        all.push((keep, DropPathMask { images, block, rate: 0.01 * block as f32, keep }.into()));
    }
    for (images, channels, rate) in [(130, 10, 0.2), (130, 6, 0.5), (3, 5, 0.5)] {
        let mask = new(images * channels);
        all.push((mask, DropoutMask { images, channels, rate, mask }.into()));
        let keep = new(images);
        all.push((keep, DropPathMask { images, block: 15, rate, keep }.into()));
    }
    let (masks, passes): (Vec<Tensor>, Vec<Pass>) = all.into_iter().unzip();
    let plan = Plan::new(&CudaDevice::new(precision), &passes, &tensors, &masks);
    let of = |way: G::Way, together: bool| {
        let mut ops = CudaOps::new(G::open(way), StateSize::new(0, 0), &[&plan], precision).unwrap();
        ops.bind(&plan).unwrap();
        ops.set_step(STEPS[1]).unwrap();
        for (pass, mask) in passes.iter().zip(&masks) {
            ops.run(pass).unwrap();
            if !together {
                values(&mut ops, *mask).unwrap();
            }
        }
        // Masks that wait are those of the step in which their pass ran.
        ops.set_step(STEPS[2]).unwrap();
        let drawn: Vec<f32> = masks.iter().flat_map(|mask| values(&mut ops, *mask).unwrap()).collect();
        drawn
    };
    let alone = of(G::WAYS[0], false);
    for way in G::ways(precision) {
        assert!(equal_bits(&of(*way, true), &alone), "{way:?}");
    }
}
on_cuda!(masks_drawn_together_are_those_drawn_alone);
