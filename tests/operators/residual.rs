//! The end of a block against the oracle: batch norm, stochastic depth, shortcut.

use crate::common::fixture::Fixture;
use crate::common::fixture::cases::{Case, check_on_cpu, on_cuda_devices};
use effnet::ops::*;

/// Images, pixels, channels. The last does not fill a vector and is for the CPU only: the kernels need multiples of eight.
const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 8],
    [5, 1, 24],
    [2, 4, 40],
    [3, 9, 112],
    [4, 49, 320],
    [2, 9, 328],
    [1, 196, 16],
    [3, 784, 24],
    [5, 3136, 40],
    [7, 1, 13],
];

fn forward(
    f: &mut Fixture,
    [images, pixels, channels]: [usize; 3],
    shortcut: bool,
    drops: bool,
) -> ResidualForward {
    let elements = images * pixels * channels;
    let y = f.activation("y", images * pixels, channels);
    ResidualForward {
        images,
        pixels,
        channels,
        bn: f.norm_of("bn", &y, channels),
        y: f.input("y", y),
        keep: f.keep("keep", images, drops),
        shortcut: shortcut.then(|| f.input_noise("shortcut", elements, -1.0, 1.0)),
        out: f.output("out", elements),
    }
}

fn forward_cases(shapes: &[[usize; 3]]) -> Vec<Case> {
    let mut cases = Vec::new();
    for &[images, pixels, channels] in shapes {
        for (shortcut, drops) in [(false, false), (true, false), (true, true), (false, true)] {
            for weights in [Weights::Raw, Weights::Ema] {
                let name = format!(
                    "residual {images}×{pixels}×{channels}, shortcut {shortcut}, dropped {drops}, {weights:?}"
                );
                let mut f = Fixture::new(name);
                f.weights = weights;
                let pass = forward(&mut f, [images, pixels, channels], shortcut, drops);
                cases.push(Case::new(f, Pass::ResidualForward(pass), 1));
            }
        }
    }
    cases
}

#[test]
fn forward_on_the_cpu_agrees_with_the_oracle() {
    check_on_cpu(forward_cases(&SHAPES));
}

/// On a GPU the largest shape tests nothing that the one before does not.
fn for_kernels() -> impl Iterator<Item = Case> {
    forward_cases(&SHAPES[..8]).into_iter().filter(|case| case.fixture.weights == Weights::Raw)
}
on_cuda_devices!(forward_agrees_with_the_oracle, for_kernels());

/// The output of a dropped image is its shortcut to the bit, whatever its batch norm computes.
#[test]
fn dropped_image_passes_only_its_shortcut() {
    let f = &mut Fixture::new("dropped image");
    let (images, pixels, channels) = (3, 4, 16);
    let pass = forward(f, [images, pixels, channels], true, true);
    let outcome = f.output_on_cpu(Pass::ResidualForward(pass), pass.out);
    let image = pixels * channels;
    assert_eq!(outcome[..image], f.value(pass.shortcut.unwrap())[..image]);
    assert_ne!(outcome[image..2 * image], f.value(pass.shortcut.unwrap())[image..2 * image]);
}
