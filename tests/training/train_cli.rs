//! `effnet-train` as a child process: its output, its messages and its exit status.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;

use clap::CommandFactory;
use effnet::cli::Flags;
use rustix::process::Signal;

use crate::common::data::packed;
use crate::common::programs::{ended, program, run, signal};

/// The program in `dir`.
fn effnet(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = program("effnet-train");
    command.current_dir(dir).args(arguments);
    command
}

/// Expects a failure with this status and one line that contains all `parts`.
#[track_caller]
fn refused(dir: &Path, arguments: &[&str], status: i32, parts: &[&str]) {
    run(effnet(dir, arguments)).refused(status, parts);
}

#[track_caller]
fn succeeds(dir: &Path, arguments: &[&str]) -> String {
    run(effnet(dir, arguments)).good().out
}

/// Five steps.
const SMALL: [&str; 8] =
    ["--resolution", "32", "--batch-size", "4", "--epochs", "0.5", "--warmup-epochs", "0.1"];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SMALL.iter().copied().chain(more.iter().copied()).collect()
}

#[test]
fn settings_out_of_range_are_refused_by_name_and_value() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, parts) in [
        (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
        (["--batch-size", "-4"], ["--batch-size", "'-4'"]),
        (["--batch-size", "99999999999999999999"], ["--batch-size", "99999999999999999999"]),
        (["--batch-size", "9999999999999"], ["--batch-size 9999999999999", "at most"]),
        (["--micro-batch", "0"], ["--micro-batch 0", "at least 1"]),
        (["--micro-batch", "3"], ["--micro-batch 3", "--batch-size 4096"]),
        (["--lr", "-1"], ["--lr -1", "above 0"]),
        (["--lr", "0"], ["--lr 0", "above 0"]),
        (["--lr", "nan"], ["--lr NaN", "above 0"]),
        (["--lr", "inf"], ["--lr inf", "above 0"]),
        (["--lr", "fast"], ["--lr", "'fast'"]),
        (["--epochs", "0"], ["--epochs 0", "above 0"]),
        (["--epochs", "-3"], ["--epochs -3", "above 0"]),
        (["--warmup-epochs", "400"], ["--warmup-epochs 400", "less than --epochs"]),
        (["--warmup-epochs", "-1"], ["--warmup-epochs -1", "at least 0"]),
        (["--resolution", "31"], ["--resolution 31", "at least 32"]),
        (["--resolution", "0"], ["--resolution 0", "at least 32"]),
        (["--resolution", "1000000"], ["--resolution 1000000", "at most"]),
        (["--alpha", "1"], ["--alpha 1", "below 1"]),
        (["--momentum", "1.5"], ["--momentum 1.5", "below 1"]),
        (["--momentum", "-0.1"], ["--momentum -0.1", "at least 0"]),
        (["--rms-eps", "0"], ["--rms-eps 0", "above 0"]),
        (["--weight-decay", "-1e-5"], ["--weight-decay -0.00001", "at least 0"]),
        (["--label-smoothing", "1"], ["--label-smoothing 1", "below 1"]),
        (["--mixup", "-0.2"], ["--mixup -0.2", "at least 0"]),
        (["--mixup", "nan"], ["--mixup NaN", "at least 0"]),
        (["--cutmix", "inf"], ["--cutmix inf", "at least 0"]),
        (["--mixup-prob", "0.5"], ["--mixup-prob 0.5", "needs --mixup or --cutmix"]),
        (["--mixup-off-epoch", "3"], ["--mixup-off-epoch 3", "needs --mixup or --cutmix"]),
        (["--class-weights", "missing.csv"], ["missing.csv", "give `balanced`, or a file"]),
        (["--drop-connect", "1"], ["--drop-connect 1", "below 1"]),
        (["--dropout", "-0.5"], ["--dropout -0.5", "at least 0"]),
        (["--bn-momentum", "0"], ["--bn-momentum 0", "above 0"]),
        (["--bn-eps", "nan"], ["--bn-eps NaN", "above 0"]),
        (["--ema", "1"], ["--ema 1", "below 1"]),
        (["--weight-decay-bn", "-1"], ["--weight-decay-bn -1", "at least 0"]),
        (["--clip-norm", "0"], ["--clip-norm 0", "above 0"]),
        (["--patience", "0"], ["--patience 0", "at least 1"]),
        (["--schedule", "poly"], ["poly", "cosine, linear, exponential, steps or constant"]),
        (["--schedule", "steps"], ["--schedule steps", "needs --decay-rate"]),
        (["--milestones", "3,6"], ["--milestones 3,6", "--schedule cosine has none"]),
        (["--milestones", "3,x"], ["--milestones", "'x'"]),
        (["--decay-rate", "0.5"], ["--decay-rate 0.5", "--schedule cosine has none"]),
        (["--decay-epochs", "2"], ["--decay-epochs 2", "--schedule cosine has none"]),
        (["--min-lr", "1"], ["--min-lr 1", "at most --lr 0.08"]),
        (["--min-lr", "-1"], ["--min-lr -1", "at least 0"]),
        (["--warmup-lr", "1"], ["--warmup-lr 1", "at most --lr 0.08"]),
        (["--warmup-lr", "nan"], ["--warmup-lr NaN", "at least 0"]),
        (["--eval-every", "0"], ["--eval-every 0", "above 0"]),
        (["--seed", "-1"], ["--seed", "'-1'"]),
        (["--threads", "0"], ["--threads 0", "at least 1"]),
        (["--loader-threads", "0"], ["--loader-threads 0", "at least 1"]),
        (["--max-steps", "0"], ["--max-steps 0", "at least 1"]),
        (["--model", "b8"], ["b8", "b0"]),
        (["--optimizer", "adam"], ["adam", "rmsprop-tf"]),
        (["--nesterov", "--momentum=0.8"], ["--nesterov true", "--optimizer sgd"]),
        (["--beta1", "0.8"], ["--beta1 0.8", "--optimizer rmsprop has none"]),
        (["--weight-decay-of", "biases"], ["biases", "no-batch-norm"]),
        (["--padding", "valid"], ["valid", "symmetric or same"]),
        (["--crop", "none"], ["none", "resized"]),
        (["--device", "tpu"], ["tpu", "cuda"]),
        (["--config", "missing.toml"], ["--config missing.toml", "No such file"]),
    ] {
        refused(dir.path(), &arguments, 2, &parts);
    }
    for (arguments, parts) in [
        ("--optimizer sgd --momentum 0 --nesterov", ["--nesterov true", "--momentum above 0"]),
        ("--mixup 0.2 --mixup-prob 1.5", ["--mixup-prob 1.5", "from 0 to 1"]),
        ("--mixup 0.2 --mixup-switch-prob 0.5", ["--mixup-switch-prob 0.5", "needs --mixup and --cutmix"]),
        ("--mixup 0.2 --mixup-off-epoch 0", ["--mixup-off-epoch 0", "at least 1"]),
        ("--optimizer adamw --beta2 1", ["--beta2 1", "below 1"]),
        ("--optimizer adamw --adam-eps 0", ["--adam-eps 0", "above 0"]),
        ("--optimizer sgd --alpha 0.9", ["--alpha 0.9", "--optimizer sgd has none; leave it out"]),
        ("--optimizer sgd --rms-eps 0.01", ["--rms-eps 0.01", "--optimizer sgd has none"]),
        ("--optimizer adamw --momentum 0.9", ["--momentum 0.9", "--optimizer adamw has none"]),
        ("--preset finetune --alpha 0.9", ["--alpha 0.9", "--optimizer sgd has none"]),
        ("--schedule constant --min-lr 1e-3", ["--min-lr 0.001", "--schedule constant has none"]),
        ("--schedule exponential --decay-rate 0.9", ["--schedule exponential", "needs --decay-epochs"]),
        ("--schedule exponential --decay-rate 1.1 --decay-epochs 2", ["--decay-rate 1.1", "at most 1"]),
        ("--schedule exponential --decay-rate 0.9 --decay-epochs 0", ["--decay-epochs 0", "above 0"]),
        ("--schedule steps --decay-rate 0.1", ["--schedule steps", "needs --milestones"]),
        ("--schedule steps --decay-rate 0.1 --milestones 6,3", ["--milestones 3", "each after"]),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        refused(dir.path(), &arguments, 2, &parts);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a refused command left something behind");
}

#[test]
fn gpus_that_are_missing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    match effnet::train::device::gpus() {
        Ok(gpus) => {
            let (more, has) = (format!("{}", gpus + 1), format!("this machine has {gpus}"));
            refused(dir.path(), &["--gpus", &more], 2, &["--gpus", &has]);
        }
        Err(_) => {
            refused(dir.path(), &["--gpus", "8"], 2, &["--gpus 8: ", "--device cpu"]);
            refused(dir.path(), &["--gpus", "1"], 2, &["--gpus 1: "]);
        }
    }
    if effnet::ops::cuda::driver::Driver::open(0).is_err() {
        refused(dir.path(), &["--device", "cuda"], 2, &["--device cuda: ", "--device cpu"]);
    }
    refused(dir.path(), &["--gpus", "0"], 2, &["--gpus 0"]);
}

