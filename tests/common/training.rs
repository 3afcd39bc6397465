//! Small runs, within this process and as programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use effnet::data::{CropMode, Source};
use effnet::model::{ParamTable, Variant};
use effnet::parallel::Ranks;
use effnet::train::checkpoint::{self, Checkpoint};
use effnet::train::events::{LogLine, Silent};
use effnet::train::{DataChoice, Outcome, Recipe, RunOptions, TrainError, log, train};
use tempfile::TempDir;

use super::programs::{program, run as run_program};
use super::shared_folder::until_exit;
use super::{data, ranks};

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

/// [`recipe`] as flags, without its moving average.
const FLAGS: &str = "--model b0 --resolution 32 --batch-size 8 --epochs 2.4 --warmup-epochs 0.4 --lr 0.002 --seed 11 \
                     --loader-threads 1";

/// `effnet-train` with the flags of [`recipe`] and more.
pub fn train_program(data: &Path, out: &Path, more: &str) -> Command {
    let mut command = program("effnet-train");
    command.args(FLAGS.split_whitespace()).args(more.split_whitespace());
    command.arg("--data").arg(data).arg("--out").arg(out);
    command
}

/// A folder with packed `data` and an undisturbed run over it, `whole`.
pub struct Whole {
    folder: TempDir,
    /// How long the run took.
    pub time: Duration,
}

impl Whole {
    /// `command` starts the run, from the data and the run's directory.
    pub fn new(command: impl FnOnce(&Path, &Path) -> Command) -> Whole {
        let folder = until_exit(data::packed());
        let since = Instant::now();
        run_program(command(&folder.path().join("data"), &folder.path().join("whole"))).good();
        Whole { folder, time: since.elapsed() }
    }

    /// A path in the folder.
    pub fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
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

/// The run's checkpoint.
pub fn saved(out: &Path) -> Checkpoint {
    checkpoint::read(&out.join("checkpoint.bin")).unwrap()
}

/// Changes the run's checkpoint.
pub fn change_saved(out: &Path, change: impl FnOnce(&mut Checkpoint, &ParamTable)) {
    let mut checkpoint = saved(out);
    let table = ParamTable::new(&checkpoint.architecture);
    change(&mut checkpoint, &table);
    let mut bytes = Vec::new();
    checkpoint::write(&mut bytes, &checkpoint.metadata, &table, &checkpoint.state).unwrap();
    fs::write(out.join("checkpoint.bin"), bytes).unwrap();
}

/// The step of the run's checkpoint, if there is a sound one.
pub fn steps_done(out: &Path) -> Option<u64> {
    checkpoint::read(&out.join("checkpoint.bin")).ok().map(|saved| saved.metadata.step)
}

/// Whether there is something to resume.
pub fn begun(out: &Path) -> bool {
    out.join("recipe.toml").exists() || out.join("checkpoint.bin").exists()
}

/// That the checkpoints under their final names are complete.
pub fn assert_sound(out: &Path, when: &str) {
    for name in ["checkpoint.bin", "best.bin"] {
        if out.join(name).exists() {
            checkpoint::read(&out.join(name)).unwrap_or_else(|e| panic!("{when}: {e}"));
        }
    }
}

/// Lines of the run's log so far.
pub fn log_lines(out: &Path) -> usize {
    fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count())
}

/// Number, loss and accuracy of each step of a run without evaluations.
pub fn figures(out: &Path) -> Vec<(u64, f64, f64)> {
    let of = |line: &LogLine| match line {
        LogLine::Step(step) => (step.step, step.loss, step.accuracy),
        LogLine::Evaluation(_) | LogLine::Extension(_) => panic!("no evaluation is due"),
    };
    timeless_log(out).iter().map(of).collect()
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
            LogLine::Extension(_) => {}
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
    ranks::members(0..size, size, |_, membership| {
        let ranks = Ranks::Given(membership);
        let options = RunOptions { ranks, threads: 1, ..options.clone() };
        train(recipe, &options, source.clone(), &mut Silent, stop)
    })
}
