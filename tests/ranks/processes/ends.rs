//! How ranks end: killed, suspended, asked to end, without their launcher.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use effnet::parallel::launch::ECHO;
use effnet::train::checkpoint;
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::train_support::*;

fn alive(pid: i32) -> bool {
    // A zombie has ended, and only waits to be reaped.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until_gone(ranks: &[(usize, i32)]) {
    let since = Instant::now();
    while ranks.iter().any(|(_, pid)| alive(*pid)) {
        assert!(since.elapsed() < SOON, "orphans: {ranks:?}");
        sleep(Duration::from_millis(5));
    }
}

/// The processes that a launcher has started, by rank.
fn ranks_of(launcher: u32) -> Vec<(usize, i32)> {
    let children =
        fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
    let rank = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut variables = environment.split(|&byte| byte == 0);
        let value = variables.find_map(|variable| variable.strip_prefix(b"RANK="))?;
        Some((std::str::from_utf8(value).ok()?.parse().ok()?, pid))
    };
    children.split_whitespace().filter_map(|pid| rank(pid.parse().ok()?)).collect()
}

/// All ranks of a launcher, once they have started. None if it ends before.
fn wait_for_ranks(child: &mut Child) -> Option<Vec<(usize, i32)>> {
    let since = Instant::now();
    loop {
        let ranks = ranks_of(child.id());
        if ranks.len() == RANKS {
            return Some(ranks);
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(since.elapsed() < SOON, "ranks do not start");
        sleep(Duration::from_millis(1));
    }
}

/// Waits until `ready` is true. False if the process ends before.
fn wait_for(child: &mut Child, ready: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(since.elapsed() < SOON, "waited too long");
        sleep(Duration::from_millis(1));
    }
    true
}

/// Signals a process, which may have ended.
fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Starts a launcher, and waits until its run has made two steps. Returns it with its ranks.
fn running(mut command: Command, out: &Path) -> (Child, Vec<(usize, i32)>) {
    let mut child = command.spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(out) >= 2), "the run ended by itself");
    (child, ranks)
}

fn pid_of(ranks: &[(usize, i32)], wanted: usize) -> i32 {
    ranks.iter().find(|(rank, _)| *rank == wanted).unwrap().1
}

fn log_lines(out: &Path) -> usize {
    fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count())
}

fn steps_done(out: &Path) -> Option<u64> {
    checkpoint::read(&out.join("checkpoint.bin")).ok().map(|c| c.metadata.step)
}

fn resumed(out: &Path) -> Command {
    let mut command = launched(&place("data"), out);
    if begun(out) {
        command.arg("--resume");
    }
    command
}

/// Random numbers from a fixed seed: which rank to kill, and when.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// Whichever rank is killed, and whenever: all ranks end, the error names the rank, and the resumed run has the same
/// result.
#[test]
fn killed_ranks_do_not_change_the_run() {
    let out = place("killed");
    let mut moments = Moments(7);
    let mut number = 0;
    let mut hits = 0;
    let mut hits_by_rank = [0; RANKS];
    let mut named = 0;
    // Only kills that met a running rank count.
    while hits < 20 {
        number += 1;
        assert!(number <= 60, "only {hits} of 60 kills met a running rank");
        let mut child = resumed(&out).spawn().unwrap();
        let Some(ranks) = wait_for_ranks(&mut child) else {
            let output = child.wait_with_output().unwrap();
            panic!("kill {number}: the run ended by itself: {}", printed(&output));
        };
        sleep(WHOLE.1.mul_f64(0.7 * moments.next()));
        let (rank, pid) = ranks[(moments.next() * RANKS as f64) as usize % RANKS];
        let hit = alive(pid) && child.try_wait().unwrap().is_none();
        signal(pid, Signal::KILL);
        let since = Instant::now();
        let output = child.wait_with_output().unwrap();
        wait_until_gone(&ranks);
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "kill {number} of rank {rank}: {:?}",
            since.elapsed()
        );
        if hit && !output.status.success() {
            hits += 1;
            hits_by_rank[rank] += 1;
            let lines = errors(&output);
            named += usize::from(lines.iter().any(|line| line.contains(&format!("rank {rank} "))));
            assert_eq!(lines.len(), 1, "kill {number} of rank {rank}: {}", printed(&output));
        }
        for name in ["checkpoint.bin", "best.bin"] {
            if out.join(name).exists() {
                checkpoint::read(&out.join(name)).unwrap_or_else(|e| panic!("after kill {number}: {e}"));
            }
        }
        if steps_done(&out) == Some(12) && output.status.success() {
            assert_same_run(&place("whole"), &out);
            fs::remove_dir_all(&out).unwrap();
        }
    }
    println!("{number} kills, by rank {hits_by_rank:?}");
    assert!(hits_by_rank.iter().all(|&hits| hits > 0), "{hits_by_rank:?}");
    assert_eq!(named, hits, "every error names the killed rank");
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn ranks_end_with_their_launcher() {
    let out = place("launcher-killed");
    let (mut child, ranks) = running(launched(&place("data"), &out), &out);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&ranks);
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn signal_to_the_launcher_or_a_rank_stops_all_and_saves() {
    for to_launcher in [true, false] {
        let out = place(&format!("signal-{to_launcher}"));
        let (child, ranks) = running(launched(&place("data"), &out), &out);
        signal(if to_launcher { child.id() as i32 } else { pid_of(&ranks, 2) }, Signal::TERM);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", printed(&output));
        assert!(
            printed(&output).contains("--resume") && printed(&output).contains("--ranks 4"),
            "{}",
            printed(&output)
        );
        let step = steps_done(&out).unwrap();
        assert!((2..12).contains(&step), "stopped after step {step}");
        assert_eq!(timeless_log(&out).last().unwrap().step(), step, "every logged step is saved");
        wait_until_gone(&ranks);
        succeed(resumed(&out));
        assert_same_run(&place("whole"), &out);
    }
}

