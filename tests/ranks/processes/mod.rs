//! Ranks as processes: started by the program or as other launchers start them, killed, suspended, resumed.
#![cfg(target_os = "linux")]

mod ends;
mod meeting;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use crate::common::data;
use crate::common::programs::{self, Ran, ended, run};
use crate::common::training::*;
use effnet::train::events::LogLine;

const RANKS: usize = 4;
/// A limit for everything; a run takes a few seconds.
const SOON: Duration = Duration::from_secs(60);

/// A run of four ranks: 12 steps with evaluations after 5, 10 and 12, two images per rank.
static WHOLE: LazyLock<Whole> = LazyLock::new(|| Whole::new(launched));

fn place(name: &str) -> PathBuf {
    WHOLE.place(name)
}

fn program(data: &Path, out: &Path) -> Command {
    train_program(data, out, "--ema 0.9 --checkpoint-every 2 --threads 1 --device cpu")
}

/// One of several ranks on this machine, with the variables that torchrun sets.
fn given(data: &Path, out: &Path, rank: usize, size: usize, port: u16) -> Command {
    let mut command = program(data, out);
    command.envs(torchrun(rank, size, port));
    command
}

fn torchrun(rank: usize, size: usize, port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("WORLD_SIZE", size.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("LOCAL_WORLD_SIZE", size.to_string()),
        ("MASTER_ADDR", "127.0.0.1".into()),
        ("MASTER_PORT", port.to_string()),
    ]
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Four ranks, started by the program.
fn launched(data: &Path, out: &Path) -> Command {
    let mut command = program(data, out);
    command.args(["--ranks", "4"]);
    command
}

fn succeed(command: impl std::borrow::BorrowMut<Command>) -> String {
    run(command).good().printed()
}

#[test]
fn runs_are_equal_byte_for_byte() {
    let out = place("again");
    let output = succeed(launched(&place("data"), &out));
    assert_same_run(&place("whole"), &out);
    assert_same_file(&place("whole"), &out, "recipe.toml");
    // Only rank 0 reports.
    for line in ["model: ", "device: ", "checkpoint: "] {
        assert_eq!(output.lines().filter(|l| l.starts_with(line)).count(), 1, "{output}");
    }
    assert!(output.contains("2 for each of 4 ranks") && !output.contains("rank 1:"), "{output}");
}

#[test]
fn evaluation_by_four_ranks_equals_that_by_one_process() {
    let logged = timeless_log(&place("whole"));
    let Some(LogLine::Evaluation(logged)) = logged.last() else { panic!("the run ends with an evaluation") };
    let mut command = programs::program("effnet-eval");
    command.arg(place("whole").join("checkpoint.bin")).args(["--json", "--device", "cpu"]);
    let found = run(command.arg("--data").arg(place("data"))).good().json();
    let figures = |of: &serde_json::Value| ["top1", "top5", "loss"].map(|key| of[key].as_f64());
    assert_eq!(figures(&found), [Some(logged.top1), Some(logged.top5), Some(logged.loss)]);
    assert_eq!(figures(&found["ema"]), [logged.ema_top1, logged.ema_top5, logged.ema_loss]);
    assert_eq!((found["images"].as_u64(), logged.images), (Some(13), 13));
}

/// The batch stays the same; fewer ranks accumulate.
#[test]
fn run_continues_with_another_number_of_ranks() {
    let out = place("numbers");
    let with = |ranks: &str, steps: &str| {
        let mut command = program(&place("data"), &out);
        command.args(["--ranks", ranks, "--max-steps", steps]);
        if begun(&out) {
            command.arg("--resume");
        }
        succeed(command)
    };
    with("4", "3");
    let output = with("2", "6");
    assert!(output.contains("batch: 8, 4 for each of 2 ranks, in micro-batches of 2"), "{output}");
    let output = with("8", "8");
    assert!(output.contains("micro-batch: 1 images instead of 2"), "{output}");
    let output = with("1", "9");
    assert!(output.contains("batch: 8, in micro-batches of 1"), "{output}");
    let steps: Vec<u64> = timeless_log(&out)
        .iter()
        .filter(|line| matches!(line, LogLine::Step(_)))
        .map(|line| line.step())
        .collect();
    assert_eq!(steps, (1..=9).collect::<Vec<u64>>());
}

#[test]
fn memory_plan_of_resumed_ranks_is_that_of_their_share() {
    let mut command = program(&place("data"), &place("whole"));
    let output = succeed(command.args(["--ranks", "8", "--resume", "--dry-run"]));
    assert!(output.contains("memory plan, 1 images a pass (batch 1)"), "{output}");
}
