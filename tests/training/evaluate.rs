//! `effnet-eval`: its result equals training's to the last bit; images, exports and bad files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use crate::common::programs::{Ran, program, run};
use crate::common::shared_folder::until_exit;
use crate::common::training::{saved, timeless_log};
use crate::common::{data, training};
use effnet::data::Split;
use effnet::ops::cuda::driver::Driver;
use effnet::train::checkpoint::Checkpoint;
use effnet::train::device::Cpu;
use effnet::train::evaluator::Evaluator;
use effnet::train::events::{EvaluationRecord, LogLine, Silent};
use effnet::train::{DataChoice, Recipe, RunOptions, train};
use safetensors::SafeTensors;
use serde_json::Value;
use tempfile::TempDir;

const VAL: u32 = 13;

/// A finished run on packed data: five classes of noise, 40 images to train, 13 to validate.
static RUN: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = data::packed();
    let packed = dir.path().join("data");
    let options = RunOptions {
        data: DataChoice::Dir(packed.clone()),
        keep: 9,
        ..training::options(&dir.path().join("run"))
    };
    let recipe = Recipe { epochs: 2.0, ..training::recipe() };
    train(&recipe, &options, data::open(&packed), &mut Silent, &AtomicBool::new(false)).unwrap();
    until_exit(dir)
});

pub fn path(name: &str) -> PathBuf {
    RUN.path().join(name)
}

/// The result must not depend on the current directory.
pub fn eval(arguments: &[&str]) -> Ran {
    run(program("effnet-eval").current_dir("/").args(arguments))
}

#[track_caller]
pub fn good(arguments: &[&str]) -> String {
    eval(arguments).good().out
}

/// Expects one line with these parts, and status 1.
#[track_caller]
pub fn bad(arguments: &[&str], parts: &[&str]) {
    eval(arguments).refused(1, parts);
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn logged() -> Vec<EvaluationRecord> {
    let lines = timeless_log(&path("run"));
    lines.into_iter().filter_map(|l| if let LogLine::Evaluation(e) = l { Some(e) } else { None }).collect()
}

#[test]
fn eval_prints_exactly_what_training_logged() {
    let logged = logged();
    assert_eq!(logged.iter().map(|e| e.step).collect::<Vec<_>>(), [5, 10]);
    for record in &logged {
        let checkpoint = path("run").join(format!("checkpoint-{:08}.bin", record.step));
        for threads in ["1", "3"] {
            let found = eval(&[text(&checkpoint), "--json", "--threads", threads]).good().json();
            let figures = [&found["top1"], &found["top5"], &found["loss"]].map(|v| v.as_f64().unwrap());
            assert_eq!(figures, [record.top1, record.top5, record.loss]);
            assert_eq!(found["images"], VAL);
            assert!(found["images_per_second"].as_f64().unwrap() > 0.0);
            let ema = ["top1", "top5", "loss"].map(|key| found["ema"][key].as_f64());
            assert_eq!(ema, [record.ema_top1, record.ema_top5, record.ema_loss]);
        }
    }
    // The weights and their moving average are different networks.
    assert_ne!(logged[0].ema_loss, Some(logged[0].loss));
    assert_ne!(logged[0].loss, logged[1].loss);
    let table = good(&[text(&path("run/best.bin"))]);
    assert!(table.contains("13 images of val") && table.contains("average"), "{table}");
    // A batch size that does not divide the split counts the same images.
    let found = eval(&[text(&path("run/checkpoint.bin")), "--json", "--batch-size", "5"]).good().json();
    assert_eq!(found["images"], VAL);
    assert!((found["loss"].as_f64().unwrap() - logged[1].loss).abs() < 1e-4);
    let found = eval(&[text(&path("run/checkpoint.bin")), "--json", "--split", "train"]).good().json();
    assert_eq!(found["images"], 40);
}

/// The moving average is evaluated with its own running statistics. So it gives the same result when it takes the place
/// of the raw weights.
#[test]
fn moving_average_is_evaluated_with_its_own_statistics() {
    let source = data::open(&path("data"));
    let mut whole = saved(&path("run"));
    let figures = |checkpoint: &Checkpoint| {
        let mut evaluator = Evaluator::new(checkpoint, 8, Cpu::new(2, "as asked")).unwrap();
        evaluator.split(&source, Split::Val, 1).unwrap()
    };
    let before = figures(&whole);
    whole.state.parameters = whole.state.ema.clone();
    let after = figures(&whole);
    assert_eq!([after[0], after[1]], [before[1]; 2]);
    assert_ne!(before[0], before[1]);
}

/// The same images, classified one by one as files, are correct as often as in the evaluation.
#[test]
fn images_are_classified_as_in_the_evaluation() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = data::idx_images(VAL, 28, 28, 2);
    let files: Vec<PathBuf> = (0..VAL as usize)
        .map(|number| {
            let file = dir.path().join(format!("{number}.png"));
            let pixels = bytes[16 + number * 784..][..784].to_vec();
            image::GrayImage::from_raw(28, 28, pixels).unwrap().save(&file).unwrap();
            file
        })
        .collect();
    let checkpoint = path("run/checkpoint.bin");
    let mut arguments = vec![text(&checkpoint), "--json"];
    arguments.extend(files.iter().map(|f| text(f)));
    let lines = good(&arguments);
    let mut right = 0;
    for (number, line) in lines.lines().enumerate() {
        let found: Value = serde_json::from_str(line).unwrap();
        assert!(found["image"].as_str().unwrap().ends_with(&format!("{number}.png")));
        let classes = found["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 5);
        let shares: Vec<f64> = classes.iter().map(|c| c["probability"].as_f64().unwrap()).collect();
        assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9 && shares.is_sorted_by(|a, b| a >= b));
        let label = (number % 5).to_string();
        right += usize::from(classes[0]["class"].as_str() == Some(&label));
    }
    assert_eq!(lines.lines().count(), VAL as usize);
    assert_eq!(right as f64 / f64::from(VAL), logged()[1].top1);

    // A broken file is reported; the others are still classified.
    fs::write(&files[0], b"no image").unwrap();
    let Ran { status, out, err } = eval(&[text(&checkpoint), text(&files[0]), text(&files[1])]);
    assert_eq!((status, out.lines().count()), (Some(1), 6), "{out}");
    assert!(err.contains("0.png") && err.contains("1 of 2"), "{err}");
}

