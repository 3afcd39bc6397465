//! One seed gives one result, byte for byte, with any number of threads; and every part of the recipe affects it.

use crate::common::training::*;
use effnet::data::CropMode;
use effnet::data::augment::Auto;
use effnet::train::events::{End, LogLine};
use effnet::train::{Decayed, Optimizer, Recipe, RunOptions};

#[test]
fn threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    let recipe = Recipe { augment: Auto::AutoAugment, color_jitter: 0.3, random_erasing: 0.5, ..recipe() };
    let outcome = run(&recipe, &options(&a)).unwrap();
    assert_eq!((outcome.end, outcome.step, outcome.steps), (End::Finished, 12, 12));
    run(&recipe, &RunOptions { threads: 1, loader_threads: 3, ..options(&b) }).unwrap();
    assert_same_run(&a, &b);

    // The log: every step once, in order, with the evaluations where the schedule has them.
    let lines = timeless_log(&a);
    let steps: Vec<u64> = lines.iter().filter(|l| matches!(l, LogLine::Step(_))).map(LogLine::step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<u64>>());
    let evaluations: Vec<u64> =
        lines.iter().filter(|l| matches!(l, LogLine::Evaluation(_))).map(LogLine::step).collect();
    assert_eq!(evaluations, [5, 10, 12]);
    for line in &lines {
        match line {
            LogLine::Step(s) => {
                assert!(s.loss > 0.0 && (0.0..=1.0).contains(&s.accuracy) && s.lr > 0.0, "{s:?}");
                assert!((s.epoch - s.step as f64 / 5.0).abs() < 1e-12);
            }
            LogLine::Evaluation(e) => {
                assert_eq!(e.images, 13);
                assert!(e.ema_top1.is_some() && e.top5 == 1.0, "five classes: {e:?}");
            }
            LogLine::Extension(e) => panic!("nobody extended it: {e:?}"),
        }
    }
}

type Change = (&'static str, fn(&mut Recipe));

/// A run whose masks, averages or accumulation were ignored would equal the plain one.
#[test]
fn recipe_counts_in_every_part() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |name: &str, change: fn(&mut Recipe)| {
        let mut recipe = recipe();
        change(&mut recipe);
        let out = dir.path().join(name);
        run(&recipe, &RunOptions { max_steps: Some(3), ..options(&out) }).unwrap();
        saved(&out).state.parameters
    };
    let plain = weights("plain", |_| {});
    let changes: [Change; 18] = [
        ("augment", |r| r.augment = Auto::Trivial),
        ("flip", |r| r.flip = Some(0.0)),
        ("vertical flip", |r| r.vertical_flip = 0.5),
        ("jitter", |r| r.color_jitter = 0.4),
        ("erasing", |r| r.random_erasing = 0.9),
        ("mixup", |r| r.mixup = 1.0),
        ("cutmix", |r| r.cutmix = 1.0),
        ("crops", |r| (r.crop, r.crop_area) = (CropMode::Resized, Some([0.5, 0.6]))),
        ("micro-batch", |r| r.micro_batch = 4),
        ("dropout", |r| r.dropout = 0.0),
        ("drop-connect", |r| r.drop_connect = 0.0),
        ("smoothing", |r| r.label_smoothing = 0.0),
        ("decay", |r| r.weight_decay = 0.01),
        ("decay of", |r| r.weight_decay_of = Decayed::Weights),
        ("seed", |r| r.seed = 12),
        ("lr", |r| r.lr = 0.004),
        ("optimizer", |r| r.optimizer = Optimizer::RmspropTf),
        ("padding", |r| r.padding = effnet::model::Padding::Same),
    ];
    for (name, change) in changes {
        assert_ne!(plain, weights(name, change), "{name} changed nothing");
    }
    assert_eq!(plain, weights("again", |_| {}));
    // The average does not touch the weights.
    assert_eq!(plain, weights("ema", |r| r.ema = 0.0));
}
