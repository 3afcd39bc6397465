//! `--extend`: a run goes on to more epochs, with the schedule of the new length, and then resumes to the byte.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::common::programs::{Ran, program, run as run_program, wait_for};
use crate::common::shared_folder::until_exit;
use crate::common::training::*;
use effnet::train::events::{End, ExtensionRecord, LogLine};
use effnet::train::recipe_file::RecipeFile;
use effnet::train::schedule::Schedule;
use effnet::train::{Recipe, RunOptions, ScheduleKind};
use tempfile::TempDir;

/// The run of [`recipe`], complete: 12 steps.
static DONE: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    run(&recipe(), &options(&dir.path().join("run"))).unwrap();
    until_exit(dir)
});

/// A copy of a run.
fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Options that extend the run in `out` to 4 epochs, 20 steps.
fn extended(out: &Path) -> RunOptions {
    RunOptions { resume: true, extend: Some(4.0), ..options(out) }
}

fn epochs_of_file(out: &Path) -> f64 {
    RecipeFile::read(&out.join("recipe.toml")).unwrap().recipe.epochs
}

fn extension() -> LogLine {
    LogLine::Extension(ExtensionRecord { step: 12, epoch: 2.4, extended_from: 2.4, extended_to: 4.0 })
}

#[test]
fn extended_run_has_the_longer_schedule_and_resumes_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    [&whole, &parts].into_iter().for_each(|to| copy(&DONE.path().join("run"), to));
    let outcome = run(&recipe(), &extended(&whole)).unwrap();
    assert_eq!((outcome.end, outcome.step, outcome.steps), (End::Finished, 20, 20));

    let stopped = run(&recipe(), &RunOptions { max_steps: Some(13), ..extended(&parts) }).unwrap();
    assert_eq!((stopped.step, stopped.steps), (13, 20));
    // As if the run had been killed before the file was replaced.
    RecipeFile::set_epochs(&parts.join("recipe.toml"), 2.4).unwrap();
    let longer = Recipe { epochs: 4.0, ..recipe() };
    run(&longer, &RunOptions { resume: true, ..options(&parts) }).unwrap();
    assert_same_run(&whole, &parts);
    assert_eq!([&whole, &parts].map(|out| epochs_of_file(out)), [4.0; 2]);
    assert_eq!((saved(&whole).metadata.recipe.epochs, saved(&whole).metadata.steps), (4.0, 20));

    // The log goes on where it ended: 12 steps, three evaluations, the extension.
    let (before, after) = (timeless_log(&DONE.path().join("run")), timeless_log(&whole));
    assert_eq!(after[..before.len()], before[..]);
    assert_eq!(after[before.len()], extension());
    let schedule = Schedule::new(&longer, 40).unwrap();
    let rates = after[before.len()..].iter().filter_map(|line| match line {
        LogLine::Step(step) => Some((step.step, step.lr)),
        _ => None,
    });
    let expected: Vec<(u64, f64)> = (12..20).map(|step| (step + 1, schedule.lr(step))).collect();
    assert_eq!(rates.collect::<Vec<_>>(), expected);
    // It is extended once, and repeating the flag goes on.
    assert_eq!(after.iter().filter(|line| matches!(line, LogLine::Extension(_))).count(), 1);
    run(&longer, &extended(&whole)).unwrap();
    assert_same_run(&whole, &parts);
}

#[test]
fn ranks_extend_a_run_and_resume_it_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let [start, whole, parts] = ["start", "whole", "parts"].map(|name| dir.path().join(name));
    let recipe = Recipe { micro_batch: 4, ..recipe() };
    let stop = AtomicBool::new(false);
    let ranks = |recipe: &Recipe, options: &RunOptions| {
        run_ranks(2, recipe, options, &stop).into_iter().for_each(|result| drop(result.unwrap()));
    };
    ranks(&recipe, &options(&start));
    [&whole, &parts].into_iter().for_each(|to| copy(&start, to));
    ranks(&recipe, &extended(&whole));
    ranks(&recipe, &RunOptions { max_steps: Some(15), ..extended(&parts) });
    let longer = Recipe { epochs: 4.0, ..recipe };
    ranks(&longer, &RunOptions { resume: true, ..options(&parts) });
    assert_same_run(&whole, &parts);
    assert_eq!(epochs_of_file(&whole), 4.0);
    assert!(timeless_log(&whole).contains(&extension()));
}