/// A service manager signals all processes of a job at once, so ranks get a second signal from the launcher.
#[test]
fn signal_repeated_counts_once() {
    let out = place("twice");
    let (child, ranks) = running(launched(&place("data"), &out), &out);
    ranks.iter().for_each(|(_, pid)| signal(*pid, Signal::TERM));
    signal(child.id() as i32, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", printed(&output));
    assert!(printed(&output).contains("interrupted after step"), "{}", printed(&output));
    assert!(steps_done(&out).unwrap() >= 2);
    wait_until_gone(&ranks);
}

#[test]
fn signal_repeated_later_ends_a_rank_at_once() {
    let out = place("again-and-again");
    let (mut child, ranks) = running(launched(&place("data"), &out), &out);
    let [first, third] = [0, 2].map(|rank| pid_of(&ranks, rank));
    // So that rank 0 cannot finish its step.
    signal(third, Signal::STOP);
    signal(first, Signal::TERM);
    sleep(ECHO + Duration::from_millis(500));
    assert!(alive(first), "it has not waited for the others");
    signal(first, Signal::TERM);
    assert!(wait_for(&mut child, || !alive(first)));
    signal(third, Signal::KILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    wait_until_gone(&ranks);
}

/// Training has not begun before all ranks have joined, so a signal to one of them ends all that wait.
#[test]
fn signal_ends_all_ranks_that_wait_for_others() {
    let out = place("waiting");
    for (there, asked) in [(&[0][..], 0), (&[1], 1), (&[0, 1], 1), (&[0, 1], 0)] {
        let port = free_port();
        let mut ranks: Vec<(usize, Child)> = Vec::new();
        for &rank in there {
            let mut child = given(&place("data"), &out, rank, 4, port).spawn().unwrap();
            let pid = child.id() as i32;
            assert!(wait_for(&mut child, || handles_sigterm(pid)), "rank {rank} ended by itself");
            ranks.push((rank, child));
        }
        // Time to connect.
        sleep(Duration::from_millis(500));
        let since = Instant::now();
        let pid = ranks.iter().find(|(rank, _)| *rank == asked).unwrap().1.id();
        signal(pid as i32, Signal::TERM);
        for (rank, child) in ranks {
            let output = child.wait_with_output().unwrap();
            let text = printed(&output);
            assert_eq!(output.status.code(), Some(130), "{there:?}, rank {rank}: {text}");
            assert_eq!(text.contains("interrupted"), rank == 0, "{there:?}, rank {rank}: {text}");
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{there:?}: {:?}", since.elapsed());
        assert!(!out.exists());
    }
}

#[test]
fn suspended_rank_is_named_and_ends_all() {
    let out = place("suspended");
    let mut command = launched(&place("data"), &out);
    command.args(["--watchdog", "3"]);
    let (child, ranks) = running(command, &out);
    let since = Instant::now();
    signal(pid_of(&ranks, 2), Signal::STOP);
    let output = child.wait_with_output().unwrap();
    wait_until_gone(&ranks);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let lines = errors(&output);
    let named = lines.len() == 1 && lines[0].contains("rank 2 ") && lines[0].contains("3 s");
    assert!(named && lines[0].contains("step"), "{}", printed(&output));
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

/// A library whose destructor hangs, as a destructor of a GPU's driver may.
fn hanging_library() -> PathBuf {
    let source = place("hang.cpp");
    let text = r#"
        #include <cstdio>
        #include <unistd.h>
        static void __attribute__((destructor)) hang() { fputs("hanging\n", stderr); sleep(600); }
    "#;
    fs::write(&source, text).unwrap();
    let library = place("hang.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let built = Command::new(compiler).args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.unwrap().success());
    library
}

/// The process prints its error and then hangs while it exits, so that the group must end it.
#[test]
fn error_is_printed_once_by_a_rank_that_hangs_at_exit() {
    let out = place("hangs");
    let port = free_port();
    let [mut first, mut second] = [0, 1].map(|rank| {
        let mut command = given(&place("data"), &out, rank, 2, port);
        if rank == 0 {
            command.env("LD_PRELOAD", hanging_library());
        }
        command.spawn().unwrap()
    });
    assert!(wait_for(&mut first, || log_lines(&out) >= 2), "the run ended by itself");
    second.kill().unwrap();
    second.wait().unwrap();
    let output = first.wait_with_output().unwrap();
    assert!(printed(&output).contains("hanging"), "{}", printed(&output));
    let lines = errors(&output);
    assert!(lines.len() == 1 && lines[0].contains("rank 1 "), "{}", printed(&output));
}

/// Whether a process has a handler for SIGTERM.
fn handles_sigterm(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> 14 & 1 == 1)
}
