//! The projection against the oracle.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices, on_every_device};
use effnet::ops::*;

/// Images, pixels, inputs, outputs. Images of 1, 4, 9 and 49 rows, so that tiles straddle them.
const SHAPES: [(usize, usize, usize, usize); 12] = [
    (5, 1, 48, 8),
    (1, 4, 96, 24),
    (2, 4, 144, 24),
    (3, 9, 240, 40),
    (1, 25, 32, 16),
    (5, 49, 336, 56),
    (2, 49, 1152, 320),
    (1, 64, 480, 112),
    (3, 49, 672, 192),
    (4, 4, 1152, 192),
    (2, 900, 96, 24),
    (3, 784, 144, 40),
];

fn forward(f: &mut Fixture, images: usize, pixels: usize, inputs: usize, outputs: usize) -> ProjectForward {
    let rows = images * pixels;
    let x = f.activation("x", rows, inputs);
    ProjectForward {
        images,
        pixels,
        inputs,
        outputs,
        input_bn: f.norm_of("input bn", &x, inputs),
        x: f.input("x", x),
        gate: f.input_noise("gate", images * inputs, 0.1, 0.9),
        weight: f.weight("weight", inputs * outputs, inputs),
        y: f.output("y", rows * outputs),
        bn: f.norm("bn", outputs, rows),
    }
}

/// Every shape with both kinds of statistics.
fn forward_cases() -> Vec<Case> {
    let few_rows = [(1, 1, 24, 8), (2, 1, 16, 24), (1, 3, 40, 8), (1, 7, 8, 24)];
    let mut cases = Vec::new();
    for (images, pixels, inputs, outputs) in SHAPES.into_iter().chain(few_rows) {
        for statistics in [Statistics::Batch, Statistics::Running] {
            let name = format!("project {images}×{pixels}×{inputs} to {outputs}, {statistics:?}");
            let mut f = Fixture::new(name);
            let mut pass = forward(&mut f, images, pixels, inputs, outputs);
            pass.bn.statistics = statistics;
            cases.push(Case::new(f, Pass::ProjectForward(pass), inputs.max(images * pixels)));
        }
    }
    cases
}

on_every_device!(forward_agrees_with_the_oracle, forward_cases());

/// The other widths of the family, some with two column tiles, and maps large enough for the taller tiles and for blocks
/// that compute several tiles of rows.
fn forward_tiles() -> impl Iterator<Item = Case> {
    let shapes = [
        (3, 49, 96, 48),
        (5, 49, 24, 384),
        (3, 49, 16, 640),
        (44, 784, 8, 80),
        (22, 1600, 8, 104),
        (350, 49, 8, 192),
        (350, 49, 8, 320),
        (670, 400, 8, 8),
    ];
    shapes.into_iter().map(|(images, pixels, inputs, outputs)| {
        let mut f = Fixture::new(format!("project {images}×{pixels}×{inputs} to {outputs}"));
        let pass = Pass::ProjectForward(forward(&mut f, images, pixels, inputs, outputs));
        Case::new(f, pass, images * pixels).in_fp16()
    })
}
on_cuda_devices!(forward_of_every_tile_agrees_with_the_oracle, forward_tiles());

fn ema_weights() -> [Case; 1] {
    let mut f = Fixture::new("project with EMA weights");
    f.weights = Weights::Ema;
    let mut pass = forward(&mut f, 3, 25, 96, 24);
    pass.bn.statistics = Statistics::Running;
    [Case::new(f, Pass::ProjectForward(pass), 96)]
}
on_every_device!(forward_uses_ema_weights_on_request, ema_weights());

/// A mean 100 times the deviation: sums of squares about zero would leave nothing of the variance in fp32.
/// γ near zero and a large β make the input silu(β) with little noise.
fn large_mean() -> [Case; 1] {
    let mut f = Fixture::new("project with a large mean");
    let (images, pixels, inputs, outputs) = (3, 784, 96, 24);
    let mut pass = forward(&mut f, images, pixels, inputs, outputs);
    pass.gate = f.input_noise("even gate", images * inputs, 0.5, 0.502);
    pass.weight = f.param("positive weight", inputs * outputs, 0.0, 0.2);
    let ([mean, r], mut gamma) = (
        [0, 1].map(|row| f.value(pass.input_bn.coefficients)[row * inputs..][..inputs].to_vec()),
        f.noise("small gamma", inputs, 0.5, 1.5),
    );
    gamma.iter_mut().for_each(|gamma| *gamma *= 0.02);
    let beta = f.noise("large beta", inputs, 2.0, 4.0);
    let scale: Vec<f32> = gamma.iter().zip(&r).map(|(gamma, r)| gamma * r).collect();
    let shift = (0..inputs).map(|c| beta[c] - mean[c] * scale[c]).collect();
    let coefficients = f.input("large coefficients", [mean, r, scale, shift].concat());
    pass.input_bn.coefficients = coefficients;
    pass.input_bn.weight = f.param_of("small gamma", gamma);
    pass.input_bn.bias = f.param_of("large beta", beta);
    [Case::new(f, Pass::ProjectForward(pass), images * pixels)]
}
on_every_device!(statistics_survive_a_large_mean, large_mean());

