//! How ranks end: killed, stopped, asked to end, left behind.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use effnet::parallel::launch::ECHO;
use effnet::train::checkpoint;

use super::*;
use crate::train_support::*;

fn alive(pid: i32) -> bool {
    // One that has ended and was not waited for is a zombie, and no process any more.
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

/// All ranks of a launcher, once they are there; none if it ended before.
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

/// Waits until `ready` says so; false if the process ends before.
fn wait_for(child: &mut Child, ready: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(since.elapsed() < SOON, "nothing happens");
        sleep(Duration::from_millis(1));
    }
    true
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: a signal to a process that this test has started.
    unsafe { libc::kill(pid, signal) };
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

/// A small generator with a fixed seed: whom to kill, and when.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

/// Whoever is killed, and whenever: all end, somebody says who it was, and the run goes on as if nothing had been.
#[test]
fn twenty_ranks_killed_change_nothing() {
    let out = place("killed");
    let mut moments = Moments(7);
    let (mut hits, mut whom, mut named, mut number) = (0, [0; RANKS], 0, 0);
    // Only kills that met a running rank count.
    while hits < 20 {
        number += 1;
        assert!(number <= 60, "only {hits} of 60 kills met a running rank");
        let mut child = resumed(&out).spawn().unwrap();
        let Some(ranks) = wait_for_ranks(&mut child) else {
            let output = child.wait_with_output().unwrap();
            panic!("kill {number}: it ended by itself: {}", said(&output));
        };
        sleep(WHOLE.1.mul_f64(0.7 * moments.next()));
        let (rank, pid) = ranks[(moments.next() * RANKS as f64) as usize % RANKS];
        let hit = alive(pid) && child.try_wait().unwrap().is_none();
        signal(pid, libc::SIGKILL);
        let since = Instant::now();
        let output = child.wait_with_output().unwrap();
        wait_until_gone(&ranks);
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "kill {number} of rank {rank}: {:?}",
            since.elapsed()
        );
        if hit && !output.status.success() {
            (hits, whom[rank]) = (hits + 1, whom[rank] + 1);
            let lines = errors(&output);
            named += usize::from(lines.iter().any(|line| line.contains(&format!("rank {rank} "))));
            assert_eq!(lines.len(), 1, "kill {number} of rank {rank}: {}", said(&output));
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
    println!("{number} kills, by rank {whom:?}");
    assert!(whom.iter().all(|&kills| kills > 0), "no rank is spared: {whom:?}");
    assert_eq!(named, hits, "every kill is told with the rank's number");
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn ranks_end_with_their_launcher() {
    let out = place("launcher-killed");
    let mut child = launched(&place("data"), &out).spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&ranks);
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn a_signal_to_any_one_stops_all_and_saves() {
    for to_launcher in [true, false] {
        let out = place(&format!("signal-{to_launcher}"));
        let mut child = launched(&place("data"), &out).spawn().unwrap();
        let ranks = wait_for_ranks(&mut child).unwrap();
        assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
        let third = ranks.iter().find(|(rank, _)| *rank == 2).unwrap().1;
        signal(if to_launcher { child.id() as i32 } else { third }, libc::SIGTERM);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        assert!(
            said(&output).contains("--resume") && said(&output).contains("--ranks 4"),
            "{}",
            said(&output)
        );
        let step = steps_done(&out).unwrap();
        assert!((2..12).contains(&step), "stopped after step {step}");
        assert_eq!(timeless_log(&out).last().unwrap().step(), step, "every step that was logged is saved");
        wait_until_gone(&ranks);
        succeed(resumed(&out));
        assert_same_run(&place("whole"), &out);
    }
}

/// A service manager signals all processes of a job at once, and so the launcher's signal is a second one.
#[test]
fn a_signal_that_comes_twice_is_one() {
    let out = place("twice");
    let mut child = launched(&place("data"), &out).spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    ranks.iter().for_each(|(_, pid)| signal(*pid, libc::SIGTERM));
    signal(child.id() as i32, libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("interrupted after step"), "{}", said(&output));
    assert!(steps_done(&out).unwrap() >= 2);
    wait_until_gone(&ranks);
}

/// Whoever asks again, later, does not want to wait.
#[test]
fn a_second_signal_ends_a_rank_at_once() {
    let out = place("again-and-again");
    let mut child = launched(&place("data"), &out).spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    let pid = |wanted: usize| ranks.iter().find(|(rank, _)| *rank == wanted).unwrap().1;
    // So that rank 0 cannot end its step.
    signal(pid(2), libc::SIGSTOP);
    signal(pid(0), libc::SIGTERM);
    sleep(ECHO + Duration::from_millis(500));
    assert!(alive(pid(0)), "it has not waited for the others");
    signal(pid(0), libc::SIGTERM);
    assert!(wait_for(&mut child, || !alive(pid(0))));
    signal(pid(2), libc::SIGKILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    wait_until_gone(&ranks);
}

/// Nothing has begun before all are there, so one signal to any of them ends all that wait.
#[test]
fn a_signal_ends_ranks_that_wait_for_others() {
    let out = place("waiting");
    for (there, asked) in [(&[0][..], 0), (&[1], 1), (&[0, 1], 1), (&[0, 1], 0)] {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut ranks: Vec<(usize, Child)> = Vec::new();
        for &rank in there {
            let mut command = program(&place("data"), &out);
            command.envs([
                ("RANK", rank.to_string()),
                ("WORLD_SIZE", "4".into()),
                ("LOCAL_RANK", rank.to_string()),
                ("LOCAL_WORLD_SIZE", "4".into()),
                ("MASTER_ADDR", "127.0.0.1".into()),
                ("MASTER_PORT", port.to_string()),
            ]);
            let mut child = command.spawn().unwrap();
            let pid = child.id() as i32;
            assert!(wait_for(&mut child, || handles_sigterm(pid)), "rank {rank} ended by itself");
            ranks.push((rank, child));
        }
        // So that they have met.
        sleep(Duration::from_millis(500));
        let since = Instant::now();
        let pid = ranks.iter().find(|(rank, _)| *rank == asked).unwrap().1.id();
        signal(pid as i32, libc::SIGTERM);
        for (rank, child) in ranks {
            let output = child.wait_with_output().unwrap();
            let text = said(&output);
            assert_eq!(output.status.code(), Some(130), "{there:?}, rank {rank}: {text}");
            assert_eq!(text.contains("interrupted"), rank == 0, "{there:?}, rank {rank}: {text}");
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{there:?}: {:?}", since.elapsed());
        assert!(!out.exists());
    }
}

#[test]
fn a_rank_that_stands_still_is_named_and_ends_all() {
    let out = place("still");
    let mut command = launched(&place("data"), &out);
    command.args(["--watchdog", "3"]);
    let mut child = command.spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    let since = Instant::now();
    signal(ranks.iter().find(|(rank, _)| *rank == 2).unwrap().1, libc::SIGSTOP);
    let output = child.wait_with_output().unwrap();
    wait_until_gone(&ranks);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let lines = errors(&output);
    let named = lines.len() == 1 && lines[0].contains("rank 2 ") && lines[0].contains("3 s");
    assert!(named && lines[0].contains("step"), "{}", said(&output));
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

/// Whether a process has its own way with the signal.
fn handles_sigterm(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> 14 & 1 == 1)
}
