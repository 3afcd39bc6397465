//! The depthwise convolution against the oracle.

use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices, on_every_device};
use crate::common::fixture::{Fixture, equal_bits};
use crate::common::reference::layers::silu_slope;
use effnet::model::{Padding, Window};
use effnet::ops::cpu::CpuDevice;
use effnet::ops::*;

/// Images, side, channels. At a side of one pixel most of a 5×5 kernel lies on the padding.
const SHAPES: [(usize, usize, usize); 12] = [
    (5, 1, 8),
    (4, 2, 1152),
    (5, 3, 24),
    (2, 5, 40),
    (3, 7, 112),
    (1, 7, 672),
    (2, 8, 96),
    (1, 14, 144),
    (2, 14, 480),
    (3, 15, 16),
    (5, 28, 240),
    (1, 57, 96),
];

/// For the CPU only, since the kernels need multiples of eight: channels that do not fill the last vector, and many
/// images of a small map, which share a task.
const ODD_SHAPES: [(usize, usize, usize); 4] = [(3, 9, 13), (2, 4, 13), (1, 19, 13), (37, 2, 300)];

/// Kernel 3 and 5, stride 1 and 2, both paddings.
fn windows(side: usize) -> impl Iterator<Item = (Window, String)> {
    let paddings = [Padding::Symmetric, Padding::Same];
    let all = [3, 5].into_iter().flat_map(move |k| {
        [1, 2].into_iter().flat_map(move |stride| paddings.map(|padding| (k, stride, padding)))
    });
    all.map(move |(k, stride, padding)| {
        (Window::new(k, stride, side, padding), format!("{k}×{k}, stride {stride}, {padding:?}"))
    })
}

pub fn forward(
    f: &mut Fixture,
    images: usize,
    window: Window,
    channels: usize,
    x: Vec<f32>,
    normalised: bool,
) -> DepthwiseForward {
    let rows = images * window.output_pixels();
    let taps = window.kernel * window.kernel;
    DepthwiseForward {
        images,
        window,
        channels,
        input_bn: normalised.then(|| f.norm_of("input bn", &x, channels)),
        x: f.input("x", x),
        weight: f.weight("weight", channels * taps, taps),
        y: f.output("y", rows * channels),
        bn: f.norm("bn", channels, rows),
    }
}

/// For the kernels: one pixel, odd sides, a map that fits a block, and one that a block slides down.
pub const CUDA_SHAPES: [(usize, usize, usize); 5] =
    [(5, 1, 8), (5, 3, 24), (3, 7, 40), (3, 15, 16), (1, 33, 40)];

fn forward_cases(shapes: &[(usize, usize, usize)], kinds: &[(bool, Statistics)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, side, channels) in shapes {
        for (window, geometry) in windows(side) {
            for &(normalised, statistics) in kinds {
                let name = format!(
                    "depthwise {images}×{side}²×{channels}, {geometry}, normalised {normalised}, {statistics:?}"
                );
                let mut f = Fixture::new(name);
                let x = f.activation("x", images * side * side, channels);
                let mut pass = forward(&mut f, images, window, channels, x, normalised);
                pass.bn.statistics = statistics;
                cases.push(Case::new(f, Pass::DepthwiseForward(pass), pass.bn.rows.max(25)));
            }
        }
    }
    cases
}

/// Whether the input is normalised, and the output's statistics.
const FORWARD_KINDS: [(bool, Statistics); 4] = [
    (true, Statistics::Batch),
    (false, Statistics::Batch),
    (true, Statistics::Running),
    (false, Statistics::Running),
];

#[test]
fn forward_on_the_cpu_agrees_with_the_oracle() {
    check_on_cpu(forward_cases(&SHAPES, &FORWARD_KINDS));
}

on_cuda_devices!(forward_agrees_with_the_oracle, forward_cases(&CUDA_SHAPES, &FORWARD_KINDS[..3]));

pub fn inference(
    f: &mut Fixture,
    images: usize,
    window: Window,
    channels: usize,
    x: Vec<f32>,
    normalised: bool,
) -> DepthwiseInference {
    let raw = forward(f, images, window, channels, x, normalised);
    let y = f.activation("y", raw.bn.rows, channels);
    let DepthwiseForward { x, input_bn, weight, y: a, .. } = raw;
    let bn = BatchNorm { statistics: Statistics::Running, ..f.norm_of("output bn", &y, channels) };
    let squeezed = f.output("squeezed", images * channels);
    DepthwiseInference { images, window, channels, x, input_bn, weight, bn, a, squeezed }
}

