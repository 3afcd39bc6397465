//! Ranks started and watched: what they say, how they end, and that none is left.
//!
//! The ranks are shell scripts. The launcher is this test program itself, started again, since it takes over signals
//! and may be killed.
#![cfg(target_os = "linux")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use effnet::parallel::launch::{ECHO, Launch, Program};
use libc::{SIGINT, SIGKILL, SIGTERM};

const SCRIPT: &str = "EFFNET_TEST_SCRIPT";
const RANKS: &str = "EFFNET_TEST_RANKS";
const PATIENCE: &str = "EFFNET_TEST_PATIENCE";
/// Far more than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// Not a test: what the tests start.
#[test]
fn be_the_launcher() {
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
    command.args(["--exact", "launch::be_the_launcher", "--nocapture", "--test-threads=1"]).current_dir(dir);
    command.env(SCRIPT, script).env(RANKS, ranks.to_string()).env(PATIENCE, patience.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Seen {
    status: Option<i32>,
    out: String,
    err: Vec<String>,
}

fn seen(output: Output) -> Seen {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut err: Vec<String> = text(&output.stderr).lines().map(str::to_owned).collect();
    err.sort();
    Seen { status: output.status.code(), out: text(&output.stdout), err }
}

/// Runs ranks to their end; a rank that fails leaves the others a second.
fn run(ranks: usize, script: &str) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    seen(launcher(dir.path(), ranks, 1, script).output().unwrap())
}

#[track_caller]
fn until(what: &str, ready: impl Fn() -> bool) {
    let since = Instant::now();
    while !ready() {
        assert!(since.elapsed() < LONG, "waited too long until {what}");
        sleep(Duration::from_millis(20));
    }
}

/// The processes that have written their numbers into the directory.
fn pids(dir: &Path) -> Vec<i32> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
    files.filter_map(|path| fs::read_to_string(path).unwrap().trim().parse().ok()).collect()
}

/// Whether a process runs; one that ended and was not yet reaped does not.
fn lives(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.chars().next());
    !matches!(state, Some(Some('Z' | 'X')))
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: sends a signal to a process that the test has started.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Starts ranks that write their numbers, and waits until all have.
fn started(dir: &Path, ranks: usize, patience: u64, script: &str) -> (Child, Vec<i32>) {
    let script = format!("{script}\n");
    let child = launcher(dir, ranks, patience, &script).spawn().unwrap();
    until("all ranks run", || pids(dir).len() == ranks);
    (child, pids(dir))
}

/// The last line of a script that is ready: its number appears whole, or not at all.
const READY: &str = "echo $$ > $RANK.new; mv $RANK.new $RANK.pid;";

fn pid_of(dir: &Path, rank: usize) -> i32 {
    fs::read_to_string(dir.join(format!("{rank}.pid"))).unwrap().trim().parse().unwrap()
}

#[test]
fn rank_0_has_the_terminal_and_the_others_have_names() {
    let seen = run(3, "echo out of $RANK; echo err of $RANK >&2; cat");
    assert_eq!(seen.status, Some(0));
    assert!(seen.out.contains("out of 0\n") && !seen.out.contains("out of 1"), "{}", seen.out);
    let expected =
        ["err of 0", "rank 1: err of 1", "rank 1: out of 1", "rank 2: err of 2", "rank 2: out of 2"];
    assert_eq!(seen.err, expected);
}

#[test]
fn text_that_is_no_utf_8_comes_through() {
    let seen = run(2, r"test $RANK = 0 || printf 'a\377b\nlast'");
    assert_eq!((seen.status, seen.err), (Some(0), vec!["rank 1: a\u{fffd}b".into(), "rank 1: last".into()]));
}

#[test]
fn ranks_know_their_place() {
    let seen = run(
        2,
        "test $RANK = 0 && exit; echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $EFFNET_LAUNCHED; \
         echo ${EFFNET_RENDEZVOUS_FD-no socket}; test $MASTER_PORT -gt 0",
    );
    assert_eq!(
        (seen.status, seen.err),
        (Some(0), vec!["rank 1: 1 2 1 2 127.0.0.1 1".into(), "rank 1: no socket".into()])
    );
}

#[test]
fn rank_0_inherits_the_listening_socket_and_nobody_else() {
    // The socket's inode, as the table of listening sockets knows it, by its port.
    let seen = run(
        2,
        r"has() { ls -l /proc/$$/fd | grep -q 'socket:\['$inode'\]'; }
          port=$(printf '%04X' $MASTER_PORT)
          inode=$(awk -v at=0100007F:$port '$2 == at && $4 == q0A { print $10 }' q0A=0A /proc/net/tcp)
          test -n $inode || exit 3
          if test $RANK = 0; then
              readlink /proc/$$/fd/$EFFNET_RENDEZVOUS_FD | grep -q '\['$inode'\]' || exit 4
          else
              ! has || exit 5
          fi",
    );
    assert_eq!((seen.status, seen.err), (Some(0), vec![]));
}

#[test]
fn one_status_stands_for_all() {
    for (script, status) in [
        ("exit 0", 0),
        ("exit 130", 130),
        ("test $RANK = 0", 1),
        ("exit $((2 - RANK))", 2),
        ("test $RANK = 0 && kill -9 $$", 1),
    ] {
        assert_eq!(run(2, script).status, Some(status), "{script}");
    }
}

#[test]
fn an_error_of_several_ranks_is_told_once() {
    let seen = run(4, "test $RANK = 0 || { echo 'error: no such thing' >&2; exit 2; }");
    assert_eq!((seen.status, seen.err.len()), (Some(2), 1));
    assert!(seen.err[0].ends_with(": error: no such thing"), "{:?}", seen.err);
}