#[test]
fn flags_of_ranks_that_contradict_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, parts) in [
        ("--ranks 0", ["--ranks 0", "at least 1"]),
        ("--ranks -2", ["--ranks", "'-2'"]),
        ("--ranks 99999", ["--ranks 99999", "at most 1024"]),
        ("--ranks 2 --gpus 2", ["--ranks", "--gpus"]),
        ("--ranks 2 --device cuda", ["--ranks 2", "--gpus 2"]),
        ("--gpus 2 --device cpu", ["--gpus", "--device cpu"]),
        ("--nodes 0", ["--nodes 0", "at least 1"]),
        ("--ranks 2 --nodes 2", ["--nodes 2", "--node-rank"]),
        ("--ranks 2 --nodes 2 --rendezvous a:1", ["--nodes 2", "--node-rank"]),
        ("--ranks 2 --nodes 2 --node-rank 1", ["--nodes 2", "--rendezvous HOST:PORT"]),
        ("--ranks 2 --nodes 2 --node-rank 2 --rendezvous a:1", ["--node-rank 2", "less than --nodes 2"]),
        ("--ranks 2 --nodes 2 --node-rank 1 --rendezvous a", ["--rendezvous a", "HOST:PORT"]),
        ("--ranks 2 --nodes 2 --node-rank 1 --rendezvous a:99999", ["--rendezvous a:99999", "HOST:PORT"]),
        ("--ranks 2 --rendezvous a:1", ["--rendezvous a:1", "--nodes"]),
        ("--ranks 2 --node-rank 0", ["--node-rank 0", "--nodes"]),
        ("--ranks 2 --watchdog 0", ["--watchdog 0", "at least 1"]),
        ("--ranks 2 --rendezvous-timeout 0", ["--rendezvous-timeout 0", "at least 1"]),
        ("--ranks 2 --rendezvous-timeout soon", ["--rendezvous-timeout", "soon"]),
        ("--demo --nodes 2 --node-rank 0 --rendezvous a:1", ["--demo", "--nodes"]),
        ("--sync-bn=maybe", ["--sync-bn", "maybe"]),
    ] {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        refused(dir.path(), &arguments, 2, &parts);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a refused command left something behind");
}