fn inference_cases(shapes: &[(usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, side, channels) in shapes {
        for (window, geometry) in windows(side) {
            for (normalised, weights) in
                [(true, Weights::Raw), (false, Weights::Raw), (true, Weights::Ema), (false, Weights::Ema)]
            {
                let name = format!(
                    "depthwise {images}×{side}²×{channels}, {geometry}, normalised {normalised}, {weights:?}"
                );
                let mut f = Fixture::new(name);
                f.weights = weights;
                let x = f.activation("x", images * side * side, channels);
                let pass = inference(&mut f, images, window, channels, x, normalised);
                cases.push(Case::new(f, pass.into(), window.output_pixels().max(25)));
            }
        }
    }
    cases
}

#[test]
fn inference_agrees_with_the_oracle() {
    check_on_cpu(inference_cases(&SHAPES));
    check_on_cpu(inference_cases(&ODD_SHAPES));
}

/// The first image alone, which is cut into bands of rows, has the bits that it has among others.
pub fn check_alone(f: &Fixture, all: Pass, outputs: [Tensor; 2], alone: Pass, own: [Tensor; 2]) {
    for precision in CpuDevice::PRECISIONS {
        for (all_of, own) in outputs.into_iter().zip(own) {
            let all = f.output_of(CpuDevice::new(1, precision), all, all_of);
            let own = f.output_of(CpuDevice::new(3, precision), alone, own);
            assert!(equal_bits(&all[..own.len()], &own), "{}, {precision}", f.name);
        }
    }
}

#[test]
fn an_image_has_the_same_bits_alone_and_among_others() {
    // Of 5×5 windows only larger maps are cut.
    let (images, channels) = (17, 16);
    for (side, (window, geometry)) in
        [65, 129].into_iter().flat_map(|side| windows(side).map(move |of| (side, of)))
    {
        let mut f = Fixture::new(format!("depthwise of {side}²×{channels}, {geometry}"));
        let x = f.activation("x", images * side * side, channels);
        let first = f.input("first image", x[..side * side * channels].to_vec());
        let all = inference(&mut f, images, window, channels, x, true);
        let a = f.output("its a", window.output_pixels() * channels);
        let squeezed = f.output("its squeezed", channels);
        let alone = DepthwiseInference { images: 1, x: first, a, squeezed, ..all };
        check_alone(&f, all.into(), [all.a, all.squeezed], alone.into(), [a, squeezed]);
    }
}

/// So many images that a block of the GPU has two, but for the last, and that the parts of the statistics are in groups; and
/// parts of tiles and strips whose last ones are smaller.
fn many_parts() -> Vec<Case> {
    let cases = forward_cases(&[(601, 1, 72), (5, 33, 8)], &FORWARD_KINDS[..1]);
    cases.into_iter().step_by(4).collect()
}
on_cuda_devices!(statistics_of_many_parts_agree_with_the_oracle, many_parts());

fn ema_weights() -> [Case; 1] {
    let mut f = Fixture::new("depthwise with EMA weights");
    f.weights = Weights::Ema;
    let x = f.activation("x", 2 * 81, 24);
    let mut pass = forward(&mut f, 2, Window::new(3, 1, 9, Padding::Symmetric), 24, x, true);
    pass.bn.statistics = Statistics::Running;
    [Case::new(f, Pass::DepthwiseForward(pass), 9)]
}
on_every_device!(forward_uses_ema_weights_on_request, ema_weights());

/// A mean 100 times the deviation: sums of squares about zero would leave nothing of the variance in fp32.
/// Only the middle tap is not zero, so that the border adds no deviation.
fn large_mean() -> [Case; 1] {
    let mut f = Fixture::new("depthwise with a large mean");
    let (images, side, channels) = (3, 28, 96);
    let x = f.noise("x", images * side * side * channels, 99.0, 101.0);
    let mut pass = forward(&mut f, images, Window::new(3, 1, side, Padding::Symmetric), channels, x, false);
    let mut weights = f.noise("weights", channels * 9, 0.5, 1.5);
    weights.iter_mut().enumerate().filter(|(i, _)| i % 9 != 4).for_each(|(_, w)| *w = 0.0);
    pass.weight = f.param_of("weight", weights);
    [Case::new(f, Pass::DepthwiseForward(pass), pass.bn.rows)]
}
on_every_device!(statistics_survive_a_large_mean, large_mean());

/// What the gradient at the convolution's input becomes.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    Normalised,
    Identity { shortcut: bool, drops: bool },
}

