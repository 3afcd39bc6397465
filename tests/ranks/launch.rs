//! The launcher: the output of its ranks, how they end, and that none is left.
//!
//! The ranks are shell scripts. The launcher is this test program, started again, because it handles signals and may be
//! killed.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::programs::{self, Ran, runs, signal, state};
use effnet::parallel::Address;
use effnet::parallel::launch::{ECHO, Launch, Program};
use rustix::process::Signal;

const SCRIPT: &str = "EFFNET_TEST_SCRIPT";
const RANKS: &str = "EFFNET_TEST_RANKS";
const PATIENCE: &str = "EFFNET_TEST_PATIENCE";
/// Much more than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Not a test: the process that the tests start.
#[test]
fn launcher_process() {
    let Ok(script) = std::env::var(SCRIPT) else { return };
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let launch = Launch { ranks: number(RANKS).unwrap() as usize, nodes: 1, node_rank: 0, address: None };
    let program = Program {
        path: "/bin/sh".into(),
        name: "sh".into(),
        arguments: vec!["-c".into(), script.into()],
        patience: Duration::from_secs(number(PATIENCE).unwrap()),
    };
    let status = launch.run(&program).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        99
    });
    std::process::exit(status.into());
}

fn launcher(dir: &Path, ranks: usize, patience: u64, script: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "launch::launcher_process", "--nocapture", "--test-threads=1"]).current_dir(dir);
    command.env(SCRIPT, script).env(RANKS, ranks.to_string()).env(PATIENCE, patience.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for the end of a launcher, and sorts the lines of its standard error.
fn ended(child: Child) -> (Option<i32>, Vec<String>, Ran) {
    let ran = programs::ended(child);
    let mut lines: Vec<String> = ran.err.lines().map(str::to_owned).collect();
    lines.sort();
    (ran.status, lines, ran)
}

/// Runs ranks to their end. After a failure the other ranks have one second.
fn run(ranks: usize, script: &str) -> (Option<i32>, Vec<String>, Ran) {
    let dir = tempfile::tempdir().unwrap();
    ended(launcher(dir.path(), ranks, 1, script).spawn().unwrap())
}

fn until(what: &str, ready: impl Fn() -> bool) {
    programs::until(what, LONG, ready);
}

/// The processes that have written their ids into the directory.
fn pids(dir: &Path) -> Vec<i32> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
    files.filter_map(|path| fs::read_to_string(path).unwrap().trim().parse().ok()).collect()
}

/// Starts ranks that write their ids, and waits until all have.
fn started(dir: &Path, ranks: usize, patience: u64, script: &str) -> (Child, Vec<i32>) {
    let script = format!("{script}\n");
    let child = launcher(dir, ranks, patience, &script).spawn().unwrap();
    until("all ranks run", || pids(dir).len() == ranks);
    (child, pids(dir))
}

/// Says that a script is ready. Its id appears in one piece.
const READY: &str = "echo $$ > $RANK.new; mv $RANK.new $RANK.pid;";

fn pid_of(dir: &Path, rank: usize) -> i32 {
    fs::read_to_string(dir.join(format!("{rank}.pid"))).unwrap().trim().parse().unwrap()
}

#[test]
fn output_of_rank_0_is_unchanged_and_that_of_others_numbered() {
    let (status, lines, Ran { out, .. }) = run(3, "echo out of $RANK; echo err of $RANK >&2; cat");
    assert_eq!(status, Some(0));
    assert!(out.contains("out of 0\n") && !out.contains("out of 1"), "{out}");
    let expected =
        ["err of 0", "rank 1: err of 1", "rank 1: out of 1", "rank 2: err of 2", "rank 2: out of 2"];
    assert_eq!(lines, expected);
}

#[test]
fn output_that_is_not_utf_8_is_printed() {
    let (status, lines, _) = run(2, r"test $RANK = 0 || printf 'a\377b\nlast'");
    assert_eq!((status, lines), (Some(0), vec!["rank 1: a\u{fffd}b".into(), "rank 1: last".into()]));
}

