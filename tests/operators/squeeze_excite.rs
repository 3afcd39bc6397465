//! Squeeze-excite against the oracle.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, check_on_cpu, on_every_device};
use effnet::ops::*;

/// Images, pixels, channels, bottleneck, with widths that do not fill a vector. The last shapes are for a GPU: more
/// images, channels and pixels than a block computes at once; the last of all has more hidden units than a block has
/// threads, and its gates are computed by a kernel of their own.
const SHAPES: [(usize, usize, usize, usize); 15] = [
    (1, 1, 8, 2),
    (5, 1, 32, 8),
    (2, 4, 96, 4),
    (3, 9, 144, 6),
    (4, 25, 240, 10),
    (5, 49, 24, 7),
    (1, 64, 40, 9),
    (2, 49, 1152, 48),
    (3, 49, 672, 28),
    (1, 196, 112, 5),
    (2, 784, 144, 6),
    (300, 1, 16, 4),
    (9, 2, 1304, 33),
    (1, 5000, 16, 4),
    (9, 2, 264, 257),
];

/// For the CPU only, since the kernels need multiples of eight: channels that do not fill the last vector.
const ODD_SHAPES: [(usize, usize, usize, usize); 1] = [(9, 3, 13, 3)];

fn forward(
    f: &mut Fixture,
    images: usize,
    pixels: usize,
    channels: usize,
    bottleneck: usize,
) -> SqueezeForward {
    let y = f.activation("y", images * pixels, channels);
    SqueezeForward {
        images,
        pixels,
        channels,
        bn: f.norm_of("bn", &y, channels),
        y: f.input("y", y),
        squeezed: f.output("squeezed", images * channels),
        reduce: f.dense("reduce", channels, bottleneck),
        hidden: f.output("hidden", images * bottleneck),
        expand: f.dense("expand", bottleneck, channels),
        gate: f.output("gate", images * channels),
    }
}

fn forward_cases(shapes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, pixels, channels, bottleneck) in shapes {
        for weights in [Weights::Raw, Weights::Ema] {
            let name = format!("squeeze {images}×{pixels}×{channels} by {bottleneck}, {weights:?}");
            let mut f = Fixture::new(name);
            f.weights = weights;
            let pass = forward(&mut f, images, pixels, channels, bottleneck);
            cases.push(Case::new(f, Pass::SqueezeForward(pass), pixels.max(channels)));
        }
    }
    cases
}
on_every_device!(forward_agrees_with_the_oracle, forward_cases(&SHAPES));

fn inference_cases(shapes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, pixels, channels, bottleneck) in shapes {
        let mut f = Fixture::new(format!("squeeze {images}×{channels} by {bottleneck}"));
        let SqueezeForward { reduce, hidden, expand, gate, .. } =
            forward(&mut f, images, pixels, channels, bottleneck);
        let squeezed = f.input_noise("means", images * channels, -0.3, 1.0);
        let pass = SqueezeInference { images, channels, squeezed, reduce, hidden, expand, gate };
        cases.push(Case::new(f, pass.into(), channels));
    }
    cases
}

#[test]
fn inference_agrees_with_the_oracle() {
    check_on_cpu(inference_cases(&SHAPES));
    check_on_cpu(inference_cases(&ODD_SHAPES));
}

fn backward_cases(shapes: &[(usize, usize, usize, usize)]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(images, pixels, channels, bottleneck) in shapes {
        let mut f = Fixture::new(format!("squeeze {images}×{pixels}×{channels} by {bottleneck}"));
        let pass = SqueezeBackward {
            images,
            pixels,
            channels,
            bn: f.norm("bn", channels, images * pixels),
            squeezed: f.input_noise("squeezed", images * channels, -0.3, 1.0),
            reduce: f.dense("reduce", channels, bottleneck),
            hidden: f.input_noise("hidden", images * bottleneck, -2.0, 2.0),
            expand: f.dense("expand", bottleneck, channels),
            gate: f.input_noise("gate", images * channels, 0.1, 0.9),
            five_sums: f.input_noise("five sums", 5 * images * channels, -3.0, 4.0),
            squeeze_gradient: f.output("squeeze gradient", images * channels),
        };
        cases.push(Case::new(f, Pass::SqueezeBackward(pass), images.max(channels)));
    }
    cases
}
on_every_device!(backward_agrees_with_the_oracle, backward_cases(&SHAPES));

#[test]
fn odd_channels_agree_with_the_oracle() {
    check_on_cpu(forward_cases(&ODD_SHAPES).into_iter().chain(backward_cases(&ODD_SHAPES)));
}

/// The gate of an image has the same bits in a larger batch.
#[test]
fn gate_of_an_image_does_not_depend_on_the_batch() {
    let (pixels, channels, bottleneck) = (50, 96, 6);
    let gate = |images| {
        let mut f = Fixture::new("squeeze of a batch");
        let mut pass = forward(&mut f, images, pixels, channels, bottleneck);
        pass.bn = f.norm_of("the same bn", &f.activation("y", 5 * pixels, channels), channels);
        f.output_on_cpu(Pass::SqueezeForward(pass), pass.gate)
    };
    let (few, many) = (gate(5), gate(21));
    assert_eq!(few, many[..few.len()]);
}
