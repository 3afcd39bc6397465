//! The program under SIGKILL, SIGTERM and a full disk: what it ends with is what an undisturbed run ends with.
#![cfg(unix)]

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::data_support;
use crate::train_support::*;
use effnet::train::checkpoint;
use tempfile::TempDir;

/// Packed data, and an undisturbed run over it: 12 steps with evaluations after 5, 10 and 12.
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

const RECIPE: [&str; 20] = [
    "--model",
    "b0",
    "--resolution",
    "32",
    "--batch-size",
    "8",
    "--epochs",
    "2.4",
    "--warmup-epochs",
    "0.4",
    "--lr",
    "0.002",
    "--ema",
    "0.9",
    "--seed",
    "11",
    "--checkpoint-every",
    "2",
    "--loader-threads",
    "1",
];

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_effnet-train"));
    command.args(arguments).env_remove("EFFNET_DATA").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn command(data: &Path, out: &Path) -> Command {
    let mut command = program(&RECIPE);
    command.arg("--data").arg(data).arg("--out").arg(out).args(["--threads", "2"]);
    command
}

fn finish(mut command: Command) -> Output {
    command.output().unwrap()
}

fn succeed(command: Command) -> String {
    let output = finish(command);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned() + &errors
}

/// The one line of a run that fails with this status.
fn fail(command: Command, status: i32) -> String {
    let output = finish(command);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    let lines: Vec<&str> = errors.lines().filter(|line| line.starts_with("error:")).collect();
    assert_eq!(lines.len(), 1, "{errors}");
    lines[0].to_string()
}

/// Waits until `ready` says so or the process ends; true if it still runs.
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

/// A small generator with a fixed seed: the moments of the kills.
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

