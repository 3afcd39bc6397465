//! How runs start, stop and resume, within one process: weights from files, a stop at any point, a loss that is not
//! finite, too little memory.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::training::*;
use effnet::data::Source;
use effnet::model::ParamTable;
use effnet::model::formats::{self, Format, naming::Naming};
use effnet::model::initialise::initialise;
use effnet::train::checkpoint::{self, Checkpoint, CheckpointError};
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
        assert_eq!((outcome.step, steps_done(&parts)), (step, Some(step)), "stop {number}");
        let finished = number >= 5;
        assert_eq!(outcome.end, if finished { End::Finished } else { End::Interrupted }, "stop {number}");
        assert_eq!(outcome.resume.is_some(), !finished);
    }
    assert_same_run(&whole, &parts);
}

/// Two steps, for the weights of other runs.
fn trained(out: &Path) -> Checkpoint {
    run(&recipe(), &RunOptions { max_steps: Some(2), ..options(out) }).unwrap();
    saved(out)
}

/// A run with weights from a file that stops before its first step: its checkpoint has these weights. Also its notices.
fn started_from(file: &Path, out: &Path, source: Source) -> Result<(Checkpoint, Vec<String>), TrainError> {
    let stop = AtomicBool::new(true);
    let mut stopper = Stopper::new(&stop);
    let options = RunOptions { init_from: Some(file.to_owned()), ..options(out) };
    train(&recipe(), &options, source, &mut stopper, &stop)?;
    Ok((saved(out), stopper.notices))
}

#[test]
fn weights_come_from_a_checkpoint_or_an_export() {
    let dir = tempfile::tempdir().unwrap();
    let [first, second, third] = ["first", "second", "third"].map(|name| dir.path().join(name));
    let trained = trained(&first);
    let export = dir.path().join("w.safetensors");
    let model = trained.metadata.trained(&trained.architecture, &trained.state.parameters);
    formats::export(&export, &model, Format::Safetensors(Naming::Timm), false).unwrap();

    let (start, notices) = started_from(&export, &second, source()).unwrap();
    assert_eq!(start.metadata.step, 0);
    assert_eq!(start.state.parameters, trained.state.parameters);
    assert_eq!(start.state.ema, trained.state.parameters);
    assert!(start.state.slots.iter().all(|slot| slot.values.iter().all(|&value| value == 0.0)));
    assert!(notices.iter().any(|line| line.contains("tensors taken")), "{notices:?}");
    let (own, _) = started_from(&first.join("checkpoint.bin"), &third, source()).unwrap();
    assert_eq!(own.state.parameters, trained.state.parameters);
    assert_ne!(own.metadata.recipe.init_from, start.metadata.recipe.init_from);

    // The file may be removed: the weights are in the checkpoint, and the recipe has the file's checksum.
    fs::remove_file(&export).unwrap();
    let again = saved_recipe(&second).unwrap();
    assert!(again.init_from.is_some());
    run(&again, &RunOptions { resume: true, max_steps: Some(1), ..options(&second) }).unwrap();
    assert_eq!(steps_done(&second), Some(1));
}

#[test]
fn weights_of_another_number_of_classes_get_a_new_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let [first, other] = ["first", "other"].map(|name| dir.path().join(name));
    let trained = trained(&first);
    let seven = Source::synthetic(7, 40, 13, 32).unwrap();
    let (start, notices) = started_from(&first.join("checkpoint.bin"), &other, seven).unwrap();
    assert!(notices.iter().any(|line| line.contains("7 classes")), "{notices:?}");
    let [own, theirs] = [&trained, &start].map(|saved| ParamTable::new(&saved.architecture));
    let head = theirs.get("classifier.weight").unwrap().range();
    assert_eq!(start.state.parameters[head.clone()], initialise(&theirs, 11)[head]);
    let [a, b] = [&theirs, &own].map(|table| table.get("conv_head.weight").unwrap().range());
    assert_eq!(start.state.parameters[a], trained.state.parameters[b]);
}

#[test]
fn weights_of_a_damaged_checkpoint_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [first, file, out] = ["first", "damaged.bin", "no"].map(|name| dir.path().join(name));
    trained(&first);
    let mut damaged = bytes(&first, "checkpoint.bin");
    let place = damaged.len() / 5;
    damaged[place] ^= 1;
    fs::write(&file, damaged).unwrap();
    let error = started_from(&file, &out, source()).map(drop).unwrap_err();
    assert!(matches!(error, TrainError::Checkpoint(CheckpointError::Altered { .. })), "{error}");
    assert!(!out.exists(), "nothing is made before everything is checked");
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
