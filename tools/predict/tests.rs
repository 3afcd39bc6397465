use effnet::model::Variant;
use effnet::ops::cuda::Precision;

use crate::card::CARDS;
use crate::step::{Case, record, record_rank};
use crate::work::Work;

fn case(model: Variant, images: usize, precision: Precision) -> Case {
    Case::new(model, model.scaling().resolution, images, precision)
}

/// Kernels point to all that a pass names, and every kernel of the family has a formula; else `record` fails.
#[test]
fn tensors_are_all_touched_and_kernels_all_have_a_formula() {
    for (model, precision) in
        Variant::ALL.into_iter().flat_map(|model| Precision::ALL.map(|precision| (model, precision)))
    {
        for images in [2, 128] {
            for step in record(case(model, images, precision)).unwrap() {
                let moved: f64 = step.launches.iter().map(|(_, work)| work.bytes).sum();
                assert!(
                    moved >= step.floor as f64 * (1.0 - 1e-9),
                    "{}: {moved} of {}",
                    step.name,
                    step.floor
                );
            }
        }
    }
}

fn all(case: Case) -> (f64, Work) {
    let (mut floor, mut sum) = (0.0, Work::default());
    for step in record(case).unwrap() {
        floor += step.floor as f64;
        step.launches.iter().for_each(|(_, work)| sum += *work);
    }
    (floor, sum)
}

/// 89.7 MB of tensors an image of B0: counted by hand, from the paper's table, before there were passes.
#[test]
fn b0_moves_what_was_planned() {
    let images = 512.0;
    let (floor, work) = all(case(Variant::B0, 512, Precision::Fp16));
    let (floor, moved) = (floor / images / 1e6, work.bytes / images / 1e6);
    assert!((89.7 / floor - 1.0).abs() < 0.02, "{floor} MB");
    assert!((floor..1.1 * floor).contains(&moved), "{moved} MB");
    // Forward 386 M multiply-adds, of which the pointwise ones 335 M; backward twice that; tiles filled up.
    let products = work.tensor / images / 1e6;
    assert!((3.0 * 335.0..3.0 * 335.0 * 1.2).contains(&products), "{products} M");
}

/// In fp32 nothing runs on tensor cores and bytes double; a sigmoid takes more instructions, but as many special functions.
/// There the sweep of the projection has no room for 192 narrow channels, and the kernel of the weights' gradient computes
/// the activation of its 7² pixels again, once for each of two pieces of these channels.
#[test]
fn fp32_doubles_the_bytes() {
    let [(half_floor, half), (floor, full)] =
        [Precision::Fp16, Precision::Fp32].map(|precision| all(case(Variant::B0, 64, precision)));
    assert_eq!(full.tensor, 0.0);
    assert!((1.9..2.0).contains(&(floor / half_floor)), "{floor} {half_floor}");
    let again = 2.0 * 64.0 * 2.0 * 49.0 * (672.0 + 3.0 * 1152.0);
    let special = (full.special - again) / half.special;
    assert!((0.999..1.001).contains(&special), "{special}");
    assert!(full.fp32 > half.fp32 + half.tensor * 0.9);
}

/// Work takes as long as the card's figures say.
#[test]
fn times_are_those_of_the_slowest_unit() {
    let work = Work { bytes: 3e6, fp32: 128.0 * 132.0 * 1755.0, ..Work::default() };
    let times = CARDS[0].times(&work);
    assert!((times[0] - 1.0).abs() < 1e-9 && (times[2] - 1.0).abs() < 1e-9, "{times:?}");
    assert_eq!([times[1], times[3]], [0.0, 0.0]);
}

/// Besides the launches of a single rank there is a merge for each of B0's 49 batch norms, and one search of the sums.
#[test]
fn rank_merges_each_batch_norm_and_searches_the_sums() {
    let (mut merges, mut looks) = (Vec::new(), Vec::new());
    for (launch, work) in
        record_rank(case(Variant::B0, 64, Precision::Fp16), 8).unwrap().iter().flat_map(|s| &s.launches)
    {
        let known = if launch.kernel == "batch_norm_merge" { &mut merges } else { &mut looks };
        known.push((launch.kernel.clone(), work.bytes));
    }
    assert_eq!(merges.len(), 49);
    assert_eq!(looks, [("optimiser_finite".to_string(), 4.0 * 5_288_548.0)]);
}