#[test]
fn a_rank_0_that_a_signal_ended_is_spoken_for() {
    let seen = run(2, "test $RANK = 0 && kill -9 $$; exit 1");
    let line =
        "error: rank 0 was ended by signal 9 (SIGKILL); the last checkpoint is intact: go on with --resume";
    assert_eq!((seen.status, seen.err), (Some(1), vec![line.into()]));
    // Of another, rank 0 tells.
    let seen = run(2, "test $RANK = 1 && kill -9 $$; exit 1");
    assert_eq!((seen.status, seen.err), (Some(1), vec![]));
}

#[test]
fn a_program_that_is_not_there_leaves_nothing() {
    let launch = Launch { ranks: 2, nodes: 1, node_rank: 0, address: Some("127.0.0.1:9".into()) };
    let patience = Duration::from_secs(1);
    let program = Program { path: "/no/such".into(), name: "x".into(), arguments: vec![], patience };
    let error = launch.run(&program).unwrap_err().to_string();
    assert!(error.contains("rank 0: /no/such does not start"), "{error}");
}

#[test]
fn others_get_time_then_sigterm_then_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    // Rank 0 ends on SIGTERM, rank 2 on nothing but SIGKILL; what they start is in their groups.
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
    let seen = seen(child.wait_with_output().unwrap());
    assert!(since.elapsed() >= Duration::from_secs(2), "no time was given");
    assert_eq!(seen.status, Some(1), "{:?}", seen.err);
    assert!(dir.path().join("asked").exists());
    assert!(ranks.iter().chain(&sleepers).all(|&pid| !lives(pid)), "a process is left");
}

#[test]
fn a_rank_0_that_had_to_be_stopped_is_spoken_for() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        format!("trap '' TERM; test $RANK = 1 && kill -9 $$; {READY} while true; do sleep 0.05; done");
    let seen = seen(launcher(dir.path(), 2, 1, &script).output().unwrap());
    let line = "error: rank 1 was ended by signal 9 (SIGKILL), and rank 0 had to be stopped; the last checkpoint is \
        intact: go on with --resume";
    assert_eq!((seen.status, seen.err), (Some(1), vec![line.into()]));
}

#[test]
fn sigterm_and_sigint_are_passed_on_once() {
    for signal in [SIGTERM, SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        // A second signal would be counted too. Nobody hurries a rank that takes its time to save.
        let script = format!(
            "trap 'echo >> $RANK.terms' TERM; {READY} while ! test -e $RANK.terms; do sleep 0.05; done; \
             test $RANK = 1 && sleep 3; exit 130"
        );
        let (child, ranks) = started(dir.path(), 3, 1, &script);
        // As `timeout` does it, to the process and to its group.
        kill(child.id() as i32, signal);
        kill(child.id() as i32, signal);
        let seen = seen(child.wait_with_output().unwrap());
        assert_eq!((seen.status, seen.err), (Some(130), vec![]));
        for rank in 0..3 {
            assert_eq!(fs::read_to_string(dir.path().join(format!("{rank}.terms"))).unwrap(), "\n", "{rank}");
        }
        assert!(ranks.iter().all(|&pid| !lives(pid)));
    }
}

#[test]
fn a_second_signal_ends_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("trap 'echo >> $RANK.terms' TERM; {READY} while true; do sleep 0.05; done");
    let (child, ranks) = started(dir.path(), 2, 1000, &script);
    kill(child.id() as i32, SIGINT);
    until("the first signal has arrived", || {
        (0..2).all(|rank| dir.path().join(format!("{rank}.terms")).exists())
    });
    sleep(ECHO + Duration::from_millis(200));
    kill(child.id() as i32, SIGINT);
    let seen = seen(child.wait_with_output().unwrap());
    assert_eq!((seen.status, seen.err), (Some(130), vec![]));
    assert!(ranks.iter().all(|&pid| !lives(pid)));
}

#[test]
fn a_killed_launcher_leaves_no_rank() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, ranks) = started(dir.path(), 3, 1000, &format!("{READY} exec sleep 1000"));
    kill(child.id() as i32, SIGKILL);
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
    until("the ranks are gone", || ranks.iter().all(|&pid| !lives(pid)));
}

#[test]
fn a_killed_rank_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    // Ranks learn of it by themselves: here, by a file.
    let script = format!("{READY} while ! test -e gone; do sleep 0.05; done; exit 1");
    let (child, ranks) = started(dir.path(), 3, 1000, &script);
    kill(pid_of(dir.path(), 2), SIGKILL);
    fs::write(dir.path().join("gone"), "").unwrap();
    let seen = seen(child.wait_with_output().unwrap());
    assert_eq!((seen.status, seen.err), (Some(1), vec![]));
    assert!(ranks.iter().all(|&pid| !lives(pid)));
}

#[test]
fn ranks_pause_with_the_launcher() {
    let state = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    };
    let dir = tempfile::tempdir().unwrap();
    let (child, ranks) =
        started(dir.path(), 2, 1000, &format!("{READY} while ! test -e go; do sleep 0.05; done"));
    let launcher = child.id() as i32;
    kill(launcher, libc::SIGTSTP);
    until("all stand still", || ranks.iter().chain([&launcher]).all(|&pid| state(pid) == 'T'));
    kill(launcher, libc::SIGCONT);
    until("all go on", || ranks.iter().chain([&launcher]).all(|&pid| state(pid) != 'T'));
    fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(seen(child.wait_with_output().unwrap()).status, Some(0));
}
