//! Runs with `--freeze-bn` and `--freeze`: what is frozen keeps its bits, and a run that was interrupted gives the same bytes.

use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::common::fixture::equal_bits;
use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::programs::{self, program, wait_for};
use crate::common::training::{
    self, Whole, assert_same_run, recipe, run_ranks, saved, steps_done, train_program,
};
use effnet::data::Source;
use effnet::model::ParamTable;
use effnet::ops::cuda::Precision;
use effnet::train::device::{Cpu, Cuda, Hardware};
use effnet::train::events::Silent;
use effnet::train::run::train_on;
use effnet::train::{Freeze, Recipe, RunOptions, memory_plan};

/// A recipe, and its first parameter that is trained.
fn recipes() -> [(Recipe, &'static str); 4] {
    // Without a warm-up every step moves what is trained.
    let base = Recipe { weight_decay: 1e-2, warmup_epochs: 0.0, epochs: 1.2, ..recipe() };
    let frozen = |freeze, freeze_bn| Recipe { freeze, freeze_bn, ..base.clone() };
    [
        (frozen(None, true), "conv_stem.weight"),
        (frozen(Some(Freeze::Stem), false), "blocks.0.0.conv_dw.weight"),
        (frozen(Some(Freeze::Blocks4), true), "blocks.5.0.conv_pw.weight"),
        (frozen(Some(Freeze::Head), false), "classifier.weight"),
    ]
}

/// Elements of the running statistics that a run moves.
fn moved(recipe: &Recipe, table: &ParamTable) -> Range<usize> {
    let first = match recipe.freeze {
        _ if recipe.freeze_bn => None,
        None => Some("bn1.running_mean"),
        Some(Freeze::Stem) => Some("blocks.0.0.bn1.running_mean"),
        Some(Freeze::Head) => None,
        Some(other) => panic!("no recipe here freezes {other} alone"),
    };
    first.map_or(table.total(), |name| table.get(name).unwrap().offset)..table.total()
}

/// Compares the run's checkpoint with the one that a run of the same seed begins with.
fn expect_frozen(recipe: &Recipe, first: &str, out: &Path, start: &Path) {
    let (before, after) = (saved(start), saved(out));
    assert_eq!((before.metadata.step, after.metadata.step > 2), (0, true));
    let table = ParamTable::new(&after.architecture);
    let (first, running) = (table.get(first).unwrap().offset, moved(recipe, &table));
    let slots = before.state.slots.iter().zip(&after.state.slots).map(|(a, b)| (&a.values, &b.values));
    let buffers =
        [(&before.state.parameters, &after.state.parameters), (&before.state.ema, &after.state.ema)];
    for (number, (before, after)) in buffers.into_iter().chain(slots).enumerate() {
        assert!(before.len() >= table.trainable() && before.len() == after.len());
        for entry in table.entries().iter().filter(|entry| entry.range().end <= before.len()) {
            let moves =
                if entry.role.trainable() { entry.offset >= first } else { running.contains(&entry.offset) };
            let same = equal_bits(&before[entry.range()], &after[entry.range()]);
            assert_eq!(same, !moves, "{} in buffer {number}, {:?}", entry.name, recipe.freeze);
        }
    }
}

fn start<H: Hardware>(recipe: &Recipe, hardware: H, source: &Source, out: &Path, steps: Option<u64>) {
    let resume = out.join("checkpoint.bin").exists();
    let options = RunOptions { max_steps: steps, resume, ..training::options(out) };
    let never = AtomicBool::new(false);
    train_on(recipe, &options, source.clone(), hardware, &mut Silent, &never).expect("it trains");
}

/// In parts too: the bytes are those of the undisturbed run.
#[test]
fn frozen_state_keeps_its_bits() {
    let cpu = || Cpu::new(2, "as asked");
    for (recipe, first) in recipes() {
        let dir = tempfile::tempdir().unwrap();
        let [begin, whole, parts] = ["begin", "whole", "parts"].map(|name| dir.path().join(name));
        start(&recipe, cpu(), &training::source(), &begin, Some(0));
        start(&recipe, cpu(), &training::source(), &whole, None);
        expect_frozen(&recipe, first, &whole, &begin);
        for steps in [1, 4, 6] {
            start(&recipe, cpu(), &training::source(), &parts, Some(steps));
        }
        assert_same_run(&whole, &parts);
    }
}

/// With the classifier first, half the rate for the rest, a norm that is clipped, stages of other resolutions, AdamW.
#[test]
fn frozen_run_takes_all_that_fine_tuning_takes() {
    let cpu = || Cpu::new(2, "as asked");
    let tuned = Recipe {
        freeze: Some(Freeze::Blocks4),
        optimizer: "adamw".parse().unwrap(),
        classifier_epochs: Some(0.6),
        body_lr: Some(0.5),
        clip_norm: Some(1.0),
        progressive: vec![32],
        resolution: 48,
        micro_batch: 4,
        weight_decay: 1e-2,
        ..recipe()
    };
    let source = Source::synthetic(5, 40, 13, 48).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [begin, whole, parts] = ["begin", "whole", "parts"].map(|name| dir.path().join(name));
    start(&tuned, cpu(), &source, &begin, Some(0));
    start(&tuned, cpu(), &source, &whole, None);
    for steps in [2, 6, 12] {
        start(&tuned, cpu(), &source, &parts, Some(steps));
    }
    assert_same_run(&whole, &parts);
    let (before, after) = (saved(&begin), saved(&whole));
    let table = ParamTable::new(&after.architecture);
    let first = table.get("blocks.5.0.conv_pw.weight").unwrap().offset;
    assert!(equal_bits(&before.state.parameters[..first], &after.state.parameters[..first]));
    assert!(equal_bits(&before.state.ema[..first], &after.state.ema[..first]));
    for entry in table.entries().iter().filter(|entry| entry.offset >= first && entry.role.trainable()) {
        let [before, after] = [&before, &after].map(|saved| &saved.state.parameters[entry.range()]);
        assert!(!equal_bits(before, after), "{}", entry.name);
    }
}

/// A mean of three equal numbers may be another number, so what does not move is not exchanged.
#[test]
fn frozen_state_keeps_its_bits_on_several_ranks() {
    for (recipe, first) in recipes() {
        let recipe = Recipe { batch_size: 6, micro_batch: 2, ..recipe };
        let dir = tempfile::tempdir().unwrap();
        let [begin, out] = ["begin", "out"].map(|name| dir.path().join(name));
        start(&recipe, Cpu::new(2, "as asked"), &training::source(), &begin, Some(0));
        let options = RunOptions { max_steps: Some(5), ..training::options(&out) };
        for outcome in run_ranks(3, &recipe, &options, &AtomicBool::new(false)) {
            outcome.unwrap();
        }
        expect_frozen(&recipe, first, &out, &begin);
    }
}

fn frozen_state_keeps_its_bits_on_a_card<G: TestGpu>() {
    // Without loss scaling, whose first steps may be skipped.
    let cuda = || Cuda::new(G::open(G::WAYS[0]), Precision::Bf16, "as asked");
    let source = Source::synthetic(5, 32, 2, 64).unwrap();
    for (recipe, first) in recipes() {
        let recipe = Recipe {
            resolution: 64,
            batch_size: 4,
            micro_batch: 2,
            epochs: 1.0,
            lr: 1e-3,
            eval_every: 100.0,
            ..recipe
        };
        let dir = tempfile::tempdir().unwrap();
        let [begin, whole, parts] = ["begin", "whole", "parts"].map(|name| dir.path().join(name));
        start(&recipe, cuda(), &source, &begin, Some(0));
        // The second step is captured, and the third launches the same graphs.
        start(&recipe, cuda(), &source, &whole, Some(3));
        expect_frozen(&recipe, first, &whole, &begin);
        start(&recipe, cuda(), &source, &parts, Some(1));
        start(&recipe, cuda(), &source, &parts, Some(3));
        training::assert_same_file(&whole, &parts, "checkpoint.bin");
    }
}
on_cuda!(frozen_state_keeps_its_bits_on_a_card);

#[test]
fn frozen_run_is_planned_with_less_memory() {
    let planned = |freeze| {
        let recipe = Recipe { freeze, ..recipe() };
        let plan = memory_plan(&recipe, 5, &mut Cpu::new(2, "as asked"), Default::default(), 1).unwrap();
        (plan.saved, plan.arena, plan.total())
    };
    let all = [None, Some(Freeze::Stem), Some(Freeze::Blocks2), Some(Freeze::Blocks5), Some(Freeze::Head)];
    let plans = all.map(planned);
    for pair in plans.windows(2) {
        let ((saved, ..), (less_saved, arena, total)) = (pair[0], pair[1]);
        assert!(less_saved < saved && arena < plans[0].1 && total < plans[0].2, "{plans:?}");
    }
}

/// The undisturbed run.
static WHOLE: LazyLock<Whole> = LazyLock::new(|| Whole::new(|data, out| train_program(data, out, FROZEN)));

const FROZEN: &str = "--ema 0.9 --freeze blocks.3 --freeze-bn --checkpoint-every 2 --threads 2";

/// The flags, the recipe in the checkpoint and `recipe.toml` mean the same.
#[test]
fn killed_run_goes_on_to_the_same_bytes() {
    let (data, out) = (WHOLE.place("data"), WHOLE.place("killed"));
    for (number, more) in ["", " --resume"].into_iter().enumerate() {
        let mut command = train_program(&data, &out, &format!("{FROZEN}{more}"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let wanted = 2 + 4 * number as u64;
        wait_for(&mut child, Duration::from_secs(120), || steps_done(&out) >= Some(wanted));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    programs::run(train_program(&data, &out, &format!("{FROZEN} --resume"))).good();
    assert_same_run(&WHOLE.place("whole"), &out);
    let repeated = WHOLE.place("repeated");
    let mut command = program("effnet-train");
    command.args(["--threads", "2", "--loader-threads", "1", "--config"]).arg(out.join("recipe.toml"));
    programs::run({
        command.arg("--out").arg(&repeated);
        command
    })
    .good();
    assert_same_run(&WHOLE.place("whole"), &repeated);
    let text = std::fs::read_to_string(out.join("recipe.toml")).unwrap();
    assert!(text.contains("freeze = \"blocks.3\"\n") && text.contains("freeze-bn = true\n"), "{text}");
}

#[test]
fn frozen_layers_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, parts) in [
        ("--freeze blocks.9", ["blocks.9", "use conv_stem, blocks.0,"]),
        ("--freeze classifier", ["classifier", "nothing would be trained"]),
        ("--freeze blocks.0,blocks.1", ["blocks.0,blocks.1", "no list is needed"]),
        ("--freeze-bn --sync-bn", ["--sync-bn true", "--freeze-bn"]),
    ] {
        let mut command = program("effnet-train");
        command.args(["--data", "synthetic", "--out"]).arg(dir.path().join("run"));
        command.args(arguments.split_whitespace());
        let ran = programs::run(command);
        assert_eq!((ran.status, ran.errors().len()), (Some(2), 1), "{arguments}: {}", ran.err);
        assert!(parts.iter().all(|part| ran.errors()[0].contains(part)), "{arguments}: {}", ran.err);
    }
}
