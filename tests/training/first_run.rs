//! The first run of a person with images of their own: what `effnet-pack` prints is run as it is printed, and learns.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;

use crate::common::data::save;
use crate::common::programs::{program, run, signal};
use crate::common::training;
use effnet::parallel::World;
use effnet::train::device::Cpu;
use effnet::train::events::{Event, LogLine, Reporter};
use effnet::train::run::train_on;
use effnet::train::{Recipe, RunOptions, log, memory_plan};
use image::{Rgb, RgbImage};
use rustix::process::Signal;

/// Four icons of each of eight colours.
fn icons(folder: &Path) {
    for class in 0..8u8 {
        let bright = |bit: u8| if class & bit == 0 { 20 } else { 230 };
        for number in 0..4u8 {
            let colour = [bright(1), bright(2), bright(4)].map(|value| value + 3 * number);
            // A line at another place in each.
            let line = colour.map(|value| value / 2);
            let icon =
                RgbImage::from_fn(32, 32, |_, y| Rgb(if y == 5 * u32::from(number) { line } else { colour }));
            save(&folder.join(format!("{class}/{number}.png")), icon);
        }
    }
}

/// The program of a printed command, with its arguments.
fn printed_command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap().rsplit('/').next().unwrap();
    let mut command = program(name);
    command.args(words);
    command
}

fn mean_loss(steps: &[f64]) -> f64 {
    steps.iter().sum::<f64>() / steps.len() as f64
}