#[test]
fn ranks_get_their_place() {
    let (status, lines, _) = run(
        2,
        "test $RANK = 0 && exit; echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $EFFNET_LAUNCHED; \
         echo ${EFFNET_RENDEZVOUS_FD-no socket}; test $MASTER_PORT -gt 0",
    );
    assert_eq!(
        (status, lines),
        (Some(0), vec!["rank 1: 1 2 1 2 127.0.0.1 1".into(), "rank 1: no socket".into()])
    );
}

#[test]
fn listening_socket_is_inherited_by_rank_0_alone() {
    // The table of listening sockets has the inode of the socket with that port. The kernel may list a socket twice if the
    // table changes while it is read.
    let (status, lines, _) = run(
        2,
        r"has() { ls -l /proc/$$/fd | grep -q 'socket:\['$inode'\]'; }
          port=$(printf '%04X' $MASTER_PORT)
          inode=$(awk -v at=0100007F:$port '$2 == at && $4 == q0A { print $10; exit }' q0A=0A /proc/net/tcp)
          test -n $inode || exit 3
          if test $RANK = 0; then
              readlink /proc/$$/fd/$EFFNET_RENDEZVOUS_FD | grep -q '\['$inode'\]' || exit 4
          else
              ! has || exit 5
          fi",
    );
    assert_eq!((status, lines), (Some(0), vec![]));
}

#[test]
fn status_is_one_for_all_ranks() {
    for (script, status) in [
        ("exit 0", 0),
        ("exit 130", 130),
        ("test $RANK = 0", 1),
        ("exit $((2 - RANK))", 2),
        ("test $RANK = 0 && kill -9 $$", 1),
    ] {
        assert_eq!(run(2, script).0, Some(status), "{script}");
    }
}

#[test]
fn error_of_several_ranks_is_printed_once() {
    let (status, lines, _) = run(4, "test $RANK = 0 || { echo 'error: no such thing' >&2; exit 2; }");
    assert_eq!((status, lines.len()), (Some(2), 1));
    assert!(lines[0].ends_with(": error: no such thing"), "{lines:?}");
}

#[test]
fn error_is_the_launcher_s_if_a_signal_ends_rank_0() {
    let (status, lines, _) = run(2, "test $RANK = 0 && kill -9 $$; exit 1");
    let line =
        "error: rank 0 was ended by signal 9 (SIGKILL); the last checkpoint is intact: go on with --resume";
    assert_eq!((status, lines), (Some(1), vec![line.into()]));
    // Rank 0 itself reports the end of another rank.
    let (status, lines, _) = run(2, "test $RANK = 1 && kill -9 $$; exit 1");
    assert_eq!((status, lines), (Some(1), vec![]));
}

#[test]
fn missing_program_is_named() {
    let launch = Launch { ranks: 2, nodes: 1, node_rank: 0, address: Some(Address::new("127.0.0.1", 9)) };
    let patience = Duration::from_secs(1);
    let program = Program { path: "/no/such".into(), name: "x".into(), arguments: vec![], patience };
    let error = launch.run(&program).unwrap_err().to_string();
    assert!(error.contains("rank 0: /no/such does not start"), "{error}");
}

#[test]
fn failed_rank_gives_others_time_then_sigterm_then_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    // Rank 0 ends on SIGTERM, rank 2 only on SIGKILL. The processes that they start are in their groups.
    let script = format!(
        "case $RANK in
            0) trap 'echo asked > asked; exit 1' TERM;;
            1) {READY} while ! test -e go; do sleep 0.05; done; exit 7;;
            2) trap '' TERM;;
         esac
         sleep 1000 & echo $! > $RANK.sleep; {READY} while true; do wait; sleep 0.05; done"
    );
    let (child, ranks) = started(dir.path(), 3, 1, &script);
    let sleeper =
        |rank| fs::read_to_string(dir.path().join(format!("{rank}.sleep"))).unwrap().trim().parse().unwrap();
    let sleepers: [i32; 2] = [sleeper(0), sleeper(2)];
    let since = Instant::now();
    fs::write(dir.path().join("go"), "").unwrap();
    let (status, lines, _) = ended(child);
    assert!(since.elapsed() >= Duration::from_secs(2), "the ranks had no time");
    assert_eq!(status, Some(1), "{lines:?}");
    assert!(dir.path().join("asked").exists());
    // SIGKILL to the group may take a moment to end the processes that the ranks have started.
    until("no process is left", || ranks.iter().chain(&sleepers).all(|&pid| !runs(pid)));
}