#[test]
fn exports_contain_the_plain_weights() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = path("run/checkpoint.bin");
    let [raw, ema] = ["raw", "ema"].map(|kind| {
        let file = dir.path().join(format!("{kind}.safetensors"));
        good(&[text(&checkpoint), "--export", text(&file), "--weights", kind]);
        file
    });
    let (raw_bytes, ema_bytes) = (fs::read(&raw).unwrap(), fs::read(&ema).unwrap());
    let file = SafeTensors::deserialize(&raw_bytes).unwrap();
    assert!(file.names().iter().all(|n| !n.starts_with("ema.") && !n.starts_with("optimizer.")));
    assert_eq!(file.tensor("bn2.num_batches_tracked").unwrap().data(), 10i64.to_le_bytes());
    let whole = fs::read(&checkpoint).unwrap();
    let whole = SafeTensors::deserialize(&whole).unwrap();
    let ema_file = SafeTensors::deserialize(&ema_bytes).unwrap();
    for name in ["conv_stem.weight", "classifier.bias", "blocks.3.0.bn2.running_var"] {
        assert_eq!(file.tensor(name).unwrap().data(), whole.tensor(name).unwrap().data());
        let average = whole.tensor(&format!("ema.{name}")).unwrap();
        assert_eq!(ema_file.tensor(name).unwrap().data(), average.data());
    }
    bad(&[text(&checkpoint), "--export", text(&raw)], &["raw.safetensors", "--force"]);
    good(&[text(&checkpoint), "--export", text(&raw), "--force"]);
    assert!(fs::read(&raw).unwrap() == raw_bytes);
    // Plain weights come with no data of their own.
    let ran = eval(&[text(&raw)]);
    assert!(ran.status == Some(1) && ran.err.contains("effnet-pack"), "{ran:?}");
}

#[test]
fn bad_input_is_reported_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let whole = fs::read(path("run/checkpoint.bin")).unwrap();
    let file = dir.path().join("c.bin");
    bad(&[text(&file)], &["c.bin"]);
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    bad(&[text(&file)], &["truncated"]);
    let mut damaged = whole.clone();
    damaged[whole.len() - 4] ^= 1;
    fs::write(&file, &damaged).unwrap();
    bad(&[text(&file)], &["checksum"]);

    // Outside its run the checkpoint has no data; other data must be given explicitly.
    fs::write(&file, &whole).unwrap();
    bad(&[text(&file)], &["effnet-pack"]);
    let other = dir.path().join("other");
    data::pack_grey(&other, 41, 7, 28, 1 << 20);
    let ran = eval(&[text(&file), "--data", text(&other), "--json"]).good();
    assert!(ran.err.contains("not the data"), "{}", ran.err);
    assert_eq!(ran.json()["images"], 7);
    let mut recipe = fs::read_to_string(path("run/recipe.toml")).unwrap();
    recipe = recipe.replace(text(&path("data")), text(&other));
    fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    bad(&[text(&file)], &["fingerprint", "--data"]);
    let few = dir.path().join("few");
    data::pack_grey(&few, 4, 4, 28, 1 << 20);
    bad(&[text(&file), "--data", text(&few)], &["classes"]);
    // What is missing depends on the build and the machine; with a GPU nothing is.
    if Driver::open(0).is_err() {
        bad(&[text(&file), "--data", text(&other), "--device", "cuda"], &["--device cuda: ", "--device cpu"]);
    }
    assert_eq!(eval(&[text(&file), "--batch-size", "0"]).status, Some(2));
}
