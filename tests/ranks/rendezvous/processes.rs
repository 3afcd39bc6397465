//! Ranks that are processes: killed, suspended, hanging. Such a process is this test program again, which runs
//! [`rank_process`].

use std::env;
use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::programs::{self, Ran, ended};
use effnet::parallel::launch::inherited_listener;
use effnet::parallel::{Group, Membership, World, print_error};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;

use super::{barrier, identity, name, ranks, seconds, stopped};

/// What the process must do, and where: task, rank, size, address, descriptor.
const VARIABLE: &str = "EFFNET_TEST_RANK";

#[test]
#[ignore = "the process that other tests start"]
fn rank_process() {
    let Ok(text) = env::var(VARIABLE) else { panic!("{VARIABLE} is not set") };
    let words: Vec<&str> = text.split(' ').collect();
    let [task, rank, size, address, descriptor] = words[..] else { panic!("{text}") };
    if task == "many" {
        return many_groups();
    }
    let rank = rank.parse().unwrap();
    let size = size.parse().unwrap();
    let world = World { rank, size, local_rank: rank, local_size: size };
    // SAFETY: this process was started with the descriptor and uses it only here.
    let listener = (rank == 0).then(|| unsafe { inherited_listener(descriptor) }.unwrap().into());
    let membership = Membership {
        listener,
        watchdog: seconds(if task == "watched" { 2 } else { 60 }),
        hard_exit: true,
        grace: Duration::from_millis(300),
        ..Membership::new(world, address.parse().unwrap())
    };
    let group = Group::join(&membership, identity()).unwrap();
    group.doing(17, "training");
    // The stop may arrive this early.
    let _ = barrier(&group, "ready");
    // Hangs where no hook reaches it; only the group itself ends this process.
    let start = Instant::now();
    while start.elapsed() < seconds(60) {
        group.progress();
        if task == "prints" && group.stopped().is_some() {
            print_error("printed by the main thread");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A process that is killed at the end of its test.
struct Rank(Option<Child>);

impl Rank {
    fn start(task: &str, rank: usize, size: usize, listener: &TcpListener) -> Rank {
        let address = listener.local_addr().unwrap();
        let descriptor = listener.as_raw_fd();
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "rendezvous::processes::rank_process", "--ignored", "--nocapture"]);
        command.env(VARIABLE, format!("{task} {rank} {size} {address} {descriptor}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // SAFETY: one system call, on a descriptor that the child has inherited.
        unsafe {
            let keep_open =
                move || fcntl_setfd(BorrowedFd::borrow_raw(descriptor), FdFlags::empty()).map_err(Into::into);
            command.pre_exec(keep_open);
        }
        Rank(Some(command.spawn().unwrap()))
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn signal(&self, signal: Signal) {
        programs::signal(self.pid() as i32, signal);
    }

    fn end(mut self) -> Ran {
        ended(self.0.take().unwrap())
    }

    /// Waits until the process is ended by its group, and returns what it has printed.
    fn ended_by_group(self) -> String {
        let ran = self.end();
        assert_eq!(ran.status, Some(1));
        ran.err
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
    barrier(&group, "ready").unwrap();
    group
}

/// A group of this process and another one. Returns also how messages name the other.
fn pair(task: &str, theirs: usize) -> (Arc<Group>, Rank, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let rank = Rank::start(task, theirs, 2, &listener);
    let group = join(1 - theirs, 2, if task == "watched" { 2 } else { 60 }, &listener);
    let name = name(theirs, rank.pid());
    (group, rank, name)
}

/// Long enough for a heartbeat of rank 0 to reach all ranks.
fn wait_for_heartbeat() {
    thread::sleep(Duration::from_millis(1500));
}

#[test]
fn killed_rank_is_named() {
    let (group, rank, name) = pair("killed", 1);
    rank.signal(Signal::KILL);
    assert_eq!(stopped(&group), format!("{name} ended without a message; it was in step 17: training"));
}

#[test]
fn killed_rank_0_is_named_by_the_others() {
    let (group, rank, name) = pair("killed", 0);
    wait_for_heartbeat();
    rank.signal(Signal::KILL);
    assert_eq!(stopped(&group), format!("{name} ended without a message; it was in step 17: training"));
    assert!(group.prints_error(), "no other rank can print it");
    assert!(!group.fail("a later error"));
}

#[test]
fn suspended_rank_is_named() {
    let (group, rank, name) = pair("watched", 1);
    rank.signal(Signal::STOP);
    let expected = format!("{name} has given no sign of life for 2 s; it was in step 17: training");
    assert_eq!(stopped(&group), expected);
}

#[test]
fn suspended_rank_0_is_named_by_the_others() {
    let (group, rank, name) = pair("watched", 0);
    rank.signal(Signal::STOP);
    let line = stopped(&group);
    assert!(line.starts_with(&format!("{name} has given no sign of life for 2 s; it was in ")), "{line}");
}

#[test]
fn stop_ends_a_process_that_hangs() {
    let (group, rank, _) = pair("hangs", 1);
    assert!(group.fail("an error of rank 0"));
    assert_eq!(rank.ended_by_group(), "", "rank 0 prints the error");
}

#[test]
fn error_is_printed_by_a_rank_0_that_hangs() {
    let (group, rank, _) = pair("hangs", 0);
    assert!(group.fail("an error of rank 1"));
    let own = name(1, std::process::id());
    assert_eq!(rank.ended_by_group(), format!("error: {own} in step 0, starting: an error of rank 1\n"));
}

#[test]
fn error_is_printed_once_by_a_rank_0_that_prints_and_hangs() {
    let (group, rank, _) = pair("prints", 0);
    assert!(group.fail("an error of rank 1"));
    assert_eq!(rank.ended_by_group(), "error: printed by the main thread\n");
}

#[test]
fn stop_ends_a_process_whose_output_is_closed() {
    let (group, mut rank, _) = pair("hangs", 0);
    drop(rank.0.as_mut().unwrap().stderr.take());
    let since = Instant::now();
    assert!(group.fail("an error of rank 1"));
    rank.ended_by_group();
    assert!(since.elapsed() < seconds(30), "{:?}", since.elapsed());
}

#[test]
fn error_is_printed_by_the_others_if_rank_0_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let [first, second] = [0, 1].map(|rank| Rank::start("hangs", rank, 3, &listener));
    let _group = join(2, 3, 60, &listener);
    wait_for_heartbeat();
    first.signal(Signal::KILL);
    let expected = format!(
        "error: {} ended without a message; it was in step 17: training; the last checkpoint is intact: go on with \
         --resume\n",
        name(0, first.pid())
    );
    assert_eq!(second.ended_by_group(), expected);
}

#[test]
fn groups_leave_no_thread_behind() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Rank::start("many", 0, 1, &listener).end().good();
}

/// Forms groups that end in every way, then looks at the threads of this process.
fn many_groups() {
    for round in 0..8 {
        ranks(3, |group| {
            // Some groups are stopped before this.
            let started = barrier(group, "start");
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
    programs::until("no thread is left", seconds(10), || threads() == 0);
}
