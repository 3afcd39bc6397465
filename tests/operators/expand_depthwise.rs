//! Expand and depthwise without the tensor between them, on the kernels, against the oracle.

use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices};
use crate::common::fixture::{Fixture, doubles};
use crate::depthwise::{self, Input};
use crate::expand;
use effnet::model::{Padding, Window};
use effnet::ops::cuda::Precision;
use effnet::ops::*;

/// Kernel and stride of the windows that are recomputed.
const WINDOWS: [(usize, usize); 3] = [(3, 1), (3, 2), (5, 2)];

/// Images, side, inputs, expanded channels: each number of pieces of eight inputs, slices that are not full, maps of one
/// tile and of several, sides for which the padding is even and odd.
const SHAPES: [[usize; 4]; 6] =
    [[5, 3, 8, 24], [2, 7, 16, 96], [3, 15, 24, 144], [2, 16, 32, 192], [1, 33, 24, 40], [1, 58, 16, 96]];

fn windows(side: usize) -> impl Iterator<Item = Window> {
    let of = move |(kernel, stride)| {
        [Padding::Symmetric, Padding::Same].map(|padding| Window::new(kernel, stride, side, padding))
    };
    WINDOWS.into_iter().flat_map(of)
}

/// The expansion's weight, and the expanded tensor, which only the oracle stores, with its values.
fn expanded(f: &mut Fixture, x: &[f32], inputs: usize, channels: usize) -> (Param, Tensor, Vec<f32>) {
    let bound = (3.0 / inputs as f64).sqrt();
    let weight = f.noise("expand weight", channels * inputs, -bound, bound);
    let dot = |row: &[f32], weight: &[f32]| -> f32 {
        let products = doubles(row).into_iter().zip(doubles(weight)).map(|(a, b)| a * b);
        products.sum::<f64>() as f32
    };
    let rows = x.chunks(inputs);
    let y: Vec<f32> = rows.flat_map(|row| weight.chunks(inputs).map(move |w| dot(row, w))).collect();
    let tensor = f.tensors.new_tensor("expanded", y.len(), Kind::Float);
    (f.param_of("expand weight", weight), tensor, y)
}

fn name(window: Window, [images, side, inputs, channels]: [usize; 4]) -> String {
    let Window { kernel, stride, pad, .. } = window;
    format!("{images}×{side}²×{inputs} to {channels}, {kernel}×{kernel}, stride {stride}, padding {pad}")
}

fn case(f: Fixture, pass: Pass, terms: usize) -> Case {
    Case { precisions: &[Precision::Fp16, Precision::Bf16], ..Case::new(f, pass, terms) }
}

/// The statistics of the expanded tensor are inputs: the oracle's are those of values that are not rounded. That they are the
/// bits of the stored tensor's is tested with whole steps.
fn forward_case(window: Window, shape @ [images, side, inputs, channels]: [usize; 4]) -> Case {
    let mut f = Fixture::new(name(window, shape));
    let rows = images * side * side;
    let x = f.activation("x", rows, inputs);
    let (weight, y, values) = expanded(&mut f, &x, inputs, channels);
    let mut bn = f.norm_of("expanded bn", &values, channels);
    bn.statistics = Statistics::Running;
    let x = f.input("x", x);
    let expand = ExpandForward { rows, inputs, outputs: channels, x, weight, y, bn };
    let mut depthwise = depthwise::forward(&mut f, images, window, channels, values, true);
    (depthwise.x, depthwise.input_bn) = (y, Some(bn));
    let pass = ExpandDepthwiseForward { expand, depthwise };
    case(f, pass.into(), depthwise.bn.rows.max(25))
}

fn forward_cases() -> Vec<Case> {
    let of = |shape: [usize; 4]| windows(shape[1]).map(move |window| forward_case(window, shape));
    SHAPES.into_iter().flat_map(of).collect()
}
on_cuda_devices!(forward_agrees_with_the_oracle, forward_cases());

