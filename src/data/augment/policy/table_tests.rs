//! The tables of the automatic policies, and how often their edits happen.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;

use super::operation::Operation;
use super::rand_augment::OPERATIONS;
use super::*;
use crate::data::augment::edit::ONE;

const SIDE: u32 = 40;
const FILL: [u8; 3] = [10, 20, 30];

#[derive(Deserialize)]
struct Golden {
    autoaugment: Vec<Vec<(String, f32, f64)>>,
    rand: Vec<String>,
    rand_increasing: Vec<String>,
    rand_probability: f64,
    arguments: BTreeMap<String, Option<[Vec<f64>; 2]>>,
    trivial: BTreeMap<String, Vec<f64>>,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augmentation/policies.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// timm's name of an operation.
fn name(operation: Operation) -> String {
    match operation {
        Operation::TranslateX => "TranslateXRel".into(),
        Operation::TranslateY => "TranslateYRel".into(),
        other => format!("{other:?}"),
    }
}

/// The edit that timm's function of this name makes with an argument.
fn expected(name: &str, argument: f64) -> Edit {
    let (factor, pixels) = (Edit::factor(argument), argument * f64::from(SIDE));
    match name.trim_end_matches("Increasing") {
        "AutoContrast" => Edit::AutoContrast,
        "Equalize" => Edit::Equalize,
        "Invert" => Edit::Invert,
        "Rotate" => Edit::rotate(argument, SIDE, FILL),
        "Posterize" => Edit::Posterize { bits: argument as u8 },
        "Solarize" => Edit::Solarize { threshold: argument as u16 },
        "SolarizeAdd" => Edit::SolarizeAdd { add: argument as u8 },
        "Color" => Edit::Color { factor },
        "Contrast" => Edit::Contrast { factor },
        "Brightness" => Edit::Brightness { factor },
        "Sharpness" => Edit::Sharpness { factor },
        "ShearX" => Edit::affine([1.0, argument, 0.0, 0.0, 1.0, 0.0], FILL),
        "ShearY" => Edit::affine([1.0, 0.0, 0.0, argument, 1.0, 0.0], FILL),
        "TranslateXRel" => Edit::affine([1.0, 0.0, pixels, 0.0, 1.0, 0.0], FILL),
        "TranslateYRel" => Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, pixels], FILL),
        other => panic!("{other}"),
    }
}

fn every_operation() -> Vec<Operation> {
    let pairs = auto_augment::PAIRS.iter().flatten().map(|(operation, ..)| *operation);
    pairs.chain(OPERATIONS).chain(OPERATIONS.map(rand_augment::increasing)).collect()
}

#[test]
fn levels_mean_what_they_mean_in_timm() {
    let golden = golden();
    let mut seen = HashSet::new();
    for operation in every_operation() {
        let name = name(operation);
        let arguments = golden.arguments.get(&name).unwrap_or_else(|| panic!("{name}"));
        for level in 0..=10 {
            for negate in [false, true] {
                let argument = arguments.as_ref().map_or(0.0, |both| both[usize::from(negate)][level]);
                let got = operation.edit(level as f64, negate, SIDE, FILL);
                assert_eq!(got, expected(&name, argument), "{name} {level} {negate}");
            }
        }
        seen.insert(name);
    }
    assert_eq!(seen.len(), golden.arguments.len());
}

#[test]
fn tables_are_timm_s() {
    let golden = golden();
    assert_eq!(golden.autoaugment.len(), auto_augment::PAIRS.len());
    for (ours, theirs) in auto_augment::PAIRS.iter().zip(&golden.autoaugment) {
        let ours: Vec<_> = ours.iter().map(|&(operation, p, level)| (name(operation), p, level)).collect();
        assert_eq!(ours, *theirs);
    }
    assert_eq!(OPERATIONS.map(name).to_vec(), golden.rand);
    assert_eq!(OPERATIONS.map(rand_augment::increasing).map(name).to_vec(), golden.rand_increasing);
}

