//! Ranks that are processes of their own: killed, stopped, hanging. The process is this test's program once more,
//! which runs [`a_rank`].

use std::env;
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use effnet::parallel::{Group, Membership, World};

use super::{here, identity, ranks, seconds, stopped};

/// What the process is to do, and where: task, rank, size, address, descriptor.
const VARIABLE: &str = "EFFNET_TEST_RANK";

#[test]
#[ignore = "what the processes of the other tests run"]
fn a_rank() {
    let Ok(text) = env::var(VARIABLE) else { panic!("{VARIABLE} is not set") };
    let words: Vec<&str> = text.split(' ').collect();
    let [task, rank, size, address, descriptor] = words[..] else { panic!("{text}") };
    if task == "many" {
        return many_groups();
    }
    let (rank, size) = (rank.parse().unwrap(), size.parse().unwrap());
    let world = World { rank, size, local_rank: rank, local_size: size };
    let membership = Membership {
        listener: (rank == 0).then(|| descriptor.parse().unwrap()),
        watchdog: seconds(if task == "watched" { 2 } else { 60 }),
        hard_exit: true,
        grace: Duration::from_millis(300),
        ..Membership::new(world, address)
    };
    let group = Group::join(&membership, identity()).unwrap();
    group.doing(17, "training");
    // Its end may come this early.
    let _ = group.barrier("ready");
    // Hangs where nothing reaches it; only the group itself ends this process.
    let start = Instant::now();
    while start.elapsed() < seconds(60) {
        group.progress();
        if task == "tells" && group.stopped().is_some() {
            group.told();
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A process that does not outlive its test.
struct Rank(Option<Child>);

impl Rank {
    fn start(task: &str, rank: usize, size: usize, listener: &TcpListener) -> Rank {
        let (address, descriptor) = (listener.local_addr().unwrap(), listener.as_raw_fd());
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "rendezvous::processes::a_rank", "--ignored", "--nocapture"]);
        command.env(VARIABLE, format!("{task} {rank} {size} {address} {descriptor}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: one call that is allowed between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Rank(Some(command.spawn().unwrap()))
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is this test's and not yet waited for.
        assert_eq!(unsafe { libc::kill(self.pid() as libc::pid_t, signal) }, 0);
    }

    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn join(rank: usize, size: usize, watchdog: u64, listener: &TcpListener) -> Arc<Group> {
    let membership =
        Membership { watchdog: seconds(watchdog), ..Membership::local(rank, size, listener).unwrap() };
    let group = Group::join(&membership, identity()).unwrap();
    group.barrier("ready").unwrap();
    group
}

/// A group of which this process is one rank and another process the other one.
fn pair(task: &str, theirs: usize) -> (Arc<Group>, Rank) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rank = Rank::start(task, theirs, 2, &listener);
    let group = join(1 - theirs, 2, if task == "watched" { 2 } else { 60 }, &listener);
    assert!(here(theirs, &group).ends_with(&format!(", pid {})", rank.pid())));
    (group, rank)
}

/// Long enough for rank 0's last heartbeat to have come round.
fn moment() {
    thread::sleep(Duration::from_millis(1500));
}

#[test]
fn a_killed_rank_is_named() {
    let (group, rank) = pair("killed", 1);
    rank.signal(libc::SIGKILL);
    let expected = format!("{} ended without a word; it was in step 17: training", here(1, &group));
    assert_eq!(stopped(&group), expected);
}

#[test]
fn a_killed_rank_0_is_named_by_the_others() {
    let (group, rank) = pair("killed", 0);
    moment();
    rank.signal(libc::SIGKILL);
    let expected = format!("{} ended without a word; it was in step 17: training", here(0, &group));
    assert_eq!(stopped(&group), expected);
    assert!(group.tells(), "nobody else can");
    assert!(!group.fail("a later error"));
}

#[test]
fn a_rank_that_the_system_stopped_is_named() {
    let (group, rank) = pair("watched", 1);
    rank.signal(libc::SIGSTOP);
    let expected =
        format!("{} has given no sign of life for 2 s; it was in step 17: training", here(1, &group));
    assert_eq!(stopped(&group), expected);
}

#[test]
fn a_rank_0_that_the_system_stopped_is_named_by_the_others() {
    let (group, rank) = pair("watched", 0);
    rank.signal(libc::SIGSTOP);
    let line = stopped(&group);
    assert!(
        line.starts_with(&format!("{} has given no sign of life for 2 s; it was in ", here(0, &group))),
        "{line}"
    );
}

#[test]
fn a_stop_ends_processes_that_hang() {
    let (group, rank) = pair("hangs", 1);
    assert!(group.fail("an error of rank 0"));
    let output = rank.end();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "rank 0 tells");
    // A rank 0 that hangs tells all the same.
    let (group, rank) = pair("hangs", 0);
    assert!(group.fail("an error of rank 1"));
    let output = rank.end();
    assert_eq!(output.status.code(), Some(1));
    let line = format!("error: {} in step 0, starting: an error of rank 1\n", here(1, &group));
    assert_eq!(String::from_utf8_lossy(&output.stderr), line);
    // Where nobody reads that any more, it ends too.
    let (group, mut rank) = pair("hangs", 0);
    drop(rank.0.as_mut().unwrap().stderr.take());
    let since = Instant::now();
    assert!(group.fail("an error of rank 1"));
    assert_eq!(rank.end().status.code(), Some(1));
    assert!(since.elapsed() < seconds(30), "{:?}", since.elapsed());
    // But not twice.
    let (group, rank) = pair("tells", 0);
    assert!(group.fail("an error of rank 1"));
    assert_eq!(String::from_utf8_lossy(&rank.end().stderr), "");
}

#[test]
fn where_rank_0_is_lost_the_others_tell() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let [first, second] = [0, 1].map(|rank| Rank::start("hangs", rank, 3, &listener));
    let _group = join(2, 3, 60, &listener);
    moment();
    first.signal(libc::SIGKILL);
    let pid = first.pid();
    let output = second.end();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        line.starts_with("error: rank 0 (host ") && line.contains(&format!("pid {pid}) ended without")),
        "{line}"
    );
    assert!(
        line.ends_with("in step 17: training; the last checkpoint is intact: go on with --resume\n"),
        "{line}"
    );
}

#[test]
fn groups_leave_no_thread_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Rank::start("many", 0, 1, &listener).end();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Groups that end in every way, then a look at the process's threads.
fn many_groups() {
    for round in 0..8 {
        ranks(3, |group| {
            // Some are ended by others before they have even started.
            let started = group.barrier("start");
            match (round % 4, group.world().rank) {
                (0, _) => started.and_then(|()| group.leave()).unwrap(),
                (1, 1) => assert!(group.fail("an error")),
                (2, 0) | (3, _) => {}
                _ => drop(stopped(group)),
            }
        });
    }
    let threads = || {
        let names = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path().join("comm"));
        let names = names.filter_map(|path| fs::read_to_string(path).ok());
        names.filter(|name| ["rendezvous", "heartbeat", "grace"].contains(&name.trim())).count()
    };
    let start = Instant::now();
    while threads() > 0 {
        assert!(start.elapsed() < seconds(10), "{} threads are left", threads());
        thread::sleep(Duration::from_millis(10));
    }
}
