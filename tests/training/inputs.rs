//! Unusual inputs of `effnet-train` and `effnet-eval`: folders where files are meant, a set that was moved, weights that
//! fit in part, flags that a checkpoint contradicts. Each has an answer in one line.
#![cfg(unix)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::LazyLock;

use crate::common::data;
use crate::common::programs::{Ran, program, run};
use crate::common::shared_folder::until_exit;
use effnet::data::Normalise;
use effnet::model::formats::convention::Scale;
use effnet::model::formats::naming::Naming;
use effnet::model::formats::{self, Format, TrainedModel};
use effnet::model::initialise::initialise;
use effnet::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant};
use effnet::train::events::LogLine;
use effnet::train::{checkpoint, log};
use safetensors::SafeTensors;
use safetensors::tensor::serialize;
use tempfile::TempDir;

/// A folder with `data`, and in `run` a run over it of five steps with two evaluations.
static RUN: LazyLock<TempDir> = LazyLock::new(|| {
    let dir = data::packed();
    let flags = "--resolution 32 --batch-size 8 --epochs 1 --lr 0.002 --eval-every 0.5 --out run";
    train(dir.path(), flags).good();
    until_exit(dir)
});

fn train(dir: &Path, flags: &str) -> Ran {
    run(program("effnet-train").current_dir(dir).args(flags.split_whitespace()))
}

fn eval(dir: &Path, flags: &str) -> Ran {
    run(program("effnet-eval").current_dir(dir).args(flags.split_whitespace()))
}

/// A copy of the run, without its images.
fn copied() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("run")).unwrap();
    for name in ["checkpoint.bin", "best.bin", "recipe.toml", "log.jsonl"] {
        fs::copy(RUN.path().join("run").join(name), dir.path().join("run").join(name)).unwrap();
    }
    dir
}

#[test]
fn folder_of_a_run_stands_for_its_best_checkpoint() {
    let dir = RUN.path();
    let by_folder = eval(dir, "run --json").good();
    assert_eq!(by_folder.err, "run: a folder; its best.bin is taken\n");
    let by_file = eval(dir, "run/best.bin --json").good();
    let figures = |ran: &Ran| ["top1", "loss", "images"].map(|key| ran.json()[key].clone());
    assert_eq!(figures(&by_folder), figures(&by_file));
    let flags = "--max-steps 1 --batch-size 8 --epochs 1 --out";
    let out = train(dir, &format!("--init-from run {flags} from-folder")).good().out;
    assert!(out.contains("--init-from run: a folder; its best.bin is taken"), "{out}");
    let out = train(dir, "--config run --max-steps 1 --out again").good().out;
    assert!(out.contains("its recipe.toml is taken") && out.contains("stopping after step 1"), "{out}");

    eval(dir, "data").refused(1, &["data: a folder without best.bin or checkpoint.bin"]);
    train(dir, "--init-from data --out none").refused(1, &["data: a folder without best.bin"]);
    eval(dir, "run --export data").refused_with_note(1, &["data is a folder", "--export"]);
    // A packed set is no folder of image files.
    let ran = eval(dir, "run/best.bin data");
    assert_eq!(ran.status, Some(1));
    assert_eq!(ran.err, "error: data: no image in this folder and its folders\n");
}

impl Ran {
    /// [`Ran::refused`] after a note.
    #[track_caller]
    fn refused_with_note(mut self, status: i32, parts: &[&str]) {
        self.err = self.err.split_once('\n').unwrap().1.to_string();
        self.refused(status, parts);
    }
}

#[test]
fn export_replaces_no_checkpoint_under_any_name() {
    let dir = copied();
    let place = dir.path().join("run");
    symlink(place.join("checkpoint.bin"), dir.path().join("link.safetensors")).unwrap();
    fs::hard_link(place.join("checkpoint.bin"), dir.path().join("hard.safetensors")).unwrap();
    let before = fs::read(place.join("checkpoint.bin")).unwrap();
    for target in ["run/checkpoint.bin", "run/best.bin", "link.safetensors", "hard.safetensors"] {
        let ran = eval(dir.path(), &format!("run/checkpoint.bin --force --export {target}"));
        ran.refused(1, &[target, "is a checkpoint", "another name"]);
        assert!(fs::read(dir.path().join(target)).unwrap().len() == before.len(), "{target}");
    }
    assert!(fs::read(place.join("checkpoint.bin")).unwrap() == before);
    eval(dir.path(), "run/checkpoint.bin --export w.safetensors").good();
    eval(dir.path(), "run/checkpoint.bin --export w.safetensors --force").good();
}