#[test]
fn strengths_of_trivial_augment_are_torchvision_s() {
    let golden = golden();
    let of = |what: &str, number: usize| golden.trivial[what][number];
    for number in 0..trivial_augment::STRENGTHS as usize {
        for negate in [false, true] {
            let signed = |value: f64| if negate { -value } else { value };
            let factor = Edit::factor(1.0 + signed(of("enhance", number)));
            let (shear, pixels) = (signed(of("shear", number)), signed(of("translate", number)));
            let expected = [
                None,
                Some(Edit::affine([1.0, shear, 0.0, 0.0, 1.0, 0.0], FILL)),
                Some(Edit::affine([1.0, 0.0, 0.0, shear, 1.0, 0.0], FILL)),
                Some(Edit::affine([1.0, 0.0, pixels, 0.0, 1.0, 0.0], FILL)),
                Some(Edit::affine([1.0, 0.0, 0.0, 0.0, 1.0, pixels], FILL)),
                Some(Edit::rotate(signed(of("rotate", number)), SIDE, FILL)),
                Some(Edit::Brightness { factor }),
                Some(Edit::Color { factor }),
                Some(Edit::Contrast { factor }),
                Some(Edit::Sharpness { factor }),
                Some(Edit::Posterize { bits: of("posterize", number) as u8 }),
                Some(Edit::Solarize { threshold: of("solarize", number).ceil() as u16 }),
                Some(Edit::AutoContrast),
                Some(Edit::Equalize),
            ];
            for (operation, expected) in (0..).zip(expected) {
                let got = trivial_augment::edit(operation, number as u32, negate, SIDE, FILL);
                assert_eq!(got, expected, "operation {operation}, strength {number}");
            }
        }
    }
}

/// The edits of many looks.
fn looks(policy: Policy, count: u64) -> Vec<Vec<Edit>> {
    let edits = |id| {
        let mut edits = Vec::new();
        Look { policy: Policy { fill: FILL, ..policy }, seed: 3, epoch: 1, id }.edits(SIDE, &mut edits);
        edits
    };
    (0..count).map(edits).collect()
}

fn share(looks: &[Vec<Edit>], of: impl Fn(&[Edit]) -> bool) -> f64 {
    looks.iter().filter(|edits| of(edits)).count() as f64 / looks.len() as f64
}

/// Among so many looks, a share moves by less than five standard deviations.
const LOOKS: u64 = 40_000;

fn expect_share(what: &str, got: f64, expected: f64) {
    let bound = 5.0 * (expected * (1.0 - expected) / LOOKS as f64).sqrt();
    assert!((got - expected).abs() <= bound, "{what}: {got}, expected {expected}");
}

#[test]
fn auto_augment_draws_each_step_with_its_probability() {
    let looks = looks(Policy { auto: Auto::AutoAugment, ..Policy::STANDARD }, LOOKS);
    let golden = golden();
    let both = |pair: &[(String, f32, f64)], first: bool, second: bool| {
        let of = |step: &(String, f32, f64), happens| if happens { step.1 } else { 1.0 - step.1 };
        f64::from(of(&pair[0], first)) * f64::from(of(&pair[1], second)) / 25.0
    };
    // Pairs that change nothing, and the only pair with this edit alone, inverted or not.
    let nothing: f64 = golden.autoaugment.iter().map(|pair| both(pair, false, false)).sum();
    expect_share("nothing", share(&looks, |edits| edits.is_empty()), nothing);
    let inverted = |edits: &[Edit]| edits.first() == Some(&Edit::Invert);
    expect_share("invert", share(&looks, inverted), 0.4 / 25.0);
    let rotated = |degrees| Edit::rotate(degrees, SIDE, FILL);
    for degrees in [27.0, -27.0] {
        let got = share(&looks, |edits| edits.last() == Some(&rotated(degrees)));
        expect_share("rotate 9, last of a pair", got, 0.8 / 2.0 / 25.0);
    }
    let equalized = |edits: &[Edit]| matches!(edits, [Edit::Equalize, Edit::AutoContrast]);
    expect_share("equalize, auto contrast", share(&looks, equalized), 0.6 / 25.0);
}

#[test]
fn rand_augment_draws_operations_evenly_and_levels_around_the_middle() {
    let rand = RandAugment { operations: 1, level: 5.0, deviation: 1.5, increasing: false };
    let looks = looks(Policy { auto: Auto::Rand(rand), ..Policy::STANDARD }, LOOKS);
    let happens = golden().rand_probability;
    expect_share("nothing", share(&looks, |edits| edits.is_empty()), 1.0 - happens);
    let mut levels = Vec::new();
    let mut kinds: HashMap<_, u64> = HashMap::new();
    for edit in looks.iter().flatten() {
        *kinds.entry(std::mem::discriminant(edit)).or_default() += 1;
        if let Edit::Brightness { factor } = *edit {
            levels.push((f64::from(factor) / f64::from(ONE) - 0.1) / 0.18);
        }
    }
    let affine = Edit::rotate(0.0, SIDE, FILL);
    for (kind, count) in kinds {
        // Rotate, two that shear and two that translate are one kind.
        let operations = if kind == std::mem::discriminant(&affine) { 5.0 } else { 1.0 };
        expect_share("an operation", count as f64 / LOOKS as f64, happens * operations / 15.0);
    }
    let count = levels.len() as f64;
    let mean = levels.iter().sum::<f64>() / count;
    let deviation = (levels.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / count).sqrt();
    assert!((mean - 5.0).abs() < 5.0 * 1.5 / count.sqrt(), "{mean}");
    assert!((deviation - 1.5).abs() < 5.0 * 1.5 / (2.0 * count).sqrt(), "{deviation}");
}

