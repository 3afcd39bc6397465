//! What editing an image costs beside a step: bytes and instructions of each edit, and of a policy's mean image.
//!
//! Instructions are those of a thread in a loop over pixels of `kernels/image_edit.cuh`, as nvcc 13.0 compiles it for
//! sm_90 and fp16, for each pixel of an iteration: loads, stores and look-ups are among them. What happens once for an
//! image (tables of 256 entries, sums of the warps, barriers) is not counted. A loop reads a pixel as four bytes and
//! writes as many; neighbours come from a cache.

use std::fmt::Write;

use effnet::data::augment::{Auto, Edit, Look, Policy, RandAugment};

use crate::card::CARDS;
use crate::step::{Case, Recorded};
use crate::work::Work;

/// Bytes of a pixel in the workspace.
const PIXEL: f64 = 4.0;

/// A loop over pixels.
struct Sweep {
    /// Instructions for a pixel.
    instructions: f64,
    bytes: f64,
}

const AFFINE: Sweep = Sweep { instructions: 44.0, bytes: 2.0 * PIXEL };
const HISTOGRAM: Sweep = Sweep { instructions: 27.0, bytes: PIXEL };
const GREYS: Sweep = Sweep { instructions: 25.0, bytes: PIXEL };
const COLOR: Sweep = Sweep { instructions: 56.0, bytes: 2.0 * PIXEL };
const SHARPNESS: Sweep = Sweep { instructions: 128.0, bytes: 2.0 * PIXEL };
const ERASE: Sweep = Sweep { instructions: 7.0, bytes: PIXEL };
/// The table of values is applied to the square.
const APPLY: Sweep = Sweep { instructions: 15.0, bytes: 2.0 * PIXEL };
/// `image_prepare` writes the square and no values.
const LEAVE: Sweep = Sweep { instructions: 8.0, bytes: PIXEL };
/// The square becomes values, whose bytes are counted with the step's.
const VALUES: Sweep = Sweep { instructions: 13.0, bytes: PIXEL };

/// The square and its neighbour's become values.
const MIX: Sweep = Sweep { instructions: 72.0, bytes: 2.0 * PIXEL };

/// The work of an image's edits.
fn of(edits: &[Edit], side: usize) -> Work {
    let mut work = Work::default();
    if edits.is_empty() {
        return work;
    }
    let square = (side * side) as f64;
    let mut sweep = |Sweep { instructions, bytes }: Sweep, pixels: f64| {
        work.fp32 += instructions * pixels;
        work.bytes += bytes * pixels;
    };
    sweep(LEAVE, square);
    // Whether the square's bytes are what they stand for.
    let mut plain = true;
    for edit in edits {
        match *edit {
            Edit::Affine { .. } | Edit::FlipVertically => sweep(AFFINE, square),
            Edit::AutoContrast | Edit::Equalize => sweep(HISTOGRAM, square),
            Edit::Contrast { .. } => sweep(GREYS, square),
            Edit::Color { .. } => sweep(COLOR, square),
            Edit::Sharpness { .. } | Edit::Erase { .. } if !plain => sweep(APPLY, square),
            _ => {}
        }
        match *edit {
            Edit::Sharpness { .. } => sweep(SHARPNESS, square),
            Edit::Erase { width, height, .. } => sweep(ERASE, f64::from(width * height)),
            _ => {}
        }
        plain = matches!(
            edit,
            Edit::Affine { .. }
                | Edit::FlipVertically
                | Edit::Color { .. }
                | Edit::Sharpness { .. }
                | Edit::Erase { .. }
        );
    }
    sweep(VALUES, square);
    work
}

/// The mean of a policy's images, and their number of edits.
fn mean(policy: Policy, side: usize) -> (f64, Work) {
    const LOOKS: u64 = 20_000;
    let (mut count, mut sum, mut edits) = (0, Work::default(), Vec::new());
    for id in 0..LOOKS {
        Look { policy, seed: 1, epoch: 0, id }.edits(side as u32, &mut edits);
        count += edits.len();
        sum += of(&edits, side);
    }
    let share = 1.0 / LOOKS as f64;
    (count as f64 * share, Work { bytes: sum.bytes * share, fp32: sum.fp32 * share, ..Work::default() })
}

fn line(text: &mut String, name: &str, edits: &str, work: Work) {
    let [a, b] = [0, 1].map(|card| CARDS[card].bound(&work));
    let (megabytes, millions) = (work.bytes / 1e6, work.fp32 / 1e6);
    let _ = writeln!(text, "| {name} | {edits} | {megabytes:.2} | {millions:.2} | {a:.2} | {b:.2} |");
}