#[test]
fn variables_of_launchers_that_are_invalid_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let torchrun =
        "WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500";
    let open_mpi = "OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1 \
        OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=job";
    let slurm = "SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=3 SLURM_LOCALID=1 \
        SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_STEP_NODELIST=n[1-2]";
    let changed = |base: &str, change: &str| format!("{base} {change}");
    for (variables, arguments, parts) in [
        ("RANK=0".into(), "", ["RANK is set but WORLD_SIZE is not", "unset RANK"]),
        ("WORLD_SIZE=2".into(), "", ["WORLD_SIZE is set but RANK is not", "unset WORLD_SIZE"]),
        ("RANK=0 WORLD_SIZE=2".into(), "", ["LOCAL_RANK is not", "set LOCAL_RANK"]),
        (changed(torchrun, "RANK=2"), "", ["RANK=2", "WORLD_SIZE, which is 2"]),
        (changed(torchrun, "RANK=x"), "", ["RANK=x", "whole number"]),
        (changed(torchrun, "MASTER_PORT=0"), "", ["MASTER_PORT=0", "65535"]),
        (torchrun.into(), "--ranks 4", ["--ranks 4", "torchrun has started 2 ranks"]),
        (torchrun.into(), "--gpus 8", ["--gpus 8", "torchrun has started 2 ranks"]),
        (torchrun.into(), "--nodes 2", ["--nodes 2", "leave the flag out"]),
        (torchrun.into(), "--demo", ["--demo", "torchrun"]),
        (open_mpi.into(), "", ["Open MPI does not say where rank 0 listens", "--rendezvous HOST:PORT"]),
        (changed(open_mpi, "OMPI_COMM_WORLD_SIZE=1"), "", ["OMPI_COMM_WORLD_RANK=1", "less than"]),
        (open_mpi.into(), "--rendezvous a:1 --ranks 3", ["--ranks 3", "Open MPI has started 2 ranks"]),
        (changed(slurm, "SLURM_PROCID=4"), "", ["SLURM_PROCID=4", "which is 4"]),
        (changed(slurm, "SLURM_STEP_NODELIST=n[1-2"), "", ["SLURM_STEP_NODELIST=n[1-2", "list of hosts"]),
        (slurm.into(), "--ranks 1", ["--ranks 1", "Slurm has started 2 ranks"]),
    ] {
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let mut command = effnet(dir.path(), &arguments);
        command.envs(variables.split_whitespace().map(|pair| pair.split_once('=').unwrap()));
        run(command).refused(2, &parts);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "a refused command left something behind");
}