#[test]
fn error_is_the_launcher_s_if_it_stops_rank_0() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        format!("trap '' TERM; test $RANK = 1 && kill -9 $$; {READY} while true; do sleep 0.05; done");
    let (status, lines, _) = ended(launcher(dir.path(), 2, 1, &script).spawn().unwrap());
    let line = "error: rank 1 was ended by signal 9 (SIGKILL), and rank 0 had to be stopped; the last checkpoint is \
        intact: go on with --resume";
    assert_eq!((status, lines), (Some(1), vec![line.into()]));
}

#[test]
fn sigterm_and_sigint_are_passed_on_once() {
    for which in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        // A second signal would be counted too. A rank that saves slowly is not interrupted.
        let script = format!(
            "trap 'echo >> $RANK.terms' TERM; {READY} while ! test -e $RANK.terms; do sleep 0.05; done; \
             test $RANK = 1 && sleep 3; exit 130"
        );
        let (child, ranks) = started(dir.path(), 3, 1, &script);
        // Twice, as `timeout` signals the process and its group.
        signal(child.id() as i32, which);
        signal(child.id() as i32, which);
        let (status, lines, _) = ended(child);
        assert_eq!((status, lines), (Some(130), vec![]));
        for rank in 0..3 {
            assert_eq!(fs::read_to_string(dir.path().join(format!("{rank}.terms"))).unwrap(), "\n", "{rank}");
        }
        assert!(ranks.iter().all(|&pid| !runs(pid)));
    }
}

#[test]
fn signal_repeated_later_kills_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("trap 'echo >> $RANK.terms' TERM; {READY} while true; do sleep 0.05; done");
    let (child, ranks) = started(dir.path(), 2, 1000, &script);
    signal(child.id() as i32, Signal::INT);
    until("the first signal has arrived", || {
        (0..2).all(|rank| dir.path().join(format!("{rank}.terms")).exists())
    });
    sleep(ECHO + Duration::from_millis(200));
    signal(child.id() as i32, Signal::INT);
    let (status, lines, _) = ended(child);
    assert_eq!((status, lines), (Some(130), vec![]));
    assert!(ranks.iter().all(|&pid| !runs(pid)));
}

#[test]
fn killed_launcher_leaves_no_rank() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, ranks) = started(dir.path(), 3, 1000, &format!("{READY} exec sleep 1000"));
    signal(child.id() as i32, Signal::KILL);
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    until("the ranks are gone", || ranks.iter().all(|&pid| !runs(pid)));
}

#[test]
fn killed_rank_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    // Ranks learn of it by themselves, here from a file.
    let script = format!("{READY} while ! test -e gone; do sleep 0.05; done; exit 1");
    let (child, ranks) = started(dir.path(), 3, 1000, &script);
    signal(pid_of(dir.path(), 2), Signal::KILL);
    fs::write(dir.path().join("gone"), "").unwrap();
    let (status, lines, _) = ended(child);
    assert_eq!((status, lines), (Some(1), vec![]));
    assert!(ranks.iter().all(|&pid| !runs(pid)));
}

#[test]
fn ranks_are_suspended_with_the_launcher() {
    let dir = tempfile::tempdir().unwrap();
    // A shell that is starting a program waits for it without being stopped, so this one only runs what is built in.
    let (child, ranks) = started(dir.path(), 2, 1000, &format!("{READY} while ! test -e go; do :; done"));
    let launcher = child.id() as i32;
    signal(launcher, Signal::TSTP);
    until("all are suspended", || ranks.iter().chain([&launcher]).all(|&pid| state(pid) == Some('T')));
    signal(launcher, Signal::CONT);
    until("all continue", || ranks.iter().chain([&launcher]).all(|&pid| state(pid) != Some('T')));
    fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(ended(child).0, Some(0));
}
