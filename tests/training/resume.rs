//! After SIGKILL, SIGTERM or a full disk, a resumed run gives the same result as an undisturbed run.
#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::Duration;

use crate::common::data;
use crate::common::programs::{self, Moments, ended, program, signal, wait_for};
use crate::common::training::{
    Whole, assert_same_file, assert_same_run, assert_sound, begun, bytes, log_lines, steps_done,
    timeless_log, train_program,
};
use rustix::process::Signal;

/// Much more than anything here takes.
const LONG: Duration = Duration::from_secs(120);

/// A run of 12 steps with evaluations after 5, 10 and 12.
static WHOLE: LazyLock<Whole> = LazyLock::new(|| Whole::new(command));

/// The same with activations stored in bf16.
static IN_BF16: LazyLock<Whole> = LazyLock::new(|| {
    Whole::new(|data, out| {
        let mut command = command(data, out);
        command.args(BF16);
        command
    })
});
const BF16: [&str; 2] = ["--precision", "bf16"];

fn place(name: &str) -> PathBuf {
    WHOLE.place(name)
}

fn command(data: &Path, out: &Path) -> Command {
    train_program(data, out, "--ema 0.9 --checkpoint-every 2 --threads 2")
}

/// `effnet-train` with only these arguments.
fn plain(arguments: &[&str]) -> Command {
    let mut command = program("effnet-train");
    command.args(arguments);
    command
}

/// The run over the packed data in `out`, with more arguments.
fn run(out: &Path, arguments: &[&str]) -> Command {
    let mut command = command(&place("data"), out);
    command.args(arguments);
    command
}

#[track_caller]
fn succeed(command: Command) {
    programs::run(command).good();
}

/// The only error line of a run that fails with this status.
#[track_caller]
fn fail(command: Command, status: i32) -> String {
    let ran = programs::run(command);
    assert_eq!((ran.status, ran.errors().len()), (Some(status), 1), "{}", ran.err);
    ran.errors()[0].to_string()
}

