//! The draws of mixup and cutmix, and what they do to squares, against timm.

use serde::Deserialize;

use super::*;
use crate::data::augment::Policy;
use crate::data::codec::decode_file;
use crate::random::draw;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/augmentation/mixes");

#[derive(Deserialize)]
struct Golden {
    side: u32,
    mixes: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    lam: f64,
    weight: Option<u32>,
    centre: Option<[u32; 2]>,
    rows: Option<[u32; 2]>,
    columns: Option<[u32; 2]>,
    share: f64,
}

impl Case {
    fn mix(&self, side: u32) -> Mix {
        match (self.kind.as_str(), self.weight, self.centre) {
            ("mixup", Some(weight), _) => Mix::Blend { weight },
            ("cutmix", _, Some(middle)) => {
                let cut = around(middle, self.lam, side);
                assert_eq!(self.rows, Some([cut.top, cut.top + cut.height]), "of {}", self.lam);
                assert_eq!(self.columns, Some([cut.left, cut.left + cut.width]), "of {}", self.lam);
                Mix::Exchange(cut)
            }
            _ => panic!("{} without its values", self.kind),
        }
    }
}

#[test]
fn mixed_pairs_are_timm_s_to_one_grey_level() {
    let golden: Golden = serde_json::from_slice(&std::fs::read(format!("{GOLDEN}.json")).unwrap()).unwrap();
    let picture = decode_file(&std::fs::read(format!("{GOLDEN}.png")).unwrap()).unwrap().pixels;
    let side = golden.side as usize;
    let squares: Vec<&[u8]> = picture.bytes.chunks_exact(side * side * 3).collect();
    let (inputs, results) = squares.split_at(2);
    assert_eq!(results.len(), 2 * golden.mixes.len());
    let (mut different, mut count) = (0, 0);
    for (case, expected) in golden.mixes.iter().zip(results.chunks_exact(2)) {
        let (mut one, mut two) = (inputs[0].to_vec(), inputs[1].to_vec());
        let mix = case.mix(golden.side);
        mix.apply(&mut one, &mut two, side);
        assert!((mix.share(golden.side) - case.share).abs() < 1e-15, "{mix:?}");
        let exact = matches!(mix, Mix::Exchange(_));
        for (found, expected) in [(one, expected[0]), (two, expected[1])] {
            let most = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(most <= u8::from(!exact), "{mix:?}: {most} grey levels off");
            different += found.iter().zip(expected).filter(|(a, b)| a != b).count();
            count += found.len();
        }
    }
    // Halves, which timm rounds to even: half of them when the share is a half.
    println!("{different} of {count} bytes differ");
    assert!(different * 20 < count, "{different} of {count} bytes differ");
}

/// P(X ≤ x) of Beta(α, α), integrated numerically by `tools/make_mix_golden.py`.
const BELOW: [f64; 8] = [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5];
const PROBABILITIES: [(f64, [f64; 8]); 6] = [
    (0.1, [0.254242, 0.320308, 0.377508, 0.406385, 0.439709, 0.462804, 0.482120, 0.5]),
    (0.2, [0.132201, 0.209778, 0.291025, 0.336690, 0.392722, 0.433204, 0.467747, 0.5]),
    (0.4, [0.037331, 0.093916, 0.180043, 0.239739, 0.322536, 0.387501, 0.445195, 0.5]),
    (1.0, [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5]),
    (2.0, [0.000003, 0.000298, 0.007250, 0.028, 0.104, 0.216, 0.352, 0.5]),
    (8.0, [0.0, 0.0, 0.0, 0.000034, 0.004240, 0.050013, 0.213103, 0.5]),
];

#[test]
fn beta_has_its_quantiles_and_moments() {
    let draws = 100_000;
    for (alpha, probabilities) in PROBABILITIES {
        let values: Vec<f64> = (0..draws)
            .map(|index| draw(11, index, 0, Purpose::Mix, 0))
            .map(|bits| beta(alpha, bits[2], bits[3]))
            .collect();
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        let share = |holds: &dyn Fn(f64) -> bool| {
            values.iter().filter(|value| holds(**value)).count() as f64 / draws as f64
        };
        for (x, p) in BELOW.into_iter().zip(probabilities) {
            // Four deviations of the mean of so many draws; where the mean is near zero, two draws.
            let bound = 4.0 * (p * (1.0 - p) / draws as f64).sqrt() + 2.5 / draws as f64;
            let (low, high) = (share(&|value| value <= x), share(&|value| value >= 1.0 - x));
            assert!(
                (low - p).abs() < bound && (high - p).abs() < bound,
                "α {alpha}, {x}: {low} {high}, not {p}"
            );
        }
        let mean =
            |power: i32| values.iter().map(|value| (value - 0.5).powi(power)).sum::<f64>() / draws as f64;
        // Of Beta(α, α): variance 1/(4(2α+1)), fourth moment 3/(16(2α+1)(2α+3)).
        let variance = 0.25 / (2.0 * alpha + 1.0);
        let fourth = 0.1875 / (2.0 * alpha + 1.0) / (2.0 * alpha + 3.0);
        assert!(mean(1).abs() < 4.0 * (variance / draws as f64).sqrt(), "α {alpha}: {}", mean(1));
        assert!((mean(2) / variance - 1.0).abs() < 0.02, "α {alpha}: {}", mean(2));
        assert!((mean(4) / fourth - 1.0).abs() < 0.04, "α {alpha}: {}", mean(4));
    }
}

