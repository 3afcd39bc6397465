//! Runs with mixed images and weights of the classes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::data;
use crate::common::programs::{Ran, program, run as run_program};
use crate::common::training::{assert_same_file, options, recipe, run, saved, timeless_log};
use effnet::train::events::LogLine;
use effnet::train::{ClassWeights, Recipe, RunOptions};

/// Everything that mixes, and the classes of the source weighted.
fn mixed() -> Recipe {
    let weights = ["0", "1", "2", "3", "4"].iter().zip([1.0, 0.5, 3.0, 0.0, 2.0]);
    let weights: BTreeMap<String, f64> = weights.map(|(class, weight)| (class.to_string(), weight)).collect();
    Recipe {
        mixup: 0.4,
        cutmix: 1.0,
        mixup_prob: Some(0.9),
        mixup_switch_prob: Some(0.4),
        class_weights: Some(ClassWeights::Given(weights)),
        ..recipe()
    }
}

fn step_losses(out: &Path) -> Vec<f64> {
    let losses = timeless_log(out).into_iter().filter_map(|line| match line {
        LogLine::Step(record) => Some(record.loss),
        LogLine::Evaluation(_) | LogLine::Extension(_) => None,
    });
    losses.collect()
}

#[test]
fn mixed_run_is_resumed_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    let steps = |out: &Path, max_steps, resume, loader_threads| {
        let options = RunOptions { max_steps: Some(max_steps), resume, loader_threads, ..options(out) };
        run(&mixed(), &options).unwrap();
    };
    steps(&whole, 8, false, 1);
    steps(&parts, 3, false, 3);
    steps(&parts, 8, true, 2);
    assert_same_file(&whole, &parts, "checkpoint.bin");
}

/// After the epoch in which it ends, a step is one without mixing.
#[test]
fn mixing_ends_with_the_off_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let losses = |name: &str, recipe: Recipe| {
        let out = dir.path().join(name);
        // The rate is so small that the steps do not depend on those before.
        let recipe = Recipe { lr: 1e-30, warmup_epochs: 0.0, class_weights: None, ..recipe };
        run(&recipe, &RunOptions { max_steps: Some(10), ..options(&out) }).unwrap();
        step_losses(&out)
    };
    let plain = losses("plain", recipe());
    let whole = losses("whole", mixed());
    let first = losses("first", Recipe { mixup_off_epoch: Some(1), ..mixed() });
    // Five steps an epoch.
    assert_eq!(first[..5], whole[..5]);
    assert_eq!(first[5..], plain[5..]);
    assert!((0..10).all(|step| whole[step] != plain[step]), "{whole:?} {plain:?}");
}

/// Weights change the loss of training, and not that of an evaluation.
#[test]
fn evaluation_has_no_class_weights() {
    let dir = tempfile::tempdir().unwrap();
    let last = |name: &str, class_weights| {
        let out = dir.path().join(name);
        let recipe = Recipe { lr: 1e-30, class_weights, ..recipe() };
        let outcome = run(&recipe, &options(&out)).unwrap();
        (step_losses(&out)[0], outcome.last.unwrap().loss)
    };
    let (plain, weighted) = (last("plain", None), last("weighted", mixed().class_weights));
    assert_ne!(plain.0, weighted.0);
    assert_eq!(plain.1, weighted.1);
    // Eight images of each of the five classes: balanced weights are 1.
    let balanced = last("balanced", Some(ClassWeights::Balanced));
    assert!((balanced.0 - plain.0).abs() < 1e-6 * plain.0, "{balanced:?} {plain:?}");
}

fn train(dir: &Path, flags: &str) -> Ran {
    run_program(program("effnet-train").current_dir(dir).args(flags.split_whitespace()))
}

/// The recipe holds the weights: the file is needed once. The recipe's file repeats the run, byte for byte.
#[test]
fn weights_of_a_file_are_kept_in_the_recipe() {
    let dir = data::packed();
    let (at, set) = (dir.path(), data::open(&dir.path().join("data")));
    let lines: String =
        set.class_names().iter().enumerate().map(|(n, class)| format!("{class},{}\n", n + 1)).collect();
    fs::write(at.join("weights.csv"), &lines).unwrap();
    let flags =
        "--resolution 32 --batch-size 8 --epochs 2 --lr 0.002 --mixup 0.2 --class-weights weights.csv";
    let whole = train(at, &format!("{flags} --out whole --max-steps 6")).good().out;
    let classes = format!("class weights given for {} classes", set.classes());
    for part in ["mixup 0.2", &classes] {
        assert!(whole.contains(part), "no {part:?} in\n{whole}");
    }
    train(at, &format!("{flags} --out parts --max-steps 2")).good();
    fs::remove_file(at.join("weights.csv")).unwrap();
    train(at, "--resume --out parts --max-steps 6").good();
    train(at, "--config whole/recipe.toml --out again --max-steps 6").good();
    for other in ["parts", "again"] {
        assert_same_file(&at.join("whole"), &at.join(other), "checkpoint.bin");
    }
    assert_eq!(saved(&at.join("again")).metadata.recipe.mixup, 0.2);

    // Weights that do not suit leave nothing behind.
    fs::write(at.join("weights.csv"), lines.replacen("1\n", "1\ncat,2\n", 1)).unwrap();
    train(at, &format!("{flags} --out other")).refused(2, &["--class-weights", "no class `cat`"]);
    assert!(!at.join("other").exists());
}

/// Pairs need an even number of images wherever a batch is divided.
#[test]
fn batches_that_cannot_be_mixed_are_refused() {
    let dir = data::packed();
    for (flags, parts) in [
        ("--mixup 0.2 --batch-size 33", ["--batch-size 33", "take 34"]),
        ("--cutmix 1 --batch-size 1", ["--batch-size 1", "--cutmix mixes pairs of images: take 2"]),
        ("--mixup 0.2 --batch-size 6 --micro-batch 3", ["--micro-batch 3", "take 4"]),
        (
            "--mixup 0.2 --batch-size 6 --ranks 2",
            ["--batch-size 6", "has 3 images, and mixup and cutmix mix pairs; take --batch-size 8"],
        ),
        ("--mixup 0.2 --batch-size 8 --micro-batch 4 --ranks 4", ["--micro-batch 4", "2 images"]),
    ] {
        train(dir.path(), &format!("{flags} --out run")).refused(2, &parts);
    }
    assert!(!dir.path().join("run").exists());
}
