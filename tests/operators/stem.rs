//! The stem against the oracle.

use crate::common::fixture::cases::{Case, check_on_cpu, on_every_device};
use crate::common::fixture::{Fixture, doubles};
use effnet::model::{Padding, Window};
use effnet::ops::*;

const PADDINGS: [Padding; 2] = [Padding::Symmetric, Padding::Same];

/// Images, side, channels: odd and even sides, one-pixel outputs, the family's channels and more, maps large enough to be
/// cut into several tasks, also between columns, more channels than the GPU merges at once, and so many images that a block
/// of the GPU has several.
const SHAPES: [(usize, usize, usize); 14] = [
    (5, 1, 8),
    (5, 2, 32),
    (3, 3, 40),
    (2, 5, 24),
    (1, 7, 64),
    (3, 8, 48),
    (1, 14, 56),
    (2, 33, 32),
    (4, 66, 40),
    (2, 64, 32),
    (3, 5, 72),
    (2200, 3, 32),
    (1, 9, 136),
    (1, 56, 256),
];

/// For the CPU only, since the kernels need multiples of eight: channels that do not fill the last vector.
const ODD_SHAPES: [(usize, usize, usize); 1] = [(3, 38, 13)];

fn forward(f: &mut Fixture, images: usize, window: Window, channels: usize, image: Tensor) -> StemForward {
    let rows = images * window.output_pixels();
    StemForward {
        images,
        window,
        channels,
        image,
        weight: f.weight("weight", channels * 27, 27),
        y: f.output("y", rows * channels),
        bn: f.norm("bn", channels, rows),
    }
}

fn forward_cases(shapes: &[(usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, side, channels) in shapes {
        for padding in PADDINGS {
            for statistics in [Statistics::Batch, Statistics::Running] {
                let window = Window::new(3, 2, side, padding);
                let name = format!("stem {images}×{side}² to {channels}, {padding:?}, {statistics:?}");
                let mut f = Fixture::new(name);
                let image = f.input_noise("image", images * side * side * 3, -2.0, 2.0);
                let mut pass = forward(&mut f, images, window, channels, image);
                pass.bn.statistics = statistics;
                cases.push(Case::new(f, Pass::StemForward(pass), 27.max(pass.bn.rows)));
            }
        }
    }
    cases
}
on_every_device!(forward_agrees_with_the_oracle, forward_cases(&SHAPES));

fn ema_weights() -> [Case; 1] {
    let mut f = Fixture::new("stem with EMA weights");
    f.weights = Weights::Ema;
    let image = f.input_noise("image", 2 * 9 * 9 * 3, -2.0, 2.0);
    let mut pass = forward(&mut f, 2, Window::new(3, 2, 9, Padding::Same), 32, image);
    pass.bn.statistics = Statistics::Running;
    [Case::new(f, Pass::StemForward(pass), 27)]
}
on_every_device!(forward_uses_ema_weights_on_request, ema_weights());

/// A mean 100 times the deviation: sums of squares about zero would leave nothing of the variance in fp32.
/// Only the middle tap is not zero, so that the border adds no deviation.
fn large_mean() -> [Case; 1] {
    let mut f = Fixture::new("stem with a large mean");
    let (images, side, channels) = (3, 64, 32);
    let image = f.input_noise("image", images * side * side * 3, 99.0, 101.0);
    let mut pass = forward(&mut f, images, Window::new(3, 2, side, Padding::Symmetric), channels, image);
    let mut weights = f.noise("weights", channels * 27, 0.5, 1.5);
    weights.iter_mut().enumerate().filter(|(i, _)| i % 9 != 4).for_each(|(_, w)| *w = 0.0);
    pass.weight = f.param_of("weight", weights);
    [Case::new(f, Pass::StemForward(pass), pass.bn.rows)]
}
on_every_device!(statistics_survive_a_large_mean, large_mean());

pub fn backward_cases(shapes: &[(usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, side, channels) in shapes {
        for padding in PADDINGS {
            let window = Window::new(3, 2, side, padding);
            let mut f = Fixture::new(format!("stem {images}×{side}² to {channels}, {padding:?}"));
            let rows = images * window.output_pixels();
            let y = f.activation("y", rows, channels);
            let bn = f.norm_of("bn", &y, channels);
            let du = f.noise("du", rows * channels, -1.0, 1.2);
            f.set_sums(&bn, &y, &doubles(&du));
            let pass = StemBackward {
                images,
                window,
                channels,
                image: f.input_noise("image", images * side * side * 3, -2.0, 2.0),
                weight: f.weight("weight", channels * 27, 27),
                y: f.input("y", y),
                bn,
                du: f.input("du", du),
            };
            cases.push(Case::new(f, Pass::StemBackward(pass), rows));
        }
    }
    cases
}
on_every_device!(backward_agrees_with_the_oracle, backward_cases(&SHAPES));

#[test]
fn odd_channels_agree_with_the_oracle() {
    check_on_cpu(forward_cases(&ODD_SHAPES).into_iter().chain(backward_cases(&ODD_SHAPES)));
}

/// From 4 Mi numbers on, the CPU stores an output past its caches.
#[test]
fn outputs_larger_than_the_caches_agree_with_the_oracle() {
    check_on_cpu(forward_cases(&[(1, 256, 256)]).into_iter().take(1));
}
