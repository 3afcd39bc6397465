//! Small runs for the tests of training.
#![allow(dead_code)] // each test uses its part

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use effnet::data::{CropMode, Source};
use effnet::model::Variant;
use effnet::parallel::{Membership, Ranks};
use effnet::train::events::{LogLine, Silent};
use effnet::train::{DataChoice, Outcome, Recipe, RunOptions, TrainError, log, train};

/// B0 at 32×32 with batches of 8. Over [`source`] it takes 12 steps with evaluations after 5, 10 and 12. It uses
/// everything: masks, moving average, warm-up, a fraction of an epoch.
pub fn recipe() -> Recipe {
    Recipe {
        resolution: 32,
        crop: CropMode::Pad,
        epochs: 2.4,
        warmup_epochs: 0.4,
        lr: 0.002,
        ema: 0.9,
        seed: 11,
        ..Recipe::reference(Variant::B0, 8)
    }
}

/// Five classes, 40 images to train, 13 to validate: the last batch of an evaluation is partial.
pub fn source() -> Source {
    Source::synthetic(5, 40, 13, 32).unwrap()
}

pub fn options(out: &Path) -> RunOptions {
    RunOptions { threads: 2, loader_threads: 1, ..RunOptions::new(DataChoice::Synthetic, out) }
}

pub fn run(recipe: &Recipe, options: &RunOptions) -> Result<Outcome, TrainError> {
    train(recipe, options, source(), &mut Silent, &AtomicBool::new(false))
}

pub fn bytes(dir: &Path, name: &str) -> Vec<u8> {
    fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{}/{name}: {e}", dir.display()))
}

/// Panics at the first byte that differs, without printing megabytes.
pub fn assert_same_file(a: &Path, b: &Path, name: &str) {
    let (one, two) = (bytes(a, name), bytes(b, name));
    let differs = one.iter().zip(&two).position(|(x, y)| x != y);
    assert_eq!((one.len(), differs), (two.len(), None), "{name} of {} and {}", a.display(), b.display());
}

/// The log without the values that depend on time.
pub fn timeless_log(dir: &Path) -> Vec<LogLine> {
    let mut lines = log::read(&dir.join("log.jsonl")).unwrap();
    for line in &mut lines {
        match line {
            LogLine::Step(record) => (record.images_per_second, record.data_wait) = (0.0, 0.0),
            LogLine::Evaluation(record) => record.images_per_second = 0.0,
        }
    }
    lines
}

pub fn assert_same_run(a: &Path, b: &Path) {
    for name in ["checkpoint.bin", "best.bin"] {
        assert_same_file(a, b, name);
    }
    assert_eq!(timeless_log(a), timeless_log(b));
}

/// The same run by several ranks, which are threads of this process, over [`source`]. Returns the result of each rank in
/// order.
pub fn run_ranks(
    size: usize,
    recipe: &Recipe,
    options: &RunOptions,
    stop: &AtomicBool,
) -> Vec<Result<Outcome, TrainError>> {
    run_ranks_over(&source(), size, recipe, options, stop)
}

/// [`run_ranks`] over other data.
pub fn run_ranks_over(
    source: &Source,
    size: usize,
    recipe: &Recipe,
    options: &RunOptions,
    stop: &AtomicBool,
) -> Vec<Result<Outcome, TrainError>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = |rank: usize| {
        let ranks = Ranks::Given(Membership::local(rank, size, &listener).unwrap());
        let options = RunOptions { ranks, threads: 1, ..options.clone() };
        train(recipe, &options, source.clone(), &mut Silent, stop)
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..size).map(|rank| scope.spawn(move || one(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