/// Kernel and stride 5 and 1 too, as on the CPU every window is expanded in the cache.
fn inference_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let more = [[20, 2, 40, 240], [1, 14, 112, 672], [3, 7, 192, 1152], [2, 4, 16, 13], [1, 66, 16, 96]];
    for shape in SHAPES.into_iter().chain(more) {
        let [images, side, inputs, channels] = shape;
        let more = [Padding::Symmetric, Padding::Same].map(|padding| Window::new(5, 1, side, padding));
        for window in windows(side).chain(more) {
            let mut f = Fixture::new(name(window, shape));
            let rows = images * side * side;
            let x = f.activation("x", rows, inputs);
            let (weight, y, values) = expanded(&mut f, &x, inputs, channels);
            let mut bn = f.norm_of("expanded bn", &values, channels);
            bn.statistics = Statistics::Running;
            let x = f.input("x", x);
            let expand = ExpandForward { rows, inputs, outputs: channels, x, weight, y, bn };
            let mut depthwise = depthwise::inference(&mut f, images, window, channels, values, true);
            (depthwise.x, depthwise.input_bn) = (y, Some(bn));
            let pass = ExpandDepthwiseInference { expand, depthwise };
            cases.push(Case::new(f, pass.into(), inputs.max(window.output_pixels()).max(25)));
        }
    }
    cases
}

#[test]
fn inference_agrees_with_the_oracle() {
    check_on_cpu(inference_cases());
}

#[test]
fn an_image_has_the_same_bits_alone_and_among_others() {
    let (images, side, inputs, channels) = (17, 66, 16, 32);
    for window in windows(side) {
        let mut f = Fixture::new(name(window, [images, side, inputs, channels]));
        let rows = images * side * side;
        let x = f.activation("x", rows, inputs);
        let (weight, y, values) = expanded(&mut f, &x, inputs, channels);
        let mut bn = f.norm_of("expanded bn", &values, channels);
        bn.statistics = Statistics::Running;
        let first = f.input("first image", x[..side * side * inputs].to_vec());
        let x = f.input("x", x);
        let expand = ExpandForward { rows, inputs, outputs: channels, x, weight, y, bn };
        let mut all = depthwise::inference(&mut f, images, window, channels, values, true);
        (all.x, all.input_bn) = (y, Some(bn));
        let a = f.output("its a", window.output_pixels() * channels);
        let squeezed = f.output("its squeezed", channels);
        let alone = DepthwiseInference { images: 1, a, squeezed, ..all };
        let own = ExpandForward { rows: side * side, x: first, ..expand };
        let [all_of, alone_of] = [(expand, all), (own, alone)]
            .map(|(expand, depthwise)| ExpandDepthwiseInference { expand, depthwise }.into());
        depthwise::check_alone(&f, all_of, [all.a, all.squeezed], alone_of, [a, squeezed]);
    }
}

fn backward_case(window: Window, shape @ [images, side, inputs, channels]: [usize; 4], kind: usize) -> Case {
    let mut f = Fixture::new(name(window, shape));
    let rows = images * side * side;
    let sizes = [images, side * side, inputs, channels];
    let mut expand = expand::backward(&mut f, sizes, kind.is_multiple_of(2), kind.is_multiple_of(3));
    let x = f.value(expand.x).to_vec();
    let (weight, y, values) = expanded(&mut f, &x, inputs, channels);
    let bn = f.norm_of("expanded bn", &values, channels);
    let mut depthwise = depthwise::backward(&mut f, images, window, channels, Input::Normalised);
    let du = depthwise.gradient().expect("a gradient at the expanded tensor");
    (depthwise.x, depthwise.input) = (y, DepthwiseInput::Normalised { bn, du: Some(du) });
    (expand.weight, expand.y, expand.bn, expand.du) = (weight, y, bn, du);
    let pass = ExpandDepthwiseBackward { expand, depthwise };
    case(f, pass.into(), channels.max(rows))
}

pub fn backward_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, shape) in SHAPES.into_iter().enumerate() {
        let [images, side, ..] = shape;
        let all = windows(side).filter(|window| images * window.output_pixels() >= 4);
        cases.extend(all.map(|window| backward_case(window, shape, kind)));
    }
    cases
}
on_cuda_devices!(backward_agrees_with_the_oracle, backward_cases());

/// So many images that a block has several, one after the other, each in several iterations.
fn many_images() -> Vec<Case> {
    let shape = [400, 9, 24, 72];
    let of = |(kernel, stride)| {
        let window = Window::new(kernel, stride, 9, Padding::Symmetric);
        [forward_case(window, shape).in_fp16(), backward_case(window, shape, 1).in_fp16()]
    };
    [(3, 1), (5, 2)].into_iter().flat_map(of).collect()
}
on_cuda_devices!(images_of_a_block_follow_each_other, many_images());
