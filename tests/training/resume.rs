//! After SIGKILL, SIGTERM or a full disk, a resumed run gives the same result as an undisturbed run.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::data_support;
use crate::train_support::*;
use effnet::train::checkpoint;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Packed data and an undisturbed run over it: 12 steps with evaluations after 5, 10 and 12.
static WHOLE: LazyLock<(TempDir, Duration)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    data_support::pack_grey(&dir.path().join("data"), 40, 13, 28, 1 << 20);
    let since = Instant::now();
    succeed(command(&dir.path().join("data"), &dir.path().join("whole")));
    (dir, since.elapsed())
});

fn data() -> PathBuf {
    WHOLE.0.path().join("data")
}

fn whole() -> PathBuf {
    WHOLE.0.path().join("whole")
}

const RECIPE: &str = "--model b0 --resolution 32 --batch-size 8 --epochs 2.4 --warmup-epochs 0.4 --lr 0.002 --ema 0.9 \
    --seed 11 --checkpoint-every 2 --loader-threads 1";

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_effnet-train"));
    command.args(arguments).env_remove("EFFNET_DATA").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn command(data: &Path, out: &Path) -> Command {
    let mut command = program(&RECIPE.split_whitespace().collect::<Vec<_>>());
    command.arg("--data").arg(data).arg("--out").arg(out).args(["--threads", "2"]);
    command
}

/// The run over [`data`] in `out`, with more arguments.
fn run(out: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&data(), out);
    command.args(arguments);
    command
}

fn succeed(mut command: Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &errors
}

/// The only error line of a run that fails with this status.
fn fail(mut command: Command, status: i32) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    lines[0].to_string()
}

/// Waits until `ready` is true or the process ends; returns whether it still runs.
fn wait_for(child: &mut Child, ready: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(since.elapsed() < Duration::from_secs(120), "nothing happens");
        sleep(Duration::from_micros(200));
    }
    child.try_wait().unwrap().is_none()
}

/// A small random generator with a fixed seed, for the moments of the kills.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

fn steps_done(out: &Path) -> Option<u64> {
    checkpoint::read(&out.join("checkpoint.bin")).ok().map(|c| c.metadata.step)
}

