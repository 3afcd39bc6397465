//! The head against the oracle: pooling, dropout, classifier, loss.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, on_every_device};
use crate::common::reference::Reference;
use effnet::ops::cpu::{CpuDevice, CpuOps};
use effnet::ops::*;

/// Images, pixels, channels, classes.
const SHAPES: [(usize, usize, usize, usize); 10] = [
    (1, 1, 8, 2),
    (5, 1, 1280, 10),
    (2, 4, 24, 3),
    (3, 9, 40, 7),
    (4, 49, 112, 1000),
    (1, 64, 1152, 101),
    (5, 49, 1792, 10),
    (2, 81, 320, 37),
    (67, 4, 1280, 33),
    (300, 4, 40, 3),
];

fn dropout(f: &mut Fixture, elements: usize) -> Tensor {
    let factors = f.noise("mask", elements, 0.0, 1.0);
    f.input("dropout", factors.into_iter().map(|u| if u < 0.2 { 0.0 } else { 1.25 }).collect())
}

fn forward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, pixels, channels, classes) in SHAPES {
        for (drops, weights) in [(false, Weights::Raw), (true, Weights::Raw), (false, Weights::Ema)] {
            let name =
                format!("head {images}×{pixels}×{channels} to {classes}, dropout {drops}, {weights:?}");
            let mut f = Fixture::new(name);
            f.weights = weights;
            let y = f.activation("y", images * pixels, channels);
            let pass = HeadForward {
                images,
                pixels,
                channels,
                classes,
                bn: f.norm_of("bn", &y, channels),
                y: f.input("y", y),
                pooled: f.output("pooled", images * channels),
                dropout: drops.then(|| dropout(&mut f, images * channels)),
                classifier: f.dense("classifier", channels, classes),
                logits: f.output("logits", images * classes),
            };
            cases.push(Case::new(f, Pass::HeadForward(pass), channels.max(pixels)));
        }
    }
    cases
}
on_every_device!(forward_agrees_with_the_oracle, forward_cases());

fn loss(f: &mut Fixture, images: usize, classes: usize, width: f64, smoothing: f32) -> Loss {
    Loss {
        images,
        classes,
        logits: f.input_noise("logits", images * classes, -width, width),
        labels: f.input_labels((0..images).map(|n| (37 * n % classes) as u32).collect()),
        smoothing,
        scale: 1.0 / 64.0,
        losses: f.output("losses", images),
        dlogits: f.output("dlogits", images * classes),
    }
}

fn loss_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, _, _, classes) in SHAPES {
        for smoothing in [0.0, 0.1] {
            for width in [0.1, 3.0, 30.0] {
                let name = format!("loss of {images}×{classes}, smoothing {smoothing}, logits up to {width}");
                let mut f = Fixture::new(name);
                let pass = loss(&mut f, images, classes, width, smoothing);
                cases.push(Case::new(f, Pass::Loss(pass), classes));
            }
        }
    }
    cases
}
on_every_device!(the_loss_agrees_with_the_oracle, loss_cases());

/// e^300 is no fp32 number: the largest logit must be taken off first.
fn large_logits() -> [Case; 1] {
    let mut f = Fixture::new("large logits");
    let pass = loss(&mut f, 5, 10, 300.0, 0.1);
    [Case::new(f, Pass::Loss(pass), 10)]
}
on_every_device!(the_loss_of_large_logits_is_finite, large_logits());

fn backward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, pixels, channels, classes) in SHAPES {
        for drops in [false, true] {
            let name = format!("head {images}×{pixels}×{channels} to {classes}, dropout {drops}");
            let mut f = Fixture::new(name);
            let y = f.activation("y", images * pixels, channels);
            let pass = HeadBackward {
                images,
                pixels,
                channels,
                classes,
                bn: f.norm_of("bn", &y, channels),
                y: f.input("y", y),
                pooled: f.input_noise("pooled", images * channels, -0.2, 1.0),
                dropout: drops.then(|| dropout(&mut f, images * channels)),
                classifier: f.dense("classifier", channels, classes),
                dlogits: f.input_noise("dlogits", images * classes, -0.1, 0.1),
                du: f.output("du", images * pixels * channels),
            };
            let terms = classes.max(images * pixels);
            cases.push(Case::new(f, Pass::HeadBackward(pass), terms));
        }
    }
    cases
}
on_every_device!(backward_agrees_with_the_oracle, backward_cases());

/// Masks are a function of seed, step, position and feature, so they are equal on all devices.
#[test]
fn dropout_draws_are_the_oracle_s() {
    let mut tensors = Tensors::default();
    let (images, device) = (50, CpuDevice { threads: 2 });
    for channels in [8, 10, 1280] {
        let mask = tensors.new_tensor("mask", images * channels, Kind::Float);
        for (seed, step, first_position, rate) in
            [(1, 0, 0, 0.2f32), (7, 12, 1 << 33, 0.5), (7, 13, 1 << 33, 0.5)]
        {
            let pass = DropoutMask { images, channels, rate, mask };
            let plan = Plan::new(&device, &[pass.into()], &tensors, &[mask]);
            let mut cpu = CpuOps::new(StateSize::new(0, 0), &[&plan], 2).unwrap();
            cpu.bind(&plan).unwrap();
            let mut reference = Reference::new(0, 0);
            let params = StepParams { seed, step, first_position, ..StepParams::default() };
            let (mut got, mut expected) = (vec![f32::NAN; mask.elements], vec![0.0; mask.elements]);
            cpu.set_step(params).unwrap();
            cpu.run(&pass.into()).unwrap();
            cpu.download(mask, &mut got).unwrap();
            reference.set_step(params).unwrap();
            reference.run(&pass.into()).unwrap();
            reference.download(mask, &mut expected).unwrap();
            let close = |(a, b): (&f32, &f32)| (a == b) || (*b > 0.0 && (a / b - 1.0).abs() <= f32::EPSILON);
            assert!(got.iter().zip(&expected).all(close), "seed {seed}, step {step}, {channels} channels");
            let count = mask.elements as f32;
            let dropped = expected.iter().filter(|&&f| f == 0.0).count() as f32 / count;
            assert!((dropped - rate).abs() < 5.0 * (rate * (1.0 - rate) / count).sqrt());
        }
    }
}