/// The section of docs/kernels.md.
pub fn table(case: Case, steps: &[Recorded]) -> String {
    let side = case.side;
    let mut text = format!(
        "\n## Edited images: squares of {side}², fp16\n\n\
        What an image costs that a policy edits. Edits that give each byte a new value (invert, posterize, solarize, brightness)\n\
        change a table and touch no pixel. A batch that may have such images takes one launch more, of `image_edit`, whose blocks\n\
        of images without edits end at once; one whose images are mixed takes two, the second of `image_mix`.\n\n\
        - **MB**: the square, of four bytes a pixel, each time that it is written or read; the second-level cache may hold it.\n\
        - **M**: 10⁶ instructions of a thread in the loops over pixels, of every kind, as nvcc 13.0 compiles them for sm_90. What\n  \
        happens once for an image (tables of 256 entries, sums of the warps, barriers) is not counted, and the 41 instructions\n  \
        a pixel by which `image_prepare` writes the values of other images are not subtracted.\n\
        - **µs**: the longer of bytes/copy and instructions/(SM·clock·128).\n\n\
        | edits of an image | number | MB | M | H100 µs | RTX 3080 µs |\n|---|---:|---:|---:|---:|---:|\n"
    );
    let factor = Edit::factor(1.5);
    let half = side as u32 / 2;
    let erase = Edit::Erase { left: 0, top: 0, width: half, height: half, fill: [0; 3] };
    for (name, edits) in [
        ("one value for another", vec![Edit::Invert]),
        ("rotate, shear, translate, upside down", vec![Edit::FlipVertically]),
        ("auto contrast, equalize", vec![Edit::Equalize]),
        ("contrast", vec![Edit::Contrast { factor }]),
        ("color", vec![Edit::Color { factor }]),
        ("sharpness", vec![Edit::Sharpness { factor }]),
        ("a quarter erased", vec![erase]),
    ] {
        line(&mut text, name, "1", of(&edits, side));
    }
    let square = (side * side) as f64;
    let mixed = Work {
        bytes: (LEAVE.bytes + MIX.bytes) * square,
        fp32: (LEAVE.instructions + MIX.instructions) * square,
        ..Work::default()
    };
    line(&mut text, "none, but mixed with its neighbour", "0", mixed);
    let auto = |auto| Policy { auto, ..Policy::STANDARD };
    let rand = RandAugment { operations: 2, level: 9.0, deviation: 0.5, increasing: true };
    for (name, policy) in [
        ("`autoaugment`, mean", auto(Auto::AutoAugment)),
        ("`rand-m9-n2-mstd0.5-inc1`, mean", auto(Auto::Rand(rand))),
        ("`trivial`, mean", auto(Auto::Trivial)),
        ("`--color-jitter 0.4`, mean", Policy { color_jitter: 0.4, ..Policy::STANDARD }),
        ("`--random-erasing 0.25`, mean", Policy { random_erasing: 0.25, ..Policy::STANDARD }),
    ] {
        let (edits, work) = mean(policy, side);
        line(&mut text, name, &format!("{edits:.2}"), work);
    }
    let mut step = Work::default();
    steps.iter().flat_map(|step| &step.launches).for_each(|(_, work)| step += *work);
    let images = case.images as f64;
    let _ = writeln!(
        text,
        "\nThe step of {case} moves {:.1} MB an image and takes {:.0} M fp32 instructions, see above.",
        step.bytes / images / 1e6,
        step.fp32 / images / 1e6
    );
    text
}

#[cfg(test)]
mod tests {
    use effnet::model::Variant;
    use effnet::ops::cuda::Precision;

    use super::*;
    use crate::step::record;

    #[test]
    fn edits_of_values_cost_no_sweep_and_others_their_own() {
        let cost = |edits: &[Edit]| of(edits, 10).fp32 / 100.0;
        assert_eq!(cost(&[]), 0.0);
        let least = cost(&[Edit::Invert]);
        assert_eq!(cost(&[Edit::Invert, Edit::Posterize { bits: 3 }]), least);
        let sharp = Edit::Sharpness { factor: 0 };
        assert_eq!(cost(&[sharp]), least + SHARPNESS.instructions);
        assert_eq!(cost(&[Edit::Invert, sharp]), least + SHARPNESS.instructions + APPLY.instructions);
        assert_eq!(cost(&[Edit::Invert, Edit::FlipVertically, sharp]), cost(&[Edit::FlipVertically, sharp]));
    }

    #[test]
    fn the_page_has_what_is_printed() {
        let case = Case::new(Variant::B0, 224, 512, Precision::Fp16);
        let printed = table(case, &record(case).unwrap());
        assert!(
            include_str!("../../docs/kernels.md").contains(&printed),
            "docs/kernels.md lacks:\n{printed}"
        );
    }
}