/// Starts or resumes the run and kills it at a moment that depends on `number`. Returns whether the run was still
/// running.
fn kill_once(out: &Path, number: usize, moments: &mut Moments) -> bool {
    // A run that was killed before it wrote anything cannot be resumed.
    let begun = out.join("recipe.toml").exists() || out.join("checkpoint.bin").exists();
    let mut run = run(out, if begun { &["--resume"] } else { &[] });
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let temporary = out.join("checkpoint.bin.tmp");
    let hit = match number % 4 {
        // Early: before the first step, often before the first checkpoint.
        0 => {
            sleep(WHOLE.1.mul_f64(0.15 * moments.next()));
            child.try_wait().unwrap().is_none()
        }
        // While a checkpoint is being written.
        1 | 2 => {
            let hit = wait_for(&mut child, || temporary.exists());
            sleep(Duration::from_micros((20_000.0 * moments.next()) as u64));
            hit && child.try_wait().unwrap().is_none()
        }
        // At any moment.
        _ => {
            sleep(WHOLE.1.mul_f64(0.9 * moments.next()));
            child.try_wait().unwrap().is_none()
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    hit
}

#[test]
fn kills_do_not_change_the_result() {
    let out = WHOLE.0.path().join("killed");
    let mut moments = Moments(2024);
    let (mut hits, mut torn) = (0, 0);
    for number in 0..20 {
        hits += u32::from(kill_once(&out, number, &mut moments));
        torn += u32::from(out.join("checkpoint.bin.tmp").exists());
        // Every file with its final name is complete.
        for name in ["checkpoint.bin", "best.bin"] {
            if out.join(name).exists() {
                checkpoint::read(&out.join(name)).unwrap_or_else(|e| panic!("after kill {number}: {e}"));
            }
        }
        // A finished run cannot be killed again: start a new one.
        if steps_done(&out) == Some(12) {
            assert_same_run(&whole(), &out);
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(hits >= 15, "only {hits} of 20 kills met a running process");
    assert!(torn >= 1, "no kill met a save");
    let begun = out.join("recipe.toml").exists();
    succeed(run(&out, if begun { &["--resume"] } else { &[] }));
    assert_same_run(&whole(), &out);
    assert_eq!(fs::read_dir(&out).unwrap().filter(|e| is_temporary(e.as_ref().unwrap())).count(), 0);
}

fn is_temporary(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().ends_with(".tmp")
}

#[test]
fn recipe_file_repeats_the_run() {
    let out = WHOLE.0.path().join("repeated");
    let recipe = whole().join("recipe.toml");
    let mut again =
        program(&["--config", recipe.to_str().unwrap(), "--threads", "1", "--loader-threads", "3"]);
    again.arg("--out").arg(&out).current_dir("/");
    succeed(again);
    assert_same_run(&whole(), &out);
    assert_same_file(&whole(), &out, "recipe.toml");
}

#[test]
fn signal_saves_the_run_and_prints_how_to_resume() {
    for signal in [Signal::TERM, Signal::INT] {
        let out = WHOLE.0.path().join(format!("signal-{}", signal.as_raw()));
        let mut child = command(&data(), &out).spawn().unwrap();
        let log = out.join("log.jsonl");
        let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        assert!(wait_for(&mut child, || lines() >= 3), "it ended before the signal");
        // Twice, because `timeout` signals the process and its group.
        for _ in 0..2 {
            kill_process(Pid::from_child(&child), signal).unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("--resume") && said.contains(out.to_str().unwrap()), "{said}");
        let step = steps_done(&out).unwrap();
        assert!((3..12).contains(&step), "stopped after step {step}");
        // The checkpoint contains every logged step.
        let logged = timeless_log(&out).last().unwrap().step();
        assert_eq!(logged, step);
        // No other flags are needed.
        succeed(program(&["--resume", "--out", out.to_str().unwrap()]));
        assert_same_run(&whole(), &out);
    }
}

#[test]
fn max_steps_stops_early_and_keeps_the_schedule() {
    let out = WHOLE.0.path().join("steps");
    for (number, steps) in ["1", "5", "7"].into_iter().enumerate() {
        let resume: &[&str] = if number > 0 { &["--resume"] } else { &[] };
        succeed(run(&out, &[resume, &["--max-steps", steps]].concat()));
        assert_eq!(steps_done(&out), steps.parse().ok());
    }
    succeed(run(&out, &["--resume"]));
    assert_same_run(&whole(), &out);
}

#[test]
fn full_disk_leaves_the_previous_checkpoint() {
    let out = WHOLE.0.path().join("full");
    succeed(run(&out, &["--max-steps", "1"]));
    let old = bytes(&out, "checkpoint.bin");
    // The shell limits the size of files to half a checkpoint, in blocks of 512 bytes.
    let whole_run = run(&out, &["--resume"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f $0 && exec \"$@\"", &(old.len() / 2 / 512).to_string()]);
    limited.arg(whole_run.get_program()).args(whole_run.get_args()).stdin(Stdio::null());
    let line = fail(limited, 1);
    assert!(line.contains("checkpoint.bin") && line.contains("intact"), "{line}");
    assert!(bytes(&out, "checkpoint.bin") == old);
    assert!(!out.join("checkpoint.bin.tmp").exists());
    succeed(run(&out, &["--resume"]));
    assert_same_run(&whole(), &out);
}

#[test]
fn resume_that_is_impossible_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let resume = || run(&out, &["--resume"]);
    let line = fail(resume(), 1);
    assert!(line.contains("nothing to resume"), "{line}");
    assert!(!out.exists());
    succeed(run(&out, &["--max-steps", "1"]));
    let saved = bytes(&out, "checkpoint.bin");
    let line = fail(command(&data(), &out), 1);
    assert!(line.contains("--resume") && line.contains("--force"), "{line}");

    let other = dir.path().join("other");
    data_support::pack_grey(&other, 41, 13, 28, 1 << 20);
    let mut elsewhere = program(&["--resume"]);
    elsewhere.arg("--data").arg(&other).arg("--out").arg(&out);
    let line = fail(elsewhere, 1);
    assert!(line.contains("other data"), "{line}");
    let mut altered = saved.clone();
    let place = saved.len() / 3;
    altered[place] ^= 4;
    fs::write(out.join("checkpoint.bin"), &altered).unwrap();
    assert!(fail(resume(), 1).contains("checksum"));
    fs::write(out.join("checkpoint.bin"), &saved[..place]).unwrap();
    assert!(fail(resume(), 1).contains("truncated"));
    fs::remove_file(out.join("checkpoint.bin")).unwrap();
    assert!(fail(resume(), 1).contains("checkpoint.bin is missing"));
    fs::write(out.join("checkpoint.bin"), &saved).unwrap();

    // Another recipe: the message names every field that differs.
    let mut faster = program(&["--resume", "--lr", "0.004", "--epochs", "3"]);
    faster.arg("--data").arg(data()).arg("--out").arg(&out);
    let line = fail(faster, 1);
    assert!(line.contains("lr is 0.004") && line.contains("epochs is 3"), "{line}");
    assert!(bytes(&out, "checkpoint.bin") == saved, "a refusal changes nothing");
    fs::write(out.join("mine.txt"), "x").unwrap();
    succeed(run(&out, &["--force"]));
    assert_same_run(&whole(), &out);
    assert!(out.join("mine.txt").exists(), "--force removes what a run makes, and nothing else");
}