#[test]
fn data_that_was_moved_is_asked_for() {
    let dir = copied();
    let recipe = dir.path().join("run/recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let data = RUN.path().join("data");
    let gone = dir.path().join("gone");
    fs::write(&recipe, text.replace(data.to_str().unwrap(), gone.to_str().unwrap())).unwrap();
    let parts = ["gone: no such directory", "if they have been moved, --data DIR"];
    eval(dir.path(), "run/checkpoint.bin").refused(1, &parts);
    train(dir.path(), "--resume --out run").refused(1, &parts);
    let other = ["other: no such directory", "without --data, the run goes on with its own"];
    train(dir.path(), "--resume --out run --data other").refused(1, &other);
    eval(dir.path(), &format!("run/checkpoint.bin --data {}", data.display())).good();
}

#[test]
fn resumed_run_names_the_checkpoint_s_values_and_another_way() {
    let dir = RUN.path();
    let way = "--init-from run/checkpoint.bin --out ANOTHER";
    for (flags, difference) in [
        ("--batch-size 4", "batch-size is 4, the checkpoint's 8"),
        ("--epochs 9", "epochs is 9.0, the checkpoint's 1.0"),
        ("--resolution 64", "resolution is 64, the checkpoint's 32"),
        ("--warmup-epochs 3", "warmup-epochs is 3.0, the checkpoint's 0.1"),
    ] {
        train(dir, &format!("--resume --out run {flags}")).refused(1, &["cannot resume", difference, way]);
    }
    let more = "--extend 9 in place of --epochs goes on to more epochs";
    train(dir, "--resume --out run --epochs 9").refused(1, &[more]);
    let fewer = train(dir, "--resume --out run --epochs 0.5 --warmup-epochs 0.1");
    assert!(!fewer.err.contains("--extend"), "{}", fewer.err);
    train(dir, "--resume --out run --batch-size 8").good();
}

/// Weights of a member, as other programs write them.
fn weights(file: &Path, member: Variant) {
    let arch = Architecture::new(member, 5, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap();
    let values = initialise(&ParamTable::new(&arch), 3);
    let classes: Vec<String> = (0..5).map(|class| class.to_string()).collect();
    let scale = Scale { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };
    let model = TrainedModel {
        architecture: &arch,
        values: &values,
        steps: 0,
        classes: &classes,
        scale,
        crop: "pad",
    };
    formats::export(file, &model, Format::Safetensors(Naming::Timm), false).unwrap();
}

#[test]
fn weights_that_fit_in_part_are_refused_unless_asked_for() {
    let dir = data::packed();
    let small = "--resolution 32 --batch-size 8 --epochs 1 --max-steps 1";
    weights(&dir.path().join("b1.safetensors"), Variant::B1);
    let ran = train(dir.path(), &format!("{small} --model b0 --init-from b1.safetensors"));
    ran.refused(
        1,
        &["of this model's 311 tensors", "128 not this model's", "it is of b1: --model b1; --init-partial"],
    );
    assert!(ran.err.len() < 400, "{}", ran.err);
    assert!(!dir.path().join("runs").exists());

    // Without --model, the run takes the weights' member.
    let ran = train(dir.path(), &format!("{small} --init-from b1.safetensors")).good();
    let line = "from the weights (the note in the file): --model b1 --padding symmetric";
    assert!(ran.out.contains(line), "{}", ran.out);
    assert!(dir.path().join("runs/b1/checkpoint.bin").exists());

    // The stem and the blocks, without conv_head and what follows.
    weights(&dir.path().join("b0.safetensors"), Variant::B0);
    let bytes = fs::read(dir.path().join("b0.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let half = file.iter().filter(|(name, _)| !name.starts_with("conv_head") && !name.starts_with("bn2"));
    fs::write(dir.path().join("half.safetensors"), serialize(half, None).unwrap()).unwrap();
    let ran = train(dir.path(), &format!("{small} --init-from half.safetensors"));
    ran.refused(1, &["306 of this model's 311 tensors", "5 missing, such as conv_head.weight"]);
    let out = train(dir.path(), &format!("{small} --init-from half.safetensors --init-partial")).good().out;
    assert!(out.contains("weights: 306 tensors taken"), "{out}");
    assert!(out.contains("5 missing in the file") && out.contains("and 2 more"), "{out}");
    // Its recipe repeats the run.
    train(dir.path(), "--config runs/b0/recipe.toml --max-steps 1 --out again").good();
}

#[test]
fn normalisation_is_that_of_the_weights_unless_asked_for() {
    let dir = data::packed();
    let small = "--resolution 32 --batch-size 8 --epochs 1 --max-steps 1";
    let of = |flags: &str, out: &str| {
        let ran = train(dir.path(), &format!("{small} {flags} --out {out}")).good();
        let saved = checkpoint::read(&dir.path().join(out).join("checkpoint.bin")).unwrap();
        (saved.metadata.normalise, ran.out)
    };
    let own = data::open(&dir.path().join("data")).normalise();
    assert_eq!(of("", "own").0, own);
    assert_eq!(of("--normalise imagenet", "imagenet").0, Normalise::IMAGENET);
    let half = Normalise { mean: [0.5; 3], deviation: [0.25; 3] };
    let (found, out) = of("--normalise 0.5,0.25", "half");
    assert!(found == half && out.contains("normalised by 0.5,0.5,0.5,0.25,0.25,0.25"), "{out}");

    weights(&dir.path().join("b0.safetensors"), Variant::B0);
    let (found, out) = of("--init-from b0.safetensors", "plain");
    assert!(found == Normalise::IMAGENET && out.contains("--normalise imagenet"), "{out}");
    let (found, out) = of("--init-from half/checkpoint.bin", "further");
    assert!(
        found == half && out.contains("from the weights (the checkpoint): --model b0 --padding symmetric"),
        "{out}"
    );
    assert_eq!(of("--init-from own/checkpoint.bin", "same").0, own);
    assert_eq!(of("--init-from b0.safetensors --normalise dataset", "asked").0, own);

    // Its recipe repeats it, an evaluation follows it, and a resumed run keeps it.
    train(dir.path(), "--config further/recipe.toml --max-steps 1 --out again").good();
    let read = |run: &str| fs::read(dir.path().join(run).join("checkpoint.bin")).unwrap();
    assert!(read("again") == read("further"));
    train(dir.path(), "--resume --out half").good();
    let logged = log::read(&dir.path().join("half/log.jsonl")).unwrap();
    let Some(LogLine::Evaluation(last)) = logged.last() else { panic!("{logged:?}") };
    let found = eval(dir.path(), "half/checkpoint.bin --json").good().json();
    assert_eq!(found["loss"].as_f64(), Some(last.loss));
    train(dir.path(), "--resume --out half --normalise imagenet").refused(1, &["normalise is \"imagenet\""]);
    train(dir.path(), "--normalise 127,58").refused(2, &["127,58", "dataset, imagenet"]);
}

#[test]
fn summary_as_json_has_the_table_s_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let table = train(dir.path(), "--summary --json --model b0").good().json();
    assert_eq!((&table["model"], &table["parameters"]), (&"b0".into(), &5_288_548.into()));
    let layers = table["layers"].as_array().unwrap();
    let sum = |key: &str| layers.iter().map(|layer| layer[key].as_u64().unwrap()).sum::<u64>();
    for key in ["parameters", "multiply_adds", "activation_bytes"] {
        assert_eq!(table[key].as_u64(), Some(sum(key)), "{key}");
    }
    assert_eq!(layers[0]["output"], "112x112x32");
    assert_eq!(table["frozen_parameters"], 0);
}

/// What a frozen stage and all before it leaves to be trained, and that it keeps nothing for the backward pass but its output.
#[test]
fn summary_says_what_is_frozen() {
    let dir = tempfile::tempdir().unwrap();
    let whole = train(dir.path(), "--summary --json --model b0").good().json();
    let of_head = |layers: &[serde_json::Value]| {
        let own = layers
            .iter()
            .filter(|layer| ["conv_head", "classifier"].contains(&layer["layer"].as_str().unwrap()));
        own.map(|layer| layer["parameters"].as_u64().unwrap()).sum::<u64>()
    };
    let trained = of_head(whole["layers"].as_array().unwrap());
    assert_eq!(trained, 412_160 + 1_281_000);
    let table = train(dir.path(), "--summary --json --model b0 --freeze blocks.6").good().json();
    assert_eq!(table["frozen_parameters"].as_u64(), Some(5_288_548 - trained));
    for layer in table["layers"].as_array().unwrap() {
        let name = layer["layer"].as_str().unwrap();
        let frozen = !["conv_head", "classifier"].contains(&name);
        assert_eq!(layer["frozen"], frozen, "{name}");
        match name {
            "blocks.6.0 project" => assert_eq!(layer["activation_bytes"], 7 * 7 * 320 * 4),
            _ => assert_eq!(layer["activation_bytes"] == 0, frozen, "{name}"),
        }
    }
    let text = train(dir.path(), "--summary --model b0 --freeze conv_stem").good();
    for part in ["928 parameters are frozen, 5,287,620 are trained", "conv_stem (frozen)"] {
        assert!(text.out.contains(part), "{}", text.out);
    }
}

/// A configuration file can hold only text, so such a path is refused.
#[test]
fn paths_that_are_no_text_are_refused_in_one_line() {
    let dir = data::packed();
    let odd = OsStr::from_bytes(b"od\xffd");
    for flag in ["--out", "--init-from", "--data", "--config"] {
        let mut command = program("effnet-train");
        let ran =
            command.current_dir(dir.path()).args(["--batch-size", "8", flag]).arg(odd).output().unwrap();
        let err = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{flag}: {err}");
        assert!(
            err.starts_with("error: ") && err.contains("od\u{fffd}d") && err.lines().count() == 1,
            "{err}"
        );
    }
    // A folder of such a name around everything.
    let inside = dir.path().join(odd);
    fs::create_dir(&inside).unwrap();
    let small = "--data ../data --resolution 32 --batch-size 8 --epochs 1 --max-steps 1";
    train(&inside, &format!("{small} --out run")).good();
    train(&inside, "--resume --out run --max-steps 2").good();
    eval(&inside, "run/checkpoint.bin").good();
    train(&inside, &format!("{small} --init-from run/checkpoint.bin --out other")).good();
    train(&inside, "--config other/recipe.toml --max-steps 1 --out again").good();
}
