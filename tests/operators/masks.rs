//! Stochastic-depth and dropout factors of the kernels: bit by bit those of the CPU's operators, which `residual.rs` and
//! `head.rs` compare with the oracle's.

use crate::common::fixture::equal_bits;
use crate::common::gpu::{TestGpu, on_cuda};
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
    StepParams { seed, step, first_position, learning_rate: 0.0, ema_decay: 0.0 }
}

/// What a pass writes to `mask` in each of the steps, NaN before.
fn factors<O: Ops>(ops: &mut O, pass: &Pass, mask: Tensor) -> Vec<f32> {
    let mut all = Vec::new();
    for step in STEPS {
        ops.upload(mask, &vec![f32::NAN; mask.elements]).unwrap();
        ops.set_step(step).unwrap();
        ops.run(pass).unwrap();
        let mut values = vec![0.0; mask.elements];
        ops.download(mask, &mut values).unwrap();
        all.extend(values);
    }
    all
}

fn check<G: TestGpu>(elements: usize, what: &str, pass: impl Fn(Tensor) -> Pass) {
    let mut tensors = Tensors::default();
    let mask = tensors.new_tensor("mask", elements, Kind::Float);
    let pass = pass(mask);
    fn plan(device: &impl Device, pass: &Pass, tensors: &Tensors, mask: Tensor) -> Plan {
        Plan::new(device, &[*pass], tensors, &[mask])
    }
    let on_cpu = plan(&CpuDevice { threads: 1 }, &pass, &tensors, mask);
    let mut cpu = CpuOps::new(StateSize::new(0, 0), &[&on_cpu], 1).unwrap();
    cpu.bind(&on_cpu).unwrap();
    let expected = factors(&mut cpu, &pass, mask);
    assert!(expected.iter().all(|factor| factor.is_finite()), "{what}");

    let precision = Precision::Fp16;
    let mut on_gpu = plan(&CudaDevice { precision }, &pass, &tensors, mask);
    on_gpu.tensor_bytes = 4 * elements; // the arena ends with the mask
    for way in G::ways(precision) {
        let mut ops = CudaOps::new(G::open(*way), StateSize::new(0, 0), &[&on_gpu], precision).unwrap();
        ops.bind(&on_gpu).unwrap();
        let found = factors(&mut ops, &pass, mask);
        let differ = found.iter().zip(&expected).filter(|(a, b)| !equal_bits(&[**a], &[**b])).count();
        assert_eq!(differ, 0, "{what}, {way:?}: of {} factors", found.len());
    }
}

fn drop_path_draws_are_the_cpu_s<G: TestGpu>() {
    for images in [1, 31, 128, 129, 1000] {
        for (block, rate) in [0, 15, 54, 65_535].into_iter().zip(RATES) {
            let what = format!("{images} images, block {block}, rate {rate}");
            check::<G>(images, &what, |keep| DropPathMask { images, block, rate, keep }.into());
        }
    }
}
on_cuda!(drop_path_draws_are_the_cpu_s);

fn dropout_draws_are_the_cpu_s<G: TestGpu>() {
    for (images, channels) in [(1, 1), (3, 2), (129, 3), (5, 8), (50, 10), (2, 1280), (1, 2559)] {
        for rate in RATES {
            let what = format!("{images} images, {channels} channels, rate {rate}");
            check::<G>(images * channels, &what, |mask| DropoutMask { images, channels, rate, mask }.into());
        }
    }
}
on_cuda!(dropout_draws_are_the_cpu_s);
