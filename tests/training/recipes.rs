//! Settings of the recipe that a run shows as a whole: optimisers, clipping, early stopping, stages, the order of the images.

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use effnet::data::{CropMode, Sampling, Shuffle};
use effnet::train::events::{End, Event, LogLine, Reporter};
use effnet::train::{Optimizer, Outcome, Recipe, RunOptions, ScheduleKind, TrainError, log};

use crate::common::training::{
    self, assert_same_file, change_saved, options, recipe, run, saved, timeless_log,
};

fn train(recipe: &Recipe, out: &Path, max_steps: Option<u64>, resume: bool) -> Result<Outcome, TrainError> {
    run(recipe, &RunOptions { max_steps, resume, ..options(out) })
}

/// AdamW with everything new: the state is in the checkpoint, and a resumed run ends with the same bytes.
#[test]
fn adamw_run_is_resumed_to_the_same_bytes() {
    let recipe = Recipe {
        optimizer: Optimizer::Adamw,
        beta2: Some(0.99),
        weight_decay: 0.05,
        weight_decay_bn: Some(0.0),
        clip_norm: Some(1.0),
        schedule: ScheduleKind::Exponential,
        decay_rate: Some(0.9),
        decay_epochs: Some(0.5),
        warmup_lr: Some(1e-4),
        ..recipe()
    };
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    train(&recipe, &whole, Some(8), false).unwrap();
    train(&recipe, &parts, Some(3), false).unwrap();
    train(&recipe, &parts, Some(8), true).unwrap();
    assert_same_file(&whole, &parts, "checkpoint.bin");
    let names: Vec<&str> = saved(&whole).state.slots.iter().map(|slot| slot.name).collect();
    assert_eq!(names, ["mean_square", "mean"]);
    let norms: Vec<Option<f64>> = log::read(&whole.join("log.jsonl"))
        .unwrap()
        .into_iter()
        .filter_map(|line| match line {
            LogLine::Step(record) => Some(record.gradient_norm),
            LogLine::Evaluation(_) | LogLine::Extension(_) => None,
        })
        .collect();
    assert_eq!(norms.len(), 8);
    assert!(norms.iter().all(|norm| norm.is_some_and(|norm| norm > 0.0)), "{norms:?}");
}

/// Each stage does what a run of its resolution alone would do from there, and a run that is interrupted inside a stage or
/// between two ends with the same bytes.
#[test]
fn progressive_run_is_plain_runs_in_turn_and_resumes_anywhere() {
    let plain = |resolution, augment: &str| Recipe {
        resolution,
        augment: augment.parse().unwrap(),
        crop: CropMode::Resized,
        eval_every: 100.0,
        ..recipe()
    };
    let recipe =
        Recipe { progressive: vec![32, 48], progressive_augment: Some(0.5), ..plain(64, "rand-m8-n2") };
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    let outcome = train(&recipe, &whole, None, false).unwrap();
    assert_eq!((outcome.step, outcome.end), (12, End::Finished));
    for (steps, resume) in [(2, false), (4, true), (5, true), (12, true)] {
        train(&recipe, &parts, Some(steps), resume).unwrap();
    }
    for file in ["checkpoint.bin", "best.bin"] {
        assert_same_file(&whole, &parts, file);
    }
    assert_eq!(timeless_log(&whole), timeless_log(&parts));

    let stages =
        [(0, 3, plain(32, "rand-m4-n2")), (4, 6, plain(48, "rand-m6-n2")), (8, 12, plain(64, "rand-m8-n2"))];
    for (from, to, stage) in stages {
        let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(format!("{name} to {to}")));
        train(&recipe, &ours, Some(to), false).unwrap();
        if from > 0 {
            train(&recipe, &theirs, Some(from), false).unwrap();
            change_saved(&theirs, |saved, _| {
                saved.metadata.resolution = stage.resolution;
                saved.metadata.recipe = stage.clone();
            });
        }
        train(&stage, &theirs, Some(to), from > 0).unwrap();
        let [ours, theirs] = [ours, theirs].map(|out| saved(&out).state);
        assert!(ours.parameters == theirs.parameters && ours.slots == theirs.slots, "after {to} steps");
    }
}

