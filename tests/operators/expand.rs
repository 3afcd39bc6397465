//! The pointwise expansion (and the head's convolution) against the oracle.

use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices, on_every_device};
use crate::common::fixture::{Fixture, doubles};
use effnet::ops::*;

/// Images, pixels of each, inputs, outputs: the family's channel counts, rows that fill no tile, and maps
/// large enough to be cut into several tasks.
const SHAPES: [(usize, usize, usize, usize); 13] = [
    (5, 1, 8, 48),
    (1, 4, 16, 96),
    (2, 4, 24, 144),
    (3, 9, 40, 240),
    (1, 25, 32, 192),
    (5, 49, 56, 336),
    (2, 49, 192, 1152),
    (1, 64, 80, 480),
    (3, 49, 112, 672),
    (4, 4, 320, 1280),
    (1, 196, 24, 144),
    (2, 900, 16, 96),
    (3, 784, 40, 240),
];

fn forward(f: &mut Fixture, rows: usize, inputs: usize, outputs: usize, x: Vec<f32>) -> ExpandForward {
    ExpandForward {
        rows,
        inputs,
        outputs,
        x: f.input("x", x),
        weight: f.weight("weight", inputs * outputs, inputs),
        y: f.output("y", rows * outputs),
        bn: f.norm("bn", outputs, rows),
    }
}

/// Every shape with both kinds of statistics.
fn forward_cases() -> Vec<Case> {
    let few_rows = [(1, 1, 24, 144), (1, 2, 16, 96), (1, 3, 40, 8), (1, 7, 8, 24)];
    let mut cases = Vec::new();
    for (images, pixels, inputs, outputs) in SHAPES.into_iter().chain(few_rows) {
        for statistics in [Statistics::Batch, Statistics::Running] {
            let rows = images * pixels;
            let mut f = Fixture::new(format!("expand {rows}×{inputs} to {outputs}, {statistics:?}"));
            let x = f.activation("x", rows, inputs);
            let mut pass = forward(&mut f, rows, inputs, outputs, x);
            pass.bn.statistics = statistics;
            cases.push(Case::new(f, Pass::ExpandForward(pass), inputs.max(rows)));
        }
    }
    cases
}

on_every_device!(forward_agrees_with_the_oracle, forward_cases());

/// Maps large enough for the taller tiles, with full and partial column tiles, and for blocks that compute several tiles
/// of rows.
fn large_maps() -> impl Iterator<Item = Case> {
    let shapes = [(34_000, 8, 96), (17_000, 8, 248), (22_600, 104, 176), (132_000, 8, 16)];
    shapes.into_iter().map(|(rows, inputs, outputs)| {
        let mut f = Fixture::new(format!("expand {rows}×{inputs} to {outputs}"));
        let x = f.activation("x", rows, inputs);
        let pass = Pass::ExpandForward(forward(&mut f, rows, inputs, outputs, x));
        Case::new(f, pass, rows).in_fp16()
    })
}
on_cuda_devices!(forward_of_large_maps_agrees_with_the_oracle, large_maps());

fn ema_weights() -> [Case; 1] {
    let mut f = Fixture::new("expand with EMA weights");
    f.weights = Weights::Ema;
    let x = f.activation("x", 50, 24);
    let mut pass = forward(&mut f, 50, 24, 144, x);
    pass.bn.statistics = Statistics::Running;
    [Case::new(f, Pass::ExpandForward(pass), 24)]
}
on_every_device!(forward_uses_ema_weights_on_request, ema_weights());

/// A mean 100 times the deviation: sums of squares about zero would leave nothing of the variance in fp32.
fn large_mean() -> [Case; 1] {
    let mut f = Fixture::new("expand with a large mean");
    let (rows, inputs, outputs) = (3000, 24, 144);
    let x = f.noise("x", rows * inputs, 99.0, 101.0);
    let mut pass = forward(&mut f, rows, inputs, outputs, x);
    pass.weight = f.param("positive weight", inputs * outputs, 0.0, 0.2);
    [Case::new(f, Pass::ExpandForward(pass), rows)]
}
on_every_device!(statistics_survive_a_large_mean, large_mean());