#[test]
fn beta_of_the_ends_is_a_number() {
    for alpha in [1e-3, 0.2, 1.0, 1e3] {
        for u in [0, 1, 1 << 31, u32::MAX] {
            for v in [0, 1 << 30, 1 << 31, u32::MAX] {
                let value = beta(alpha, u, v);
                assert!((0.0..=1.0).contains(&value), "{alpha} {u} {v}: {value}");
            }
        }
    }
}

fn look(mixing: Mixing, epoch: u32, id: u64) -> Look {
    Look { policy: Policy { mixing, ..Policy::STANDARD }, seed: 5, epoch, id }
}

const BOTH: Mixing = Mixing { mixup: 0.2, cutmix: 1.0, ..Mixing::NONE };

#[test]
fn choices_are_as_frequent_as_the_settings_say() {
    let frequencies = |mixing: Mixing| {
        let mixes: Vec<_> = (0..20_000).map(|id| choose(look(mixing, 0, id), 0, 224)).collect();
        let of = |holds: fn(&Option<Mix>) -> bool| {
            mixes.iter().filter(|mix| holds(mix)).count() as f64 / mixes.len() as f64
        };
        [of(|mix| matches!(mix, Some(Mix::Blend { .. }))), of(|mix| matches!(mix, Some(Mix::Exchange(_))))]
    };
    let near = |found: [f64; 2], expected: [f64; 2]| {
        assert!(
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.015),
            "{found:?}, not {expected:?}"
        );
    };
    assert_eq!(frequencies(Mixing::NONE), [0.0; 2]);
    // P(X ≥ 1 − 2⁻¹⁷) of Beta(0.2, 0.2): such a weight rounds to 1, which mixes nothing.
    let rounded = 1.0 - 0.0499;
    near(frequencies(Mixing { mixup: 0.2, ..Mixing::NONE }), [rounded, 0.0]);
    near(frequencies(Mixing { cutmix: 1.0, ..Mixing::NONE }), [0.0, 1.0]);
    near(frequencies(BOTH), [0.5 * rounded, 0.5]);
    near(frequencies(Mixing { switch: 0.2, probability: 0.6, ..BOTH }), [0.48 * rounded, 0.12]);
    near(frequencies(Mixing { switch: 0.0, ..BOTH }), [rounded, 0.0]);
    near(frequencies(Mixing { switch: 1.0, ..BOTH }), [0.0, 1.0]);
    near(frequencies(Mixing { probability: 0.0, ..BOTH }), [0.0; 2]);
}

#[test]
fn no_pair_is_mixed_from_the_off_epoch_on() {
    let mixing = Mixing { off_epoch: Some(3), ..BOTH };
    for (epoch, off) in [(0, false), (2, false), (3, true), (9, true)] {
        // What the draws depend on is not what counts: balanced classes have rounds of their own.
        let none = (0..50).all(|id| choose(look(mixing, id as u32, id), epoch, 32).is_none());
        assert_eq!(none, off, "epoch {epoch}");
    }
}

/// Another order of the draws would make runs of before and after differ.
#[test]
fn choices_are_those_of_the_first_release() {
    let found: Vec<_> = (0..8).map(|id| choose(look(BOTH, id as u32 % 3, id), 0, 32)).collect();
    let cut = |left, top, width, height| Some(Mix::Exchange(Rectangle { left, top, width, height }));
    let blend = |weight| Some(Mix::Blend { weight });
    let expected = [
        blend(56664),
        cut(15, 0, 17, 24),
        cut(0, 2, 8, 14),
        blend(57548),
        cut(5, 22, 19, 10),
        cut(7, 0, 24, 22),
        cut(5, 17, 24, 15),
        cut(0, 13, 7, 12),
    ];
    assert_eq!(found, expected);
}