#[test]
fn rand_augment_makes_as_many_edits_as_asked() {
    let rand = RandAugment { operations: 3, level: 9.0, ..RandAugment::default() };
    let looks = looks(Policy { auto: Auto::Rand(rand), ..Policy::STANDARD }, LOOKS);
    for (edits, expected) in [(0, 0.125), (1, 0.375), (2, 0.375), (3, 0.125)] {
        expect_share("edits", share(&looks, |list| list.len() == edits), expected);
    }
}

#[test]
fn jitter_stays_within_its_range_in_every_order() {
    let looks = looks(Policy { color_jitter: 0.4, ..Policy::STANDARD }, LOOKS);
    let mut orders = HashMap::<Vec<_>, u64>::new();
    let mut sums = [0.0; 3];
    for edits in &looks {
        assert_eq!(edits.len(), 3);
        *orders.entry(edits.iter().map(std::mem::discriminant).collect()).or_default() += 1;
        for edit in edits {
            let (at, factor) = match *edit {
                Edit::Brightness { factor } => (0, factor),
                Edit::Contrast { factor } => (1, factor),
                Edit::Color { factor } => (2, factor),
                other => panic!("{other:?}"),
            };
            let factor = f64::from(factor) / f64::from(ONE);
            assert!((0.6..=1.4).contains(&factor), "{factor}");
            sums[at] += factor;
        }
    }
    assert_eq!(orders.len(), 6);
    orders.values().for_each(|&count| expect_share("an order", count as f64 / LOOKS as f64, 1.0 / 6.0));
    for sum in sums {
        // The deviation of a uniform number is its range over √12.
        let bound = 5.0 * 0.8 / 12f64.sqrt() / (LOOKS as f64).sqrt();
        assert!((sum / LOOKS as f64 - 1.0).abs() < bound, "{sum}");
    }
}

#[test]
fn erasing_takes_rectangles_of_the_stated_areas_and_ratios() {
    let policy = Policy { random_erasing: 0.25, vertical_flip: 0.3, ..Policy::STANDARD };
    let looks = looks(policy, LOOKS);
    let erased = |edits: &[Edit]| matches!(edits.last(), Some(Edit::Erase { .. }));
    expect_share("erased", share(&looks, erased), 0.25);
    expect_share("upside down", share(&looks, |edits| edits.first() == Some(&Edit::FlipVertically)), 0.3);
    let (mut tall, mut wide) = (0, 0);
    for edit in looks.iter().flatten() {
        let Edit::Erase { left, top, width, height, fill } = *edit else { continue };
        assert!(left + width <= SIDE && top + height <= SIDE && fill == FILL, "{edit:?}");
        // Sides are rounded to whole pixels.
        let (most, least) = (f64::from((width + 1) * (height + 1)), f64::from((width - 1) * (height - 1)));
        let square = f64::from(SIDE * SIDE);
        assert!(most > 0.02 * square && least < square / 3.0, "{edit:?}");
        assert!(f64::from(width - 1) < f64::from(height + 1) / 0.3, "{edit:?}");
        assert!(f64::from(height - 1) < f64::from(width + 1) / 0.3, "{edit:?}");
        tall += u64::from(height > width);
        wide += u64::from(width > height);
    }
    let all = (tall + wide) as f64;
    assert!((tall as f64 - wide as f64).abs() < 5.0 * all.sqrt(), "{tall} tall, {wide} wide");
}

#[test]
fn looks_differ_by_seed_epoch_and_sample() {
    let policy = Policy { auto: Auto::AutoAugment, color_jitter: 0.4, ..Policy::STANDARD };
    let edits = |seed, epoch, id| {
        let mut edits = Vec::new();
        Look { policy, seed, epoch, id }.edits(SIDE, &mut edits);
        edits
    };
    assert_eq!(edits(1, 1, 1), edits(1, 1, 1));
    for other in [edits(2, 1, 1), edits(1, 2, 1), edits(1, 1, 2)] {
        assert_ne!(edits(1, 1, 1), other);
    }
}
