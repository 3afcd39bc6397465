//! The end of a block against the oracle: batch norm, stochastic depth, shortcut; and the factors' draws.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices};
use crate::common::reference::Reference;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

fn forward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, pixels, channels) in [
        (1, 1, 8),
        (5, 1, 24),
        (2, 4, 40),
        (3, 9, 112),
        (4, 49, 320),
        (2, 9, 328),
        (1, 196, 16),
        (3, 784, 24),
        (5, 3136, 40),
    ] {
        for (shortcut, drops) in [(false, false), (true, false), (true, true), (false, true)] {
            for weights in [Weights::Raw, Weights::Ema] {
                let name = format!(
                    "residual {images}×{pixels}×{channels}, shortcut {shortcut}, dropped {drops}, {weights:?}"
                );
                let mut f = Fixture::new(name);
                f.weights = weights;
                let y = f.activation("y", images * pixels, channels);
                let pass = ResidualForward {
                    images,
                    pixels,
                    channels,
                    bn: f.norm_of("bn", &y, channels),
                    y: f.input("y", y),
                    keep: f.keep("keep", images, drops),
                    shortcut: shortcut
                        .then(|| f.input_noise("shortcut", images * pixels * channels, -1.0, 1.0)),
                    out: f.output("out", images * pixels * channels),
                };
                cases.push(Case::new(f, Pass::ResidualForward(pass), 1));
            }
        }
    }
    cases
}

#[test]
fn forward_agrees_with_the_oracle_with_both_weights() {
    check_on_cpu(forward_cases());
}

/// The largest shape has nothing for a GPU that the one before has not.
fn for_kernels() -> impl Iterator<Item = Case> {
    forward_cases().into_iter().filter(|case| {
        let Pass::ResidualForward(pass) = &case.pass else { unreachable!("the list is of these") };
        pass.pixels <= 784 && case.fixture.weights == Weights::Raw
    })
}
on_cuda_devices!(forward_agrees_with_the_oracle, for_kernels());

/// A dropped image passes its shortcut, to the bit, whatever its batch norm says.
#[test]
fn a_dropped_image_passes_its_shortcut_only() {
    let f = &mut Fixture::new("dropped image");
    let (images, pixels, channels) = (3, 4, 16);
    let y = f.activation("y", images * pixels, channels);
    let pass = ResidualForward {
        images,
        pixels,
        channels,
        bn: f.norm_of("bn", &y, channels),
        y: f.input("y", y),
        keep: f.keep("keep", images, true),
        shortcut: Some(f.input_noise("shortcut", images * pixels * channels, -1.0, 1.0)),
        out: f.output("out", images * pixels * channels),
    };
    let outcome = f.output_on_cpu(Pass::ResidualForward(pass), pass.out);
    let image = pixels * channels;
    assert_eq!(outcome[..image], f.value(pass.shortcut.unwrap())[..image]);
    assert_ne!(outcome[image..2 * image], f.value(pass.shortcut.unwrap())[image..2 * image]);
}

/// Masks are a function of seed, step, position and block, so they are equal on all devices; about the stated
/// share is dropped.
#[test]
fn stochastic_depth_draws_are_the_oracle_s() {
    let mut tensors = Tensors::default();
    let images = 1000;
    let keep = tensors.new_tensor("keep", images, Kind::Float);
    let device = CpuDevice { threads: 2 };
    for (seed, step, first_position, block, rate) in [
        (1, 0, 0, 3, 0.2f32),
        (7, 12, 1 << 33, 15, 0.0375),
        (7, 13, 1 << 33, 15, 0.0375),
        (u64::MAX, 5, 9, 0, 0.5),
    ] {
        let pass = DropPathMask { images, block, rate, keep };
        let plan = Plan::new(&device, &[pass.into()], &tensors, &[keep]);
        let mut cpu = CpuOps::new(StateSize::new(0, 0), &[&plan], 2).unwrap();
        cpu.bind(&plan).unwrap();
        let mut reference = Reference::new(0, 0);
        let params = StepParams { seed, step, first_position, ..StepParams::default() };
        let (mut got, mut expected) = (vec![f32::NAN; images], vec![0.0; images]);
        cpu.set_step(params).unwrap();
        cpu.run(&pass.into()).unwrap();
        cpu.download(keep, &mut got).unwrap();
        reference.set_step(params).unwrap();
        reference.run(&pass.into()).unwrap();
        reference.download(keep, &mut expected).unwrap();
        let close = |(a, b): (&f32, &f32)| (a == b) || (*b > 0.0 && (a / b - 1.0).abs() <= f32::EPSILON);
        assert!(got.iter().zip(&expected).all(close), "seed {seed}, step {step}, block {block}");
        let dropped = expected.iter().filter(|&&f| f == 0.0).count() as f32 / images as f32;
        // Five standard deviations of a share of 1000 draws.
        assert!((dropped - rate).abs() < 5.0 * (rate * (1.0 - rate) / images as f32).sqrt());
    }
}