pub fn backward(
    f: &mut Fixture,
    [images, pixels, inputs, outputs]: [usize; 4],
    shortcut: bool,
    drops: bool,
) -> ExpandBackward {
    let rows = images * pixels;
    let y = f.activation("y", rows, outputs);
    let bn = f.norm_of("bn", &y, outputs);
    let du = f.noise("du", rows * outputs, -1.0, 1.2);
    f.set_sums(&bn, &y, &doubles(&du));
    let y3 = f.activation("previous y", rows, inputs);
    let previous = PreviousBlock {
        bn: f.norm_of("previous bn", &y3, inputs),
        y: f.input("previous y", y3),
        keep: f.keep("previous keep", images, drops),
        pixels,
    };
    let x = f.activation("x", rows, inputs);
    ExpandBackward {
        rows,
        inputs,
        outputs,
        x: f.input("x", x),
        weight: f.weight("weight", inputs * outputs, inputs),
        y: f.input("y", y),
        bn,
        du: f.input("du", du),
        narrow: Some(NarrowGradient {
            dx: f.output("dx", rows * inputs),
            shortcut: shortcut.then(|| f.input_noise("shortcut", rows * inputs, -1.0, 1.0)),
            previous,
        }),
    }
}

pub fn backward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, pixels, inputs, outputs) in SHAPES {
        for (shortcut, drops) in [(false, false), (true, false), (false, true), (true, true)] {
            let name = format!(
                "expand {images}×{pixels}×{inputs} to {outputs}, shortcut {shortcut}, dropped {drops}"
            );
            let mut f = Fixture::new(name);
            let pass = backward(&mut f, [images, pixels, inputs, outputs], shortcut, drops);
            cases.push(Case::new(f, Pass::ExpandBackward(pass), outputs.max(images * pixels)));
        }
    }
    cases
}

#[test]
fn backward_on_the_cpu_agrees_with_the_oracle() {
    check_on_cpu(backward_cases());
}

/// Of the four kinds of each shape, the two that differ most.
fn two_kinds() -> impl Iterator<Item = Case> {
    let cases = backward_cases().into_iter().enumerate();
    cases.filter(|(at, _)| matches!(at % 4, 0 | 3)).map(|(_, case)| case)
}
on_cuda_devices!(backward_agrees_with_the_oracle, two_kinds());

/// The other widths of the family, one and two chunks of channels, and blocks that compute several tiles of rows.
pub fn every_tile() -> impl Iterator<Item = Case> {
    let shapes = [
        (3, 49, 8, 64),
        (2, 300, 24, 96),
        (3, 49, 32, 192),
        (3, 49, 16, 256),
        (3, 49, 32, 264),
        (3, 49, 48, 288),
        (1, 100, 88, 96),
        (2, 49, 128, 104),
        (2, 25, 160, 320),
        (3, 49, 208, 72),
        (2, 49, 344, 136),
        (1, 40, 640, 96),
        (11, 12_544, 16, 8),
    ];
    shapes.into_iter().map(|(images, pixels, inputs, outputs)| {
        let mut f = Fixture::new(format!("expand {images}×{pixels}×{inputs} to {outputs}"));
        let pass = Pass::ExpandBackward(backward(&mut f, [images, pixels, inputs, outputs], true, true));
        let terms = outputs.max(images * pixels);
        let case = Case::new(f, pass, terms);
        if terms > 10_000 { case.in_fp16() } else { case }
    })
}
on_cuda_devices!(backward_of_every_tile_agrees_with_the_oracle, every_tile());

/// A map so large that a block of the data gradient computes a second tile of rows, whose weights overwrite the place
/// where the first tile was assembled. In fp32, because its tiles have the fewest rows.
fn many_rows() -> [Case; 1] {
    let (images, pixels, inputs, outputs) = (3, 11_300, 328, 8);
    let mut f = Fixture::new(format!("expand {images}×{pixels}×{inputs} to {outputs}"));
    let pass = Pass::ExpandBackward(backward(&mut f, [images, pixels, inputs, outputs], true, true));
    [Case::new(f, pass, images * pixels).in_fp32()]
}
on_cuda_devices!(backward_of_many_rows_agrees_with_the_oracle, many_rows());