#[test]
fn errors_of_all_ranks_are_reported_once_before_any_starts() {
    let dir = packed();
    refused(dir.path(), &["--ranks", "2", "--data", "nowhere"], 1, &["nowhere", "effnet-pack"]);
    succeeds(dir.path(), &small(&["--max-steps", "1"]));
    refused(dir.path(), &small(&["--ranks", "2"]), 1, &["runs/b0", "--resume", "--force"]);
}

#[test]
fn tables_and_plans_start_no_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let one = succeeds(dir.path(), &["--summary"]);
    assert_eq!(succeeds(dir.path(), &["--summary", "--ranks", "3"]), one);
    let plan =
        ["--dry-run", "--batch-size", "8", "--resolution", "32", "--data", "synthetic", "--ranks", "4"];
    let plan = succeeds(dir.path(), &plan);
    assert_eq!(plan.matches("memory plan").count(), 1, "{plan}");
}

#[test]
fn flags_that_are_unknown_or_exclude_each_other_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), &["--resume", "--force"], 2, &["--resume", "--force"]);
    refused(dir.path(), &["--demo", "--data", "x"], 2, &["--demo", "--data"]);
    refused(dir.path(), &["--summary", "--dry-run"], 2, &["--summary", "--dry-run"]);
    refused(dir.path(), &["--batchsize", "8"], 2, &["--batchsize", "--batch-size"]);
    refused(dir.path(), &["stray"], 2, &["stray"]);
}