pub fn backward(
    f: &mut Fixture,
    images: usize,
    window: Window,
    channels: usize,
    input: Input,
) -> DepthwiseBackward {
    let pixels = window.output_pixels();
    let (rows, inputs) = (images * pixels, images * window.input_pixels());
    let y = f.activation("y", rows, channels);
    let bn = f.norm_of("bn", &y, channels);
    let da = f.noise("da", rows * channels, -1.0, 1.2);
    let gate = f.noise("gate", images * channels, 0.1, 0.9);
    let squeeze_gradient = f.noise("squeeze gradient", images * channels, -0.3, 0.3);
    let z = f.normed(&bn, &y);
    let du: Vec<f64> = (0..rows * channels)
        .map(|at| {
            let cell = at / channels / pixels * channels + at % channels;
            (da[at] as f64 * gate[cell] as f64 + squeeze_gradient[cell] as f64) * silu_slope(z[at])
        })
        .collect();
    f.set_sums(&bn, &y, &du);
    let x = f.activation("x", inputs, channels);
    let dx = f.output("dx", inputs * channels);
    let input = match input {
        Input::Normalised => {
            DepthwiseInput::Normalised { bn: f.norm_of("input bn", &x, channels), du: Some(dx) }
        }
        Input::Identity { shortcut, drops } => {
            let y3 = f.activation("previous y", inputs, channels);
            DepthwiseInput::Identity(NarrowGradient {
                dx,
                shortcut: shortcut.then(|| f.input_noise("shortcut", inputs * channels, -1.0, 1.0)),
                previous: PreviousBlock {
                    bn: f.norm_of("previous bn", &y3, channels),
                    y: f.input("previous y", y3),
                    keep: f.keep("previous keep", images, drops),
                    pixels: window.input_pixels(),
                },
            })
        }
    };
    let taps = window.kernel * window.kernel;
    DepthwiseBackward {
        images,
        window,
        channels,
        x: f.input("x", x),
        input,
        weight: f.weight("weight", channels * taps, taps),
        y: f.input("y", y),
        bn,
        da: f.input("da", da),
        gate: f.input("gate", gate),
        squeeze_gradient: f.input("squeeze gradient", squeeze_gradient),
    }
}

pub fn backward_cases(shapes: &[(usize, usize, usize)], inputs: &[Input]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, side, channels) in shapes {
        // Over fewer rows the terms of batch norm's gradient cancel, and no digits are left to compare.
        for (window, geometry) in windows(side).filter(|(w, _)| images * w.output_pixels() >= 4) {
            for &input in inputs {
                let name = format!("depthwise {images}×{side}²×{channels}, {geometry}, {input:?}");
                let mut f = Fixture::new(name);
                let pass = backward(&mut f, images, window, channels, input);
                let rows = images * window.input_pixels();
                cases.push(Case::new(f, Pass::DepthwiseBackward(pass), rows.max(25)));
            }
        }
    }
    cases
}

pub const INPUTS: [Input; 3] = [
    Input::Normalised,
    Input::Identity { shortcut: true, drops: true },
    Input::Identity { shortcut: false, drops: false },
];

#[test]
fn backward_on_the_cpu_agrees_with_the_oracle() {
    check_on_cpu(backward_cases(&SHAPES, &INPUTS));
}

#[test]
fn odd_channels_agree_with_the_oracle() {
    let forward = forward_cases(&ODD_SHAPES, &FORWARD_KINDS[..2]);
    check_on_cpu(forward.into_iter().chain(backward_cases(&ODD_SHAPES, &INPUTS[..2])));
}

on_cuda_devices!(backward_agrees_with_the_oracle, backward_cases(&CUDA_SHAPES, &INPUTS[..2]));

/// So many images that the parts of the sums are in groups, in two slices of the channels.
fn many_sums() -> Vec<Case> {
    let cases = backward_cases(&[(131, 2, 40)], &INPUTS[..1]);
    cases.into_iter().step_by(4).collect()
}
on_cuda_devices!(sums_of_many_parts_agree_with_the_oracle, many_sums());

/// So many images that a block has several, one after the other, each in several iterations.
fn many_images() -> Vec<Case> {
    let (images, side, channels) = (400, 9, 72);
    let mut cases = Vec::new();
    for (kernel, stride) in [(3, 1), (5, 2)] {
        let window = Window::new(kernel, stride, side, Padding::Symmetric);
        let mut f =
            Fixture::new(format!("depthwise forward, {images} images, {kernel}×{kernel}, stride {stride}"));
        let x = f.activation("x", images * side * side, channels);
        let pass = forward(&mut f, images, window, channels, x, true);
        cases.push(Case::new(f, Pass::DepthwiseForward(pass), pass.bn.rows).in_fp16());
        let mut f =
            Fixture::new(format!("depthwise backward, {images} images, {kernel}×{kernel}, stride {stride}"));
        let pass = backward(&mut f, images, window, channels, Input::Normalised);
        cases.push(Case::new(f, Pass::DepthwiseBackward(pass), images * side * side).in_fp16());
    }
    cases
}
on_cuda_devices!(images_of_a_block_follow_each_other, many_images());

/// Many tiles of columns: the maps of B7's first stages are as wide.
fn wide_map() -> [Case; 1] {
    let (images, side, channels) = (1, 270, 8);
    let window = Window::new(3, 1, side, Padding::Symmetric);
    let mut f = Fixture::new("depthwise, wide");
    let pass = backward(&mut f, images, window, channels, Input::Normalised);
    [Case::new(f, Pass::DepthwiseBackward(pass), side * side).in_fp16()]
}
on_cuda_devices!(backward_of_a_wide_map_agrees_with_the_oracle, wide_map());