fn inference(
    f: &mut Fixture,
    [images, pixels, inputs, outputs]: [usize; 4],
    shortcut: bool,
) -> ProjectInference {
    let rows = images * pixels;
    let y = f.activation("y", rows, outputs);
    ProjectInference {
        images,
        pixels,
        inputs,
        outputs,
        a: f.input_noise("a", rows * inputs, -0.3, 1.5),
        gate: f.input_noise("gate", images * inputs, 0.1, 0.9),
        weight: f.weight("weight", inputs * outputs, inputs),
        bn: BatchNorm { statistics: Statistics::Running, ..f.norm_of("bn", &y, outputs) },
        shortcut: shortcut.then(|| f.input_noise("shortcut", rows * outputs, -1.0, 1.0)),
        out: f.output("out", rows * outputs),
    }
}

/// The shapes of the other passes; few rows; widths that fill no vector; maps of several tiles whose images are longer than
/// a tile; maps so large that the gate goes into the weight.
fn inference_cases() -> Vec<Case> {
    let more = [
        (1, 1, 24, 8),
        (2, 1, 16, 24),
        (1, 3, 40, 8),
        (1, 7, 8, 24),
        (3, 5, 13, 3),
        (2, 7, 27, 17),
        (1, 49, 1152, 320),
        (40, 1, 32, 16),
        (2, 300, 24, 16),
        (1, 700, 40, 40),
        (3, 260, 13, 3),
        (3, 260, 14, 3),
        (2, 1100, 144, 24),
    ];
    let mut cases = Vec::new();
    for (images, pixels, inputs, outputs) in SHAPES.into_iter().chain(more) {
        for (shortcut, weights) in [(false, Weights::Raw), (true, Weights::Raw), (true, Weights::Ema)] {
            let name =
                format!("project {images}×{pixels}×{inputs} to {outputs}, shortcut {shortcut}, {weights:?}");
            let mut f = Fixture::new(name);
            f.weights = weights;
            let pass = inference(&mut f, [images, pixels, inputs, outputs], shortcut);
            cases.push(Case::new(f, pass.into(), inputs));
        }
    }
    cases
}

#[test]
fn inference_agrees_with_the_oracle() {
    check_on_cpu(inference_cases());
}

fn backward(f: &mut Fixture, [images, pixels, inputs, outputs]: [usize; 4], drops: bool) -> ProjectBackward {
    let rows = images * pixels;
    let y = f.activation("y", rows, outputs);
    let bn = f.norm_of("bn", &y, outputs);
    let dout = f.noise("dout", rows * outputs, -1.0, 1.2);
    let keep = f.keep("keep", images, drops);
    let du: Vec<f64> = (0..rows * outputs)
        .map(|at| {
            let factor = keep.map_or(1.0, |keep| f.value(keep)[at / outputs / pixels]);
            dout[at] as f64 * factor as f64
        })
        .collect();
    f.set_sums(&bn, &y, &du);
    let x = f.activation("x", rows, inputs);
    ProjectBackward {
        images,
        pixels,
        inputs,
        outputs,
        input_bn: f.norm_of("input bn", &x, inputs),
        x: f.input("x", x),
        gate: f.input_noise("gate", images * inputs, 0.1, 0.9),
        weight: f.weight("weight", inputs * outputs, inputs),
        y: f.input("y", y),
        bn,
        dout: f.input("dout", dout),
        keep,
        da: f.output("da", rows * inputs),
        five_sums: f.output_rows("five sums", 5, images * inputs),
    }
}

pub fn backward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (images, pixels, inputs, outputs) in SHAPES {
        for drops in [false, true] {
            // If images of a small batch are dropped, too few rows are left for batch norm's gradient.
            if drops && images * pixels < 8 {
                continue;
            }
            let name = format!("project {images}×{pixels}×{inputs} to {outputs}, dropped {drops}");
            let mut f = Fixture::new(name);
            let pass = backward(&mut f, [images, pixels, inputs, outputs], drops);
            cases.push(Case::new(f, Pass::ProjectBackward(pass), outputs.max(images * pixels)));
        }
    }
    cases
}

on_every_device!(backward_agrees_with_the_oracle, backward_cases());

/// The other widths of the family, slices of unequal widths, segments of images, several images in a block.
fn backward_tiles() -> impl Iterator<Item = Case> {
    let shapes = [
        (2, 1600, 32, 16),
        (3, 100, 64, 32),
        (2, 196, 48, 24),
        (3, 49, 288, 48),
        (2, 64, 200, 80),
        (2, 49, 168, 160),
        (3, 25, 136, 384),
        (2, 9, 72, 640),
        (150, 9, 104, 16),
        (11, 12_544, 8, 8),
    ];
    shapes.into_iter().map(|(images, pixels, inputs, outputs)| {
        let mut f = Fixture::new(format!("project {images}×{pixels}×{inputs} to {outputs}"));
        let pass = Pass::ProjectBackward(backward(&mut f, [images, pixels, inputs, outputs], true));
        let terms = outputs.max(images * pixels);
        let case = Case::new(f, pass, terms);
        if terms > 10_000 { case.in_fp16() } else { case }
    })
}
on_cuda_devices!(backward_of_every_tile_agrees_with_the_oracle, backward_tiles());
