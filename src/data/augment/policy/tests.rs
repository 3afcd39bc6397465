//! The draws of the standard policy.

use std::collections::HashSet;

use super::standard::{central, mirrored, rectangle, shift};
use super::*;
use crate::data::augment::geometry::Rectangle;

/// Of the default policy.
const RATIO: [f64; 2] = [3.0 / 4.0, 4.0 / 3.0];

fn look(seed: u64, epoch: u32, id: u64) -> Look {
    Look { policy: Policy::STANDARD, seed, epoch, id }
}

#[test]
fn rectangle_has_the_stated_area_ratio_and_place() {
    let mut area_sum = 0.0;
    let mut lefts = 0.0;
    let mut ratios = 0.0;
    let draws = 20_000;
    for id in 0..draws {
        let part = rectangle(look(0, 0, id), (500, 500));
        assert!(part.left + part.width <= 500 && part.top + part.height <= 500);
        let area = f64::from(part.width * part.height) / 250_000.0;
        let ratio = f64::from(part.width) / f64::from(part.height);
        assert!((0.079..=1.0).contains(&area), "{part:?}");
        assert!((0.74..=1.345).contains(&ratio), "{part:?}");
        area_sum += area;
        ratios += ratio.ln();
        if part.width < 500 {
            lefts += f64::from(part.left) / f64::from(500 - part.width);
        }
    }
    // A try of area a and ratio r fits if a·max(r, 1/r) <= 1: always below 3/4, with probability
    // ln(1/a) / ln(4/3) above. The mean area of those that fit is 0.3770 / 0.7890 = 0.4778, deviation 0.25.
    let mean = |sum: f64| sum / draws as f64;
    assert!((mean(area_sum) - 0.4778).abs() < 0.008, "{}", mean(area_sum));
    assert!(mean(ratios).abs() < 0.01, "{}", mean(ratios));
    assert!((mean(lefts) - 0.5).abs() < 0.02, "{}", mean(lefts));
}

#[test]
fn rectangle_falls_back_to_the_centre() {
    let part = rectangle(look(0, 0, 0), (1000, 10));
    assert_eq!(part, Rectangle { left: 493, top: 0, width: 13, height: 10 });
    assert_eq!(central((3, 400), RATIO), Rectangle { left: 0, top: 198, width: 3, height: 4 });
    assert_eq!(central((9, 8), RATIO), Rectangle { left: 0, top: 0, width: 9, height: 8 });
}

#[test]
fn rectangle_differs_by_seed_epoch_and_sample() {
    let part = rectangle(look(1, 1, 1), (400, 300));
    assert_eq!(part, rectangle(look(1, 1, 1), (400, 300)));
    for other in [look(2, 1, 1), look(1, 2, 1), look(1, 1, 2)] {
        assert_ne!(part, rectangle(other, (400, 300)));
    }
}

#[test]
fn mirror_images_are_half_of_all() {
    let mirrors = (0..10_000).filter(|&id| mirrored(look(1, 0, id))).count();
    assert!((4_800..5_200).contains(&mirrors), "{mirrors}");
}

#[test]
fn shift_takes_every_value_within_reach() {
    let shifts: HashSet<_> = (0..2000).map(|id| shift(look(1, 0, id), 4, 4)).collect();
    assert_eq!(shifts.len(), 81);
    assert!(shifts.iter().all(|(right, down)| right.abs() <= 4 && down.abs() <= 4));
}

#[test]
fn shift_reaches_the_edge_or_an_eighth_of_the_square() {
    for ((width, height), (across, down)) in
        [((28, 28), (2, 2)), ((32, 32), (4, 4)), ((31, 5), (0, 4)), ((1, 1), (4, 4))]
    {
        for id in 0..100 {
            let look = look(1, 0, id);
            let shift = shift(look, across, down);
            let middle = (i64::from((32 - width) / 2), i64::from((32 - height) / 2));
            let geometry = look.geometry((width, height), 32, true);
            assert_eq!(geometry.place, (middle.0 + shift.0, middle.1 + shift.1));
        }
    }
}