/// Starts or resumes a run of `whole` with more arguments, and kills it at a moment that depends on `number`. Returns
/// whether the run was still running.
fn kill_once(whole: &Whole, out: &Path, more: &[&str], number: usize, moments: &mut Moments) -> bool {
    let mut run = begin_or_resume(whole, out, more);
    let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let temporary = out.join("checkpoint.bin.tmp");
    let hit = match number % 4 {
        // Early: before the first step, often before the first checkpoint.
        0 => {
            sleep(whole.time.mul_f64(0.15 * moments.next()));
            child.try_wait().unwrap().is_none()
        }
        // While a checkpoint is being written.
        1 | 2 => {
            let hit = wait_for(&mut child, LONG, || temporary.exists());
            sleep(Duration::from_micros((20_000.0 * moments.next()) as u64));
            hit && child.try_wait().unwrap().is_none()
        }
        // At any moment.
        _ => {
            sleep(whole.time.mul_f64(0.9 * moments.next()));
            child.try_wait().unwrap().is_none()
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    hit
}

fn begin_or_resume(whole: &Whole, out: &Path, more: &[&str]) -> Command {
    let mut run = command(&whole.place("data"), out);
    // A run that was killed before it wrote anything cannot be resumed.
    run.args(more).args(begun(out).then_some("--resume"));
    run
}

/// Kills a run so many times.
fn expect_no_change(whole: &Whole, more: &[&str], kills: usize) {
    let out = whole.place("killed");
    let mut moments = Moments(2024);
    let (mut hits, mut torn) = (0, 0);
    for number in 0..kills {
        hits += usize::from(kill_once(whole, &out, more, number, &mut moments));
        torn += usize::from(out.join("checkpoint.bin.tmp").exists());
        // Every file with its final name is complete.
        assert_sound(&out, &format!("after kill {number}"));
        // A finished run cannot be killed again: start a new one.
        if steps_done(&out) == Some(12) {
            assert_same_run(&whole.place("whole"), &out);
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(4 * hits >= 3 * kills, "only {hits} of {kills} kills met a running process");
    // Of few kills, all may miss the moment.
    assert!(kills < 20 || torn >= 1, "no kill met a save");
    succeed(begin_or_resume(whole, &out, more));
    assert_same_run(&whole.place("whole"), &out);
    assert_eq!(fs::read_dir(&out).unwrap().filter(|e| is_temporary(e.as_ref().unwrap())).count(), 0);
}

#[test]
fn kills_do_not_change_the_result() {
    expect_no_change(&WHOLE, &[], 20);
}

#[test]
fn kills_do_not_change_the_result_in_bf16() {
    expect_no_change(&IN_BF16, &BF16, 8);
    // And bf16 makes another result: the flag is heard.
    let [fp32, bf16] = [place("whole"), IN_BF16.place("whole")].map(|out| bytes(&out, "checkpoint.bin"));
    assert_eq!(fp32.len(), bf16.len());
    assert_ne!(fp32, bf16);
}

fn is_temporary(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().ends_with(".tmp")
}

#[test]
fn recipe_file_repeats_the_run() {
    let out = place("repeated");
    let recipe = place("whole").join("recipe.toml");
    let mut again = plain(&["--config", recipe.to_str().unwrap(), "--threads", "1", "--loader-threads", "3"]);
    again.arg("--out").arg(&out).current_dir("/");
    succeed(again);
    assert_same_run(&place("whole"), &out);
    assert_same_file(&place("whole"), &out, "recipe.toml");
}

/// Whether this process ignores the loss of its terminal, as under `nohup`: then so do the programs that it starts.
/// Read here and not asked of the program, which could be wrong about it.
fn hangup_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or("0");
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 << (Signal::HUP.as_raw() - 1) != 0
}

#[test]
fn signal_saves_the_run_and_prints_how_to_resume() {
    let signals = [Signal::TERM, Signal::INT, Signal::HUP];
    for which in signals.into_iter().filter(|which| *which != Signal::HUP || !hangup_is_ignored()) {
        let out = place(&format!("signal-{}", which.as_raw()));
        let mut child = command(&place("data"), &out).spawn().unwrap();
        assert!(wait_for(&mut child, LONG, || log_lines(&out) >= 3), "it ended before the signal");
        // Twice, because `timeout` signals the process and its group.
        signal(child.id() as i32, which);
        signal(child.id() as i32, which);
        let ran = ended(child);
        let said = ran.printed();
        assert_eq!(ran.status, Some(130), "{said}");
        assert_eq!(ran.err.matches("stopping: this step is finished and saved first").count(), 1, "{said}");
        assert!(said.contains("--resume") && said.contains(out.to_str().unwrap()), "{said}");
        let step = steps_done(&out).unwrap();
        assert!((3..12).contains(&step), "stopped after step {step}");
        // The checkpoint contains every logged step.
        let logged = timeless_log(&out).last().unwrap().step();
        assert_eq!(logged, step);
        // No other flags are needed.
        succeed(plain(&["--resume", "--out", out.to_str().unwrap()]));
        assert_same_run(&place("whole"), &out);
    }
}

/// `nohup` has a program ignore the loss of its terminal.
#[test]
fn signal_that_is_ignored_from_the_start_does_not_end_the_run() {
    let out = place("ignored");
    let train = command(&place("data"), &out);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]).arg(train.get_program()).args(train.get_args());
    let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    assert!(wait_for(&mut child, LONG, || log_lines(&out) >= 3), "it ended before the signal");
    signal(child.id() as i32, Signal::HUP);
    let ran = ended(child).good();
    assert!(ran.out.contains("finished after step 12 of 12"), "{}", ran.printed());
}

#[test]
fn max_steps_stops_early_and_keeps_the_schedule() {
    let out = place("steps");
    for (number, steps) in ["1", "5", "7"].into_iter().enumerate() {
        let resume: &[&str] = if number > 0 { &["--resume"] } else { &[] };
        succeed(run(&out, &[resume, &["--max-steps", steps]].concat()));
        assert_eq!(steps_done(&out), steps.parse().ok());
    }
    succeed(run(&out, &["--resume"]));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn full_disk_leaves_the_previous_checkpoint() {
    let out = place("full");
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
    assert_same_run(&place("whole"), &out);
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
    let line = fail(command(&place("data"), &out), 1);
    assert!(line.contains("--resume") && line.contains("--force"), "{line}");

    let other = dir.path().join("other");
    data::pack_grey(&other, 41, 13, 28, 1 << 20);
    let mut elsewhere = plain(&["--resume"]);
    elsewhere.arg("--data").arg(&other).arg("--out").arg(&out);
    let line = fail(elsewhere, 1);
    assert!(line.contains("other data"), "{line}");
    let mut altered = saved.clone();
    let middle = saved.len() / 3;
    altered[middle] ^= 4;
    fs::write(out.join("checkpoint.bin"), &altered).unwrap();
    assert!(fail(resume(), 1).contains("checksum"));
    fs::write(out.join("checkpoint.bin"), &saved[..middle]).unwrap();
    assert!(fail(resume(), 1).contains("truncated"));
    fs::remove_file(out.join("checkpoint.bin")).unwrap();
    assert!(fail(resume(), 1).contains("checkpoint.bin is missing"));
    fs::write(out.join("checkpoint.bin"), &saved).unwrap();

    // Another recipe: the message names every field that differs.
    let mut faster = plain(&["--resume", "--lr", "0.004", "--epochs", "3"]);
    faster.arg("--data").arg(place("data")).arg("--out").arg(&out);
    let line = fail(faster, 1);
    assert!(line.contains("lr is 0.004") && line.contains("epochs is 3"), "{line}");
    assert!(bytes(&out, "checkpoint.bin") == saved, "a refusal changes nothing");
    fs::write(out.join("mine.txt"), "x").unwrap();
    succeed(run(&out, &["--force"]));
    assert_same_run(&place("whole"), &out);
    assert!(out.join("mine.txt").exists(), "--force removes what a run makes, and nothing else");
}