/// Each order of the images is a run of its own, which is resumed to the same bytes. The classes of these images are equal,
/// so that to balance them changes nothing.
#[test]
fn sampling_of_a_run_is_resumed_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut checkpoints = HashSet::new();
    for (number, (shuffle, balance)) in
        [(Shuffle::Full, false), (Shuffle::Blocks, false), (Shuffle::Full, true), (Shuffle::Blocks, true)]
            .into_iter()
            .enumerate()
    {
        let recipe = Recipe { sampling: Sampling { shuffle, balance }, ..recipe() };
        let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(format!("{name}{number}")));
        train(&recipe, &whole, Some(5), false).unwrap();
        train(&recipe, &parts, Some(2), false).unwrap();
        train(&recipe, &parts, Some(5), true).unwrap();
        assert_same_file(&whole, &parts, "checkpoint.bin");
        let text = std::fs::read_to_string(whole.join("recipe.toml")).unwrap();
        assert_eq!(text.contains("shuffle = \"blocks\""), shuffle == Shuffle::Blocks, "{text}");
        assert_eq!(text.contains("balance = true"), balance, "{text}");
        let parameters: Vec<u32> = saved(&whole).state.parameters.iter().map(|v| v.to_bits()).collect();
        assert_eq!(checkpoints.insert(parameters), !balance, "{recipe:?}");
    }
}

/// Counts the steps of profiles.
struct Profiled(Vec<u64>);

impl Reporter for Profiled {
    fn report(&mut self, event: Event) {
        if let Event::Profile { steps, .. } = event {
            self.0.push(steps);
        }
    }
}

/// It is of one network.
#[test]
fn profile_ends_with_its_stage() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe { resolution: 48, progressive: vec![32], crop: CropMode::Resized, ..recipe() };
    let options = RunOptions { profile: Some(8), ..options(dir.path()) };
    let mut profiled = Profiled(Vec::new());
    let never = AtomicBool::new(false);
    effnet::train::train(&recipe, &options, training::source(), &mut profiled, &never).unwrap();
    // The first stage has six of twelve steps, of which three warm up.
    assert_eq!(profiled.0, [3]);
}

/// A limit that no gradient reaches changes no bit of the weights, whatever the micro-batch; another one does.
#[test]
fn clipping_takes_the_norm_of_the_whole_batch() {
    let dir = tempfile::tempdir().unwrap();
    let weights = |name: &str, clip_norm| {
        let out = dir.path().join(name);
        train(&Recipe { clip_norm, micro_batch: 4, ..recipe() }, &out, Some(3), false).unwrap();
        saved(&out).state.parameters
    };
    let plain = weights("plain", None);
    assert!(plain == weights("ample", Some(1e9)));
    assert!(plain != weights("tight", Some(1e-3)));
}

/// A run whose accuracy does not rise ends early, keeps its best, and ends at the same step when it is interrupted.
#[test]
fn patience_ends_a_run_and_survives_a_resume() {
    // Evaluations after every second step; the weights do not move.
    let recipe = Recipe { lr: 1e-12, ema: 0.0, bn_momentum: 1e-9, eval_every: 0.4, ..recipe() };
    let patient = Recipe { patience: Some(2), ..recipe.clone() };
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts, long] = ["whole", "parts", "long"].map(|name| dir.path().join(name));
    let outcome = train(&patient, &whole, None, false).unwrap();
    assert_eq!((outcome.end, outcome.step, outcome.resume), (End::Patience, 6, None));
    let best = outcome.best.unwrap();
    assert_eq!((best.step, saved(&whole).metadata.best), (2, Some(best)));
    assert!(whole.join("best.bin").exists());
    // Interrupted between evaluations, and resumed when it was already over.
    train(&patient, &parts, Some(5), false).unwrap();
    assert_eq!(train(&patient, &parts, None, true).unwrap().step, 6);
    assert_eq!(train(&patient, &parts, None, true).unwrap().end, End::Patience);
    for file in ["checkpoint.bin", "best.bin"] {
        assert_same_file(&whole, &parts, file);
    }
    let outcome = train(&recipe, &long, None, false).unwrap();
    assert_eq!((outcome.end, outcome.step), (End::Finished, 12));
}
