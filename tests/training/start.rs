//! How runs start, stop and resume, within one process: weights from files, a stop at any point, a loss that is not
//! finite, too little memory.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::train_support::*;
use effnet::data::Source;
use effnet::model::ParamTable;
use effnet::model::formats::{self, TrainedModel};
use effnet::model::initialise::initialise;
use effnet::train::checkpoint::{self, CheckpointError};
use effnet::train::events::{End, Event, Reporter};
use effnet::train::{Optimizer, Recipe, RunOptions, TrainError, saved_recipe, train};

/// Sets the flag when a step is done or an evaluation begins, and keeps the notices.
struct Stopper<'a> {
    stop: &'a AtomicBool,
    after_step: Option<u64>,
    in_evaluation: Option<u64>,
    notices: Vec<String>,
}

impl<'a> Stopper<'a> {
    fn new(stop: &'a AtomicBool) -> Stopper<'a> {
        Stopper { stop, after_step: None, in_evaluation: None, notices: Vec::new() }
    }
}

impl Reporter for Stopper<'_> {
    fn report(&mut self, event: Event) {
        match event {
            Event::Step(record) if self.after_step == Some(record.step) => {
                self.stop.store(true, Ordering::Relaxed);
            }
            Event::Evaluating { .. } => {
                self.in_evaluation = self.in_evaluation.map(|left| left.saturating_sub(1));
                if self.in_evaluation == Some(0) {
                    self.stop.store(true, Ordering::Relaxed);
                }
            }
            Event::Notice { text } => self.notices.push(text.into()),
            _ => {}
        }
    }
}

fn step_of(dir: &Path) -> u64 {
    checkpoint::read(&dir.join("checkpoint.bin")).unwrap().metadata.step
}

#[test]
fn run_stopped_anywhere_gives_the_same_result() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    run(&recipe(), &options(&whole)).unwrap();
    // After an ordinary step; after a step with an evaluation; during the second and the last evaluation.
    // The last call has nothing left to do.
    let stops = [(Some(2), None, 2), (Some(5), None, 5), (None, Some(2), 10), (None, Some(1), 10)];
    let stops = stops.into_iter().chain([(None, Some(2), 12), (None, None, 12), (None, None, 12)]);
    for (number, (after_step, in_evaluation, step)) in stops.enumerate() {
        let stop = AtomicBool::new(false);
        let mut stopper = Stopper { after_step, in_evaluation, ..Stopper::new(&stop) };
        let options = RunOptions { resume: number > 0, ..options(&parts) };
        let outcome = train(&recipe(), &options, source(), &mut stopper, &stop).unwrap();
        assert_eq!((outcome.step, step_of(&parts)), (step, step), "stop {number}");
        let finished = number >= 5;
        assert_eq!(outcome.end, if finished { End::Finished } else { End::Interrupted }, "stop {number}");
        assert_eq!(outcome.resume.is_some(), !finished);
    }
    assert_same_run(&whole, &parts);
}