#[test]
fn first_run_with_the_printed_command_learns() {
    const STEPS: usize = 40;
    let dir = tempfile::tempdir().unwrap();
    icons(&dir.path().join("photos"));
    let packed = run(program("effnet-pack").current_dir(dir.path()).args(["photos", "data"])).good().out;
    let line = packed.lines().find_map(|line| line.strip_prefix("train on it: ")).unwrap();
    let mut child = printed_command(line).current_dir(dir.path()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let chosen: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with("model: ")).collect();
    let read = || log::read(&dir.path().join("runs/b0/log.jsonl")).unwrap_or_default();
    let losses = || -> Vec<f64> {
        read().iter().filter_map(|l| if let LogLine::Step(s) = l { Some(s.loss) } else { None }).collect()
    };
    // The whole run would take minutes; the loss falls by a third within these steps.
    for line in lines {
        assert!(!line.starts_with("run: "), "the run has ended: {line}");
        if losses().len() >= STEPS {
            signal(child.id() as i32, Signal::TERM);
            break;
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let losses = losses();
    let (first, last) = (mean_loss(&losses[..10]), mean_loss(&losses[losses.len() - 10..]));
    assert!(last < 0.8 * first, "{losses:?}");

    // What was chosen is said with its reason, and kept.
    assert!(chosen[0].starts_with("recipe: input 32×32, batch 16, 667 epochs (1,001 steps)"), "{chosen:?}");
    assert!(chosen[1].contains("24 training images, none larger than 32 pixels: padded"), "{chosen:?}");
    let recipe = std::fs::read_to_string(dir.path().join("runs/b0/recipe.toml")).unwrap();
    for setting in ["batch-size = 16", "epochs = 667.0", "lr = 0.000125", "resolution = 32"] {
        assert!(recipe.contains(setting), "no {setting} in\n{recipe}");
    }
}

/// Keeps the notices of a run.
#[derive(Default)]
struct Notices(Vec<String>);

impl Reporter for Notices {
    fn report(&mut self, event: Event) {
        if let Event::Notice { text } = event {
            self.0.push(text.into());
        }
    }
}

#[test]
fn first_run_takes_micro_batches_that_fit_into_a_small_memory() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |micro_batch| Recipe { batch_size: 12, micro_batch, ..training::recipe() };
    let plan = |images| memory_plan(&recipe(images), 5, &mut Cpu::new(1, ""), World::ALONE, 1).unwrap();
    let train = |auto, memory| {
        let out = dir.path().join(format!("{auto}-{memory}"));
        let options = RunOptions { auto_micro_batch: auto, max_steps: Some(1), ..training::options(&out) };
        let mut notices = Notices::default();
        let cpu = Cpu::new(1, "as asked").with_memory(memory);
        let never = AtomicBool::new(false);
        let outcome = train_on(&recipe(12), &options, training::source(), cpu, &mut notices, &never);
        (outcome.map_err(|error| error.to_string()), notices.0)
    };
    let room = plan(4).total();
    let (outcome, notices) = train(true, room);
    assert_eq!(outcome.unwrap().step, 1);
    assert_eq!(notices, ["micro-batch: 4 images, the most that fits; 3 passes make a step"]);
    // A micro-batch that was asked for is not changed.
    let error = train(false, room).0.unwrap_err();
    assert!(
        error.starts_with("--micro-batch 12 needs ") && error.ends_with("--micro-batch 4 fits"),
        "{error}"
    );
    // No flag is named that nobody gave.
    let error = train(true, 1 << 20).0.unwrap_err();
    assert!(error.starts_with("a batch of 12 images of 32×32 needs "), "{error}");
    assert!(error.ends_with("take a smaller --batch-size, --resolution or --model"), "{error}");
}

#[test]
fn first_run_that_cannot_learn_is_warned_of() {
    let dir = crate::common::data::packed();
    let start = |flags: &str| {
        let mut command = program("effnet-train");
        command.current_dir(dir.path()).args(["--max-steps", "1", "--force"]).args(flags.split(' '));
        run(command).good().out
    };
    let out = start("--batch-size 64 --epochs 10");
    assert!(out.contains("warning: a batch of 64 is larger than the 40 training images"), "{out}");
    assert!(
        out.contains("--epochs 10 makes 6 steps, too few to learn much; --epochs 1600 makes 1000"),
        "{out}"
    );
    let out = start("--batch-size 1 --resolution 32");
    assert!(out.contains("batch norm sees one value of each channel"), "{out}");
    assert!(!start("--batch-size 8").contains("warning"), "a sound recipe is warned of");
}

#[test]
fn run_that_diverges_says_so_and_keeps_no_best_checkpoint() {
    let dir = crate::common::data::packed();
    for (rate, loss) in [("3", "e"), ("1000", "NaN")] {
        let mut command = program("effnet-train");
        command.current_dir(dir.path()).args(["--resolution", "32", "--batch-size", "8", "--epochs", "1"]);
        let ran = run(command.args(["--lr", rate, "--warmup-epochs", "0", "--out", rate]));
        ran.refused(1, &["the run has diverged: its last validation loss is ", loss, "a lower --lr"]);
        assert!(ran.out.contains("means that the weights have diverged; a lower --lr"), "{}", ran.out);
        assert!(ran.out.contains("run: finished after step 5 of 5"), "{}", ran.out);
        assert!(!ran.out.contains("best"), "{}", ran.out);
        assert!(dir.path().join(rate).join("checkpoint.bin").exists());
        assert!(!dir.path().join(rate).join("best.bin").exists());
    }
}

/// Images that are not packed are packed once; the same images are found again, and changed ones are packed anew.
#[test]
fn images_that_are_not_packed_are_packed_once() {
    let dir = tempfile::tempdir().unwrap();
    let photo = |class: &str, name: usize, shade: u8| {
        let folder = dir.path().join("my photos").join(class);
        fs::create_dir_all(&folder).unwrap();
        let image = image::RgbImage::from_pixel(40, 36, image::Rgb([shade, 255 - shade, name as u8]));
        image.save(folder.join(format!("{name}.png"))).unwrap();
    };
    for name in 0..8 {
        photo("cat", name, 40);
        photo("dog", name, 200);
    }
    let train = |out: &str| {
        let mut command = program("effnet-train");
        command.current_dir(dir.path()).args([
            "--data",
            "my photos",
            "--device",
            "cpu",
            "--resolution",
            "32",
        ]);
        command.args(["--batch-size", "4", "--max-steps", "1", "--out", out]);
        run(&mut command).good().out
    };
    let packed = |line: &str| {
        let start = line.find("runs/packed/my-photos-").unwrap_or_else(|| panic!("{line}"));
        line[start..].split([':', ' ', '\n']).next().unwrap().to_string()
    };
    let first = train("runs/a");
    assert!(first.contains("is packed to runs/packed/") && first.contains("16 images"), "{first}");
    let place = packed(&first);
    let again = train("runs/b");
    assert!(again.contains("is packed already: ") && packed(&again) == place, "{again}");
    // The run knows the packed set, so an evaluation and a resumed run need no flag.
    let mut evaluation = program("effnet-eval");
    assert!(run(evaluation.current_dir(dir.path()).arg("runs/a/checkpoint.bin")).good().out.contains(&place));
    photo("dog", 9, 90);
    let changed = train("runs/c");
    assert!(changed.contains("17 images") && packed(&changed) != place, "{changed}");

    // A rank that somebody else started does not pack: all would at once.
    let mut rank = program("effnet-train");
    rank.current_dir(dir.path()).args(["--data", "my photos", "--pack-dir", "elsewhere", "--out", "runs/d"]);
    rank.args(["--device", "cpu", "--resolution", "32", "--batch-size", "4", "--max-steps", "1"]);
    rank.envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")]);
    rank.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29999")]);
    run(&mut rank)
        .refused(1, &["not packed yet", "effnet-pack 'my photos' elsewhere/data", "--data elsewhere/data"]);
}
