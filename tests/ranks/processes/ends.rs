//! How ranks end: killed, suspended, asked to end, without their launcher.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::*;
use crate::common::programs::{Moments, runs, try_signal, until, wait_for};
use crate::common::stand_in::compile;
use effnet::parallel::launch::ECHO;
use rustix::process::Signal;

fn wait_until_gone(ranks: &[(usize, i32)]) {
    until(&format!("no process of {ranks:?} is left"), SOON, || ranks.iter().all(|(_, pid)| !runs(*pid)));
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
    let launcher = child.id();
    wait_for(child, SOON, || ranks_of(launcher).len() == RANKS).then(|| ranks_of(launcher))
}

/// Starts a launcher, and waits until its run has made two steps. Returns it with its ranks.
fn running(mut command: Command, out: &Path) -> (Child, Vec<(usize, i32)>) {
    let mut child = command.spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, SOON, || log_lines(out) >= 2), "the run ended by itself");
    (child, ranks)
}

fn pid_of(ranks: &[(usize, i32)], wanted: usize) -> i32 {
    ranks.iter().find(|(rank, _)| *rank == wanted).unwrap().1
}

fn resumed(out: &Path) -> Command {
    let mut command = launched(&place("data"), out);
    if begun(out) {
        command.arg("--resume");
    }
    command
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
            let ran = ended(child);
            panic!("kill {number}: the run ended by itself: {}", ran.printed());
        };
        sleep(WHOLE.time.mul_f64(0.7 * moments.next()));
        let (rank, pid) = ranks[(moments.next() * RANKS as f64) as usize % RANKS];
        let hit = runs(pid) && child.try_wait().unwrap().is_none();
        try_signal(pid, Signal::KILL);
        let since = Instant::now();
        let ran = ended(child);
        wait_until_gone(&ranks);
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "kill {number} of rank {rank}: {:?}",
            since.elapsed()
        );
        if hit && ran.status != Some(0) {
            hits += 1;
            hits_by_rank[rank] += 1;
            let lines = ran.errors();
            named += usize::from(lines.iter().any(|line| line.contains(&format!("rank {rank} "))));
            assert_eq!(lines.len(), 1, "kill {number} of rank {rank}: {}", ran.printed());
        }
        assert_sound(&out, &format!("after kill {number}"));
        if steps_done(&out) == Some(12) && ran.status == Some(0) {
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
        try_signal(if to_launcher { child.id() as i32 } else { pid_of(&ranks, 2) }, Signal::TERM);
        let ran = ended(child);
        assert_eq!(ran.status, Some(130), "{}", ran.printed());
        assert!(
            ran.printed().contains("--resume") && ran.printed().contains("--ranks 4"),
            "{}",
            ran.printed()
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
    ranks.iter().for_each(|(_, pid)| try_signal(*pid, Signal::TERM));
    try_signal(child.id() as i32, Signal::TERM);
    let ran = ended(child);
    assert_eq!(ran.status, Some(130), "{}", ran.printed());
    assert!(ran.printed().contains("interrupted after step"), "{}", ran.printed());
    assert!(steps_done(&out).unwrap() >= 2);
    wait_until_gone(&ranks);
}

#[test]
fn signal_repeated_later_ends_a_rank_at_once() {
    let out = place("again-and-again");
    let (mut child, ranks) = running(launched(&place("data"), &out), &out);
    let [first, third] = [0, 2].map(|rank| pid_of(&ranks, rank));
    // So that rank 0 cannot finish its step.
    try_signal(third, Signal::STOP);
    try_signal(first, Signal::TERM);
    sleep(ECHO + Duration::from_millis(500));
    assert!(runs(first), "it has not waited for the others");
    try_signal(first, Signal::TERM);
    assert!(wait_for(&mut child, SOON, || !runs(first)));
    try_signal(third, Signal::KILL);
    let ran = ended(child);
    assert_eq!(ran.status, Some(1), "{}", ran.printed());
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
            assert!(wait_for(&mut child, SOON, || handles_sigterm(pid)), "rank {rank} ended by itself");
            ranks.push((rank, child));
        }
        // Time to connect.
        sleep(Duration::from_millis(500));
        let since = Instant::now();
        let pid = ranks.iter().find(|(rank, _)| *rank == asked).unwrap().1.id();
        try_signal(pid as i32, Signal::TERM);
        for (rank, child) in ranks {
            let ran = ended(child);
            let text = ran.printed();
            assert_eq!(ran.status, Some(130), "{there:?}, rank {rank}: {text}");
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
    try_signal(pid_of(&ranks, 2), Signal::STOP);
    let ran = ended(child);
    wait_until_gone(&ranks);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let lines = ran.errors();
    let named = lines.len() == 1 && lines[0].contains("rank 2 ") && lines[0].contains("3 s");
    assert!(named && lines[0].contains("step"), "{}", ran.printed());
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

/// A library whose destructor hangs, as a destructor of a GPU's driver may.
fn hanging_library() -> PathBuf {
    let [source, library] = ["hang.cpp", "hang.so"].map(place);
    let text = r#"
        #include <cstdio>
        #include <unistd.h>
        static void __attribute__((destructor)) hang() { fputs("hanging\n", stderr); sleep(600); }
    "#;
    fs::write(&source, text).unwrap();
    compile(&source, &library);
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
    assert!(wait_for(&mut first, SOON, || log_lines(&out) >= 2), "the run ended by itself");
    second.kill().unwrap();
    second.wait().unwrap();
    let ran = ended(first);
    assert!(ran.printed().contains("hanging"), "{}", ran.printed());
    let lines = ran.errors();
    assert!(lines.len() == 1 && lines[0].contains("rank 1 "), "{}", ran.printed());
}

/// Whether a process has a handler for SIGTERM.
fn handles_sigterm(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> 14 & 1 == 1)
}