#[test]
fn weights_come_from_a_checkpoint_or_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = ["first", "second", "third"].map(|name| dir.path().join(name));
    run(&recipe(), &RunOptions { max_steps: Some(2), ..options(&first) }).unwrap();
    let trained = checkpoint::read(&first.join("checkpoint.bin")).unwrap();
    let table = ParamTable::new(&trained.architecture);
    let export = dir.path().join("w.safetensors");
    let (architecture, values) = (&trained.architecture, &trained.state.parameters);
    formats::export(&export, &TrainedModel { architecture, values, steps: 2 }, false).unwrap();

    // A run that stops before its first step, so that its checkpoint has the weights from the file.
    let from = |file: &Path, out: &Path| {
        let stop = AtomicBool::new(true);
        let mut stopper = Stopper::new(&stop);
        let options = RunOptions { init_from: Some(file.to_owned()), ..options(out) };
        train(&recipe(), &options, source(), &mut stopper, &stop).unwrap();
        (checkpoint::read(&out.join("checkpoint.bin")).unwrap(), stopper.notices)
    };
    let (start, notices) = from(&export, &second);
    assert_eq!(start.metadata.step, 0);
    assert_eq!(start.state.parameters, trained.state.parameters);
    assert_eq!(start.state.ema, trained.state.parameters);
    assert!(start.state.slots.iter().all(|slot| slot.values.iter().all(|&value| value == 0.0)));
    assert!(notices.iter().any(|line| line.contains("tensors taken")), "{notices:?}");
    let (own, _) = from(&first.join("checkpoint.bin"), &third);
    assert_eq!(own.state.parameters, trained.state.parameters);
    assert_ne!(own.metadata.recipe.init_from, start.metadata.recipe.init_from);

    // The file may be removed: the weights are in the checkpoint, and the recipe has the file's checksum.
    fs::remove_file(&export).unwrap();
    let saved = saved_recipe(&second).unwrap();
    assert!(saved.init_from.is_some());
    run(&saved, &RunOptions { resume: true, max_steps: Some(1), ..options(&second) }).unwrap();
    assert_eq!(step_of(&second), 1);

    // Another number of classes: a new classifier; all other weights are kept.
    let other = dir.path().join("other");
    let stop = AtomicBool::new(true);
    let mut stopper = Stopper::new(&stop);
    let with = RunOptions { init_from: Some(first.join("checkpoint.bin")), ..options(&other) };
    let seven = Source::synthetic(7, 40, 13, 32).unwrap();
    train(&recipe(), &with, seven, &mut stopper, &stop).unwrap();
    assert!(stopper.notices.iter().any(|line| line.contains("7 classes")), "{:?}", stopper.notices);
    let start = checkpoint::read(&other.join("checkpoint.bin")).unwrap();
    let theirs = ParamTable::new(&start.architecture);
    let head = theirs.get("classifier.weight").unwrap().range();
    assert_eq!(start.state.parameters[head.clone()], initialise(&theirs, 11)[head]);
    let (a, b) =
        (theirs.get("conv_head.weight").unwrap().range(), table.get("conv_head.weight").unwrap().range());
    assert_eq!(start.state.parameters[a], trained.state.parameters[b]);

    // A damaged checkpoint is refused as a source of weights too.
    let mut damaged = bytes(&first, "checkpoint.bin");
    let place = damaged.len() / 5;
    damaged[place] ^= 1;
    fs::write(dir.path().join("damaged.bin"), damaged).unwrap();
    let with =
        RunOptions { init_from: Some(dir.path().join("damaged.bin")), ..options(&dir.path().join("no")) };
    let error = run(&recipe(), &with).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Altered { .. })), "{error}");
    assert!(!dir.path().join("no").exists(), "nothing is made before everything is checked");
}

#[test]
fn loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let wild =
        Recipe { lr: 1e36, warmup_epochs: 0.0, optimizer: Optimizer::Sgd, weight_decay: 0.0, ..recipe() };
    let error = run(&wild, &RunOptions { checkpoint_every: 1, ..options(&out) }).unwrap_err();
    let TrainError::NotFinite { step, ref tensor, saved, .. } = error else { panic!("{error}") };
    assert!(step <= 4 && saved < step, "step {step}, saved {saved}");
    assert!(!tensor.is_empty());
    let line = error.to_string();
    assert!(line.contains("not finite") && line.contains("--init-from") && line.contains("--lr"), "{line}");
    assert_eq!(line.lines().count(), 1);
    let kept = checkpoint::read(&out.join("checkpoint.bin")).unwrap();
    assert_eq!(kept.metadata.step, saved);
    assert!(kept.state.parameters.iter().all(|v| v.is_finite()));
}

#[test]
fn run_that_does_not_fit_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let huge = Recipe { resolution: 1024, batch_size: 65536, micro_batch: 65536, epochs: 4000.0, ..recipe() };
    let error = run(&huge, &options(&out)).unwrap_err();
    assert!(matches!(error, TrainError::Memory(_)), "{error}");
    let line = error.to_string();
    assert!(line.contains("--micro-batch 65536 needs") && line.contains("available"), "{line}");
    assert!(!out.exists());
}

#[test]
fn directory_that_cannot_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = run(&recipe(), &options(&file.join("run"))).unwrap_err().to_string();
    assert!(error.contains("file/run"), "{error}");
}