/// One kill, at the moment that its number says. True if the run was hit while it ran.
fn kill_once(out: &Path, number: usize, moments: &mut Moments) -> bool {
    let mut run = command(&data(), out);
    // A run killed before it wrote anything has nothing to resume, and says so.
    let begun = out.join("recipe.toml").exists() || out.join("checkpoint.bin").exists();
    if begun {
        run.arg("--resume");
    }
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let temporary = out.join("checkpoint.bin.tmp");
    let hit = match number % 4 {
        // Early: before the first step, often before the first checkpoint.
        0 => {
            sleep(WHOLE.1.mul_f64(0.15 * moments.next()));
            child.try_wait().unwrap().is_none()
        }
        // While a checkpoint is written, a moment after it was begun.
        1 | 2 => {
            let hit = wait_for(&mut child, || temporary.exists());
            sleep(Duration::from_micros((20_000.0 * moments.next()) as u64));
            hit && child.try_wait().unwrap().is_none()
        }
        // Anywhere.
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
fn twenty_kills_change_nothing() {
    let out = WHOLE.0.path().join("killed");
    let mut moments = Moments(2024);
    let (mut hits, mut torn) = (0, 0);
    for number in 0..20 {
        hits += u32::from(kill_once(&out, number, &mut moments));
        torn += u32::from(out.join("checkpoint.bin.tmp").exists());
        // Whatever is there under its own name is whole.
        for name in ["checkpoint.bin", "best.bin"] {
            if out.join(name).exists() {
                checkpoint::read(&out.join(name)).unwrap_or_else(|e| panic!("after kill {number}: {e}"));
            }
        }
        // A finished run has nothing left to kill: begin another.
        if steps_done(&out) == Some(12) {
            assert_same_run(&whole(), &out);
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(hits >= 15, "only {hits} of 20 kills met a running process");
    assert!(torn >= 1, "no kill met a save");
    let mut last = command(&data(), &out);
    if out.join("recipe.toml").exists() {
        last.arg("--resume");
    }
    succeed(last);
    assert_same_run(&whole(), &out);
    assert_eq!(fs::read_dir(&out).unwrap().filter(|e| is_temporary(e.as_ref().unwrap())).count(), 0);
}

fn is_temporary(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().ends_with(".tmp")
}

#[test]
fn the_recipe_file_repeats_the_run() {
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
fn sigterm_and_ctrl_c_save_and_say_how_to_go_on() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let out = WHOLE.0.path().join(format!("signal-{signal}"));
        let mut child = command(&data(), &out).spawn().unwrap();
        let log = out.join("log.jsonl");
        let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
        assert!(wait_for(&mut child, || lines() >= 3), "it ended before the signal");
        // Twice, as `timeout` does it: to the process and to its group.
        for _ in 0..2 {
            // SAFETY: a signal to a child that has not been waited for.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        }
        let output = child.wait_with_output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("--resume") && said.contains(out.to_str().unwrap()), "{said}");
        let step = steps_done(&out).unwrap();
        assert!((3..12).contains(&step), "stopped after step {step}");
        // Every step that was logged is in the checkpoint.
        let logged = timeless_log(&out).last().unwrap().step();
        assert_eq!(logged, step);
        // As it says: no more flags are needed.
        succeed({
            let mut resumed = program(&["--resume"]);
            resumed.arg("--out").arg(&out);
            resumed
        });
        assert_same_run(&whole(), &out);
    }
}

#[test]
fn max_steps_stops_early_and_the_schedule_stays() {
    let out = WHOLE.0.path().join("steps");
    for (number, steps) in ["1", "5", "7"].into_iter().enumerate() {
        let mut part = command(&data(), &out);
        part.args(["--max-steps", steps]);
        if number > 0 {
            part.arg("--resume");
        }
        succeed(part);
        assert_eq!(steps_done(&out), steps.parse().ok());
    }
    let mut rest = command(&data(), &out);
    succeed({
        rest.arg("--resume");
        rest
    });
    assert_same_run(&whole(), &out);
}

#[test]
fn a_full_disk_leaves_the_previous_checkpoint() {
    let out = WHOLE.0.path().join("full");
    let mut first = command(&data(), &out);
    first.args(["--max-steps", "1"]);
    succeed(first);
    let old = bytes(&out, "checkpoint.bin");
    let limit = old.len() as u64 / 2;
    let mut second = command(&data(), &out);
    second.arg("--resume");
    // SAFETY: setrlimit is safe to call between fork and exec.
    unsafe {
        second.pre_exec(move || {
            let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
            match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let line = fail(second, 1);
    assert!(line.contains("checkpoint.bin") && line.contains("intact"), "{line}");
    assert!(bytes(&out, "checkpoint.bin") == old);
    assert!(!out.join("checkpoint.bin.tmp").exists());
    let mut rest = command(&data(), &out);
    succeed({
        rest.arg("--resume");
        rest
    });
    assert_same_run(&whole(), &out);
}

#[test]
fn what_cannot_be_resumed_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let resume = |arguments: &[&str]| {
        let mut command = command(&data(), &out);
        command.arg("--resume").args(arguments);
        command
    };
    let line = fail(resume(&[]), 1);
    assert!(line.contains("nothing to resume"), "{line}");
    assert!(!out.exists());
    let mut first = command(&data(), &out);
    succeed({
        first.args(["--max-steps", "1"]);
        first
    });
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
    assert!(fail(resume(&[]), 1).contains("checksum"));
    fs::write(out.join("checkpoint.bin"), &saved[..place]).unwrap();
    assert!(fail(resume(&[]), 1).contains("truncated"));
    fs::remove_file(out.join("checkpoint.bin")).unwrap();
    assert!(fail(resume(&[]), 1).contains("checkpoint.bin is missing"));
    fs::write(out.join("checkpoint.bin"), &saved).unwrap();

    // Another recipe: every field that differs is named.
    let mut faster = program(&["--resume", "--lr", "0.004", "--epochs", "3"]);
    faster.arg("--data").arg(data()).arg("--out").arg(&out);
    let line = fail(faster, 1);
    assert!(line.contains("lr is 0.004") && line.contains("epochs is 3"), "{line}");
    assert!(bytes(&out, "checkpoint.bin") == saved, "a refusal changes nothing");
    fs::write(out.join("mine.txt"), "x").unwrap();
    succeed({
        let mut forced = command(&data(), &out);
        forced.arg("--force");
        forced
    });
    assert_same_run(&whole(), &out);
    assert!(out.join("mine.txt").exists(), "--force removes what a run makes, and nothing else");
}