#[test]
fn data_that_is_missing_names_the_command_that_makes_it() {
    let dir = tempfile::tempdir().unwrap();
    refused(dir.path(), &["--batch-size", "4"], 1, &["data", "effnet-pack SOURCE data", "--demo"]);
    fs::create_dir(dir.path().join("empty")).unwrap();
    refused(dir.path(), &small(&["--data", "empty"]), 1, &["empty", "effnet-pack"]);
    let ran = run(effnet(dir.path(), &[]).env("EFFNET_DATA", "elsewhere"));
    assert!(ran.err.contains("effnet-pack SOURCE elsewhere"), "{}", ran.err);
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn data_that_is_damaged_is_named() {
    let dir = packed();
    let data = dir.path().join("data");
    let shard = fs::read_dir(&data).unwrap().map(|e| e.unwrap().path());
    let shard = shard.into_iter().find(|p| p.extension().is_some_and(|e| e == "shard")).unwrap();
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    refused(dir.path(), &small(&[]), 1, &[".shard"]);
    fs::write(data.join("dataset.json"), "{}").unwrap();
    refused(dir.path(), &small(&[]), 1, &["dataset.json"]);
}

#[test]
fn resume_needs_a_run_and_a_new_run_overwrites_nothing() {
    let dir = packed();
    refused(dir.path(), &["--resume"], 1, &["runs/b0", "nothing to resume"]);
    succeeds(dir.path(), &small(&["--max-steps", "1"]));
    let checkpoint = dir.path().join("runs/b0/checkpoint.bin");
    let before = fs::read(&checkpoint).unwrap();
    refused(dir.path(), &small(&[]), 1, &["runs/b0", "--resume", "--force", "--out"]);
    refused(dir.path(), &["--resume", "--lr", "0.5"], 1, &["cannot resume", "lr is 0.5"]);
    refused(dir.path(), &["--resume", "--model", "b1", "--out", "runs/b0"], 1, &["model is \"b1\""]);
    assert_eq!(fs::read(&checkpoint).unwrap(), before);
    // The recipe and the data are those of the run; no flag is needed.
    let out = succeeds(dir.path(), &["--resume", "--out", "runs/b0"]);
    assert!(out.contains("run: finished after step 5 of 5"), "{out}");
    assert!(fs::read(&checkpoint).unwrap() != before);
    fs::write(&checkpoint, &before[..before.len() - 7]).unwrap();
    refused(dir.path(), &["--resume"], 1, &["checkpoint.bin"]);
    succeeds(dir.path(), &small(&["--force"]));
}

#[test]
fn run_leaves_its_files_and_its_recipe_repeats_it() {
    let dir = packed();
    let out = succeeds(
        dir.path(),
        &small(&["--out", "one", "--seed", "7", "--keep", "2", "--checkpoint-every", "2"]),
    );
    for line in
        ["model: EfficientNet-B0", "device: cpu", "run directory: one", "validation, epoch", "run: finished"]
    {
        assert!(out.lines().any(|l| l.starts_with(line)), "no {line:?} in\n{out}");
    }
    for file in
        ["checkpoint.bin", "best.bin", "log.jsonl", "recipe.toml", "curves.svg", "checkpoint-00000004.bin"]
    {
        assert!(dir.path().join("one").join(file).exists(), "{file}");
    }
    let svg = fs::read_to_string(dir.path().join("one/curves.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("validation top-1"), "{svg}");
    // In another directory, with the file alone.
    succeeds(&dir.path().join("one"), &["--config", "recipe.toml", "--out", "../two"]);
    let read = |run: &str| fs::read(dir.path().join(run).join("checkpoint.bin")).unwrap();
    assert!(read("one") == read("two"), "the recipe did not repeat the run");
    // The command line overrides the file.
    succeeds(dir.path(), &["--config", "one/recipe.toml", "--seed", "8", "--out", "three"]);
    assert!(read("one") != read("three"));
}

#[test]
fn configuration_file_is_checked_like_flags() {
    let dir = tempfile::tempdir().unwrap();
    let config = |content: &str| fs::write(dir.path().join("c.toml"), content).unwrap();
    for (content, parts) in [
        ("lr = 0.1\nlearning-rate = 2", ["c.toml", "line 2: unknown key `learning-rate`"]),
        ("resume = true", ["c.toml", "`resume`"]),
        ("batch-size = -3", ["c.toml", "line 1"]),
        ("batch-size = 0", ["--batch-size 0", "at least 1"]),
        ("model = \"b9\"", ["c.toml", "b9"]),
        ("lr = nan", ["--lr NaN", "above 0"]),
        ("lr", ["c.toml", "line 1"]),
        ("micro-batch = 1.5", ["c.toml", "auto or a whole number"]),
        ("crop = \"square\"", ["c.toml", "square"]),
    ] {
        config(content);
        refused(dir.path(), &["--config", "c.toml"], 2, &parts);
    }
}

#[test]
fn layers_reach_the_memory_plan_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("c.toml"), "batch-size = 24\nresolution = 32\nmicro-batch = 8\n").unwrap();
    let plan = succeeds(dir.path(), &["--dry-run", "--config", "c.toml", "--data", "synthetic"]);
    assert!(plan.contains("memory plan, 8 images a pass (batch 24)"), "{plan}");
    let plan = succeeds(dir.path(), &["--dry-run", "--config", "c.toml", "--batch-size", "16"]);
    assert!(plan.contains("memory plan, 8 images a pass (batch 16)"), "{plan}");
    let plan = succeeds(dir.path(), &["--dry-run", "--config", "c.toml", "--micro-batch", "auto"]);
    assert!(plan.contains("memory plan, 24 images a pass (batch 24)"), "{plan}");
    let json = run(effnet(dir.path(), &["--dry-run", "--config", "c.toml", "--json"])).good().json();
    assert_eq!((&json["micro_batch"], &json["batch_size"]), (&8.into(), &24.into()));
    assert!(json["total"].as_u64().unwrap() > json["weights"].as_u64().unwrap());
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn batch_beyond_memory_is_refused_before_training() {
    let dir = packed();
    // So many epochs of the few images make a step.
    let arguments = ["--resolution", "2048", "--batch-size", "65536", "--epochs", "4000"];
    let parts = ["a batch of 65536 images of 2048×2048 needs", "available", "a smaller --batch-size"];
    refused(dir.path(), &arguments, 1, &parts);
    let asked = [&arguments[..], &["--micro-batch", "65536"]].concat();
    refused(dir.path(), &asked, 1, &["--micro-batch 65536 needs", "available", "fits"]);
    assert!(!dir.path().join("runs").exists());
}

#[test]
fn summary_counts_every_member_as_in_the_paper() {
    let dir = tempfile::tempdir().unwrap();
    for (model, parameters) in [
        ("b0", "5,288,548"),
        ("b1", "7,794,184"),
        ("b2", "9,109,994"),
        ("b3", "12,233,232"),
        ("b4", "19,341,616"),
        ("b5", "30,389,784"),
        ("b6", "43,040,704"),
        ("b7", "66,347,960"),
    ] {
        let table = succeeds(dir.path(), &["--summary", "--model", model]);
        assert!(table.contains(parameters), "{table}");
        assert!(table.contains("blocks.6.0"), "{table}");
    }
    // If there is data, the classes are those of the data.
    let data = packed();
    assert!(succeeds(data.path(), &["--summary"]).contains("4,013,953"));
}

#[test]
fn json_is_one_object_a_line_and_nothing_else() {
    let dir = packed();
    let out = succeeds(dir.path(), &small(&["--json"]));
    let events: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let count = |name: &str| events.iter().filter(|e| e["event"] == name).count();
    assert_eq!((count("started"), count("step"), count("finished")), (1, 5, 1), "{out}");
    assert_eq!(events.last().unwrap()["event"], "finished");
    assert_eq!(events.last().unwrap()["end"], "finished");
    let log = fs::read_to_string(dir.path().join("runs/b0/log.jsonl")).unwrap();
    let logged: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    let told = events.iter().find(|e| e["event"] == "evaluation").unwrap();
    for figure in ["top1", "top5", "loss", "images"] {
        assert_eq!(told[figure], logged[figure], "{figure}");
    }
}

#[test]
fn help_names_every_flag_and_version_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let help = succeeds(dir.path(), &["--help"]);
    for flag in Flags::command().get_arguments().filter_map(|flag| flag.get_long()) {
        assert!(help.contains(&format!("--{flag}")), "{flag}");
    }
    assert!(succeeds(dir.path(), &["--version"]).starts_with("effnet-train "));
}

#[test]
fn closed_pipe_and_signal_lose_nothing() {
    let dir = packed();
    let start = |arguments: &[&str]| effnet(dir.path(), arguments).spawn().unwrap();
    // The pipe is closed after one line: the run continues to its end.
    let mut child = start(&small(&["--out", "closed"]));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ran = ended(child).good();
    assert!(!ran.err.contains("panicked"), "{}", ran.err);

    // SIGTERM during the run: it is saved, the command to resume is printed, the status is 130.
    let mut child = start(&["--resolution", "32", "--batch-size", "4", "--epochs", "50", "--out", "stopped"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("step ")).unwrap();
    signal(child.id() as i32, Signal::TERM);
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|l| l.starts_with("run: interrupted after step")), "{rest:?}");
    let next = |l: &String| l.starts_with("to go on: ") && l.ends_with("effnet-train --resume --out stopped");
    assert!(rest.iter().any(next), "{rest:?}");
    let out = succeeds(dir.path(), &["--resume", "--out", "stopped", "--max-steps", "1"]);
    assert!(out.contains("going on after step"), "{out}");
}