fn train(dir: &Path, flags: &str) -> Ran {
    run_program(program("effnet-train").current_dir(dir).args(flags.split_whitespace()))
}

/// A folder with packed images and a run over them, complete, with an average of the weights.
static RUN: LazyLock<Whole> =
    LazyLock::new(|| Whole::new(|data, out| train_program(data, out, "--ema 0.9 --checkpoint-every 2")));

#[test]
fn extended_run_survives_kills_and_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, killed] = ["whole", "killed"].map(|name| dir.path().join(name));
    [&whole, &killed].into_iter().for_each(|to| copy(&RUN.place("whole"), to));
    let out = train(dir.path(), "--resume --extend 4 --out whole").good().out;
    let line = "extended from 2.4 to 4 epochs (12 to 20 steps): from step 12 on, the learning rate is that of a run of 4 \
                epochs";
    assert!(out.contains(line) && out.contains("instead of 0.000e0, so it rises"), "{out}");
    assert!(out.contains("the result is not that of a run planned for 4 epochs from the start"), "{out}");
    for lines in [1, 4] {
        let before = log_lines(&killed);
        let flags = "--resume --extend 4 --out killed".split_whitespace();
        let mut child = program("effnet-train").current_dir(dir.path()).args(flags).spawn().unwrap();
        wait_for(&mut child, Duration::from_secs(120), || log_lines(&killed) >= before + lines);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    train(dir.path(), "--resume --extend 4 --out killed").good();
    assert_same_run(&whole, &killed);
    assert_eq!([&whole, &killed].map(|out| epochs_of_file(out)), [4.0; 2]);
}

#[test]
fn extension_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    copy(&RUN.place("whole"), &out);
    let before = bytes(&out, "checkpoint.bin");
    for (flags, parts) in [
        ("--resume --extend 1", "--extend 1: the run has done 2.40 of 2.4 epochs; give more than 2.4"),
        ("--resume --extend nan", "--extend"),
        ("--extend 5", "--resume"),
        ("--resume --extend 5 --epochs 5", "--epochs"),
    ] {
        train(dir.path(), &format!("{flags} --out run")).refused(2, &[parts]);
    }
    train(dir.path(), "--resume --extend 5 --out none").refused(1, &["none: nothing to resume here"]);
    assert!(before == bytes(&out, "checkpoint.bin"));
    assert_eq!(epochs_of_file(&out), 2.4);

    // Less than planned, though more than done.
    let begun = dir.path().join("begun");
    run(&recipe(), &RunOptions { max_steps: Some(2), ..options(&begun) }).unwrap();
    let options = RunOptions { extend: Some(1.0), ..extended(&begun) };
    let line = run(&recipe(), &options).unwrap_err().to_string();
    assert!(line.starts_with("--extend 1: the run is planned for 2.4 epochs; give more"), "{line}");
}

/// A run that its patience ended would end again at once.
#[test]
fn extension_of_a_run_that_patience_ended_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    // Such weights stay bad.
    let recipe = Recipe { patience: Some(1), lr: 1e-9, ema: 0.0, eval_every: 0.4, ..recipe() };
    let outcome = run(&recipe, &options(dir.path())).unwrap();
    assert_eq!(outcome.end, End::Patience);
    let line = run(&recipe, &extended(dir.path())).unwrap_err().to_string();
    assert!(
        line.contains("--extend 4: the run ended by its --patience 1") && line.contains("--init-from"),
        "{line}"
    );
    assert_eq!(saved(dir.path()).metadata.recipe.epochs, 2.4);
}

/// Where the rate does not depend on the length, and in the warm-up, nothing is different.
#[test]
fn extended_run_equals_a_longer_one_if_the_rate_does_not_depend_on_the_length() {
    let dir = tempfile::tempdir().unwrap();
    let [long, extended_run] = ["long", "extended"].map(|name| dir.path().join(name));
    let short = Recipe { schedule: ScheduleKind::Constant, epochs: 1.0, ..recipe() };
    run(&Recipe { epochs: 2.0, ..short.clone() }, &options(&long)).unwrap();
    run(&short, &options(&extended_run)).unwrap();
    run(&short, &RunOptions { extend: Some(2.0), ..extended(&extended_run) }).unwrap();
    assert_same_file(&long, &extended_run, "checkpoint.bin");
}
