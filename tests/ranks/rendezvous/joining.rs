//! Groups that come together, and groups that do not: everybody gets one line that says why.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use effnet::parallel::{Group, GroupError, Membership, World};

use super::{identity, ranks, refusals, seconds, some_ranks};

fn alone(address: &str) -> Membership {
    Membership { timeout: seconds(1), ..Membership::new(World::ALONE, address) }
}

/// The error of a rank 1 of 2 that looks for rank 0 there.
fn looking(address: &str) -> GroupError {
    let world = World { rank: 1, size: 2, local_rank: 1, local_size: 2 };
    Group::join(&Membership { world, ..alone(address) }, identity()).map(drop).unwrap_err()
}

#[test]
fn ranks_that_come_late_are_waited_for() {
    let late = |number, _: &mut Membership, _: &mut _| {
        thread::sleep(Duration::from_millis(300 * (3 - number as u64)))
    };
    some_ranks((&[0, 1, 2], 3), &late, |number, group| {
        let group = group.unwrap();
        assert_eq!(group.world().rank, number);
        group.leave().unwrap();
    });
}

#[test]
fn rank_0_listens_by_itself_where_nothing_is_inherited() {
    for host in ["127.0.0.1", "localhost"] {
        // Between choosing the port and taking it, somebody else may: then another one.
        let joined = (0..20).any(|_| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let group = match Group::join(&alone(&format!("{host}:{port}")), identity()) {
                Err(GroupError::PortInUse { .. }) => return false,
                group => group.unwrap(),
            };
            assert_eq!(group.peer_host(), host);
            group.leave().unwrap();
            true
        });
        assert!(joined);
    }
}

#[test]
fn missing_ranks_are_listed() {
    let short = |_, membership: &mut Membership, _: &mut _| membership.timeout = seconds(2);
    let lines = refusals(&[0, 3], 5, &short);
    for line in lines {
        assert!(
            line.starts_with("ranks 1, 2 and 4 of 5 have not come within 2 s; here are 0, 3 (host "),
            "{line}"
        );
    }
    let line = &refusals(&[0], 2, &short)[0];
    assert!(line.starts_with("rank 1 of 2 has not come within 2 s; here is 0 (host "), "{line}");
}

#[test]
fn two_processes_with_one_number_are_both_named() {
    let pid = std::process::id();
    for line in refusals(&[0, 1, 1], 3, &|_, _, _| {}) {
        assert!(line.starts_with("two processes say that they are rank 1: rank 1 (host "), "{line}");
        assert_eq!(line.matches(&format!("pid {pid})")).count(), 2, "{line}");
    }
}

#[test]
fn a_newcomer_to_a_complete_group_is_refused_and_the_group_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let join = |number| Group::join(&Membership::local(number, 2, &listener).unwrap(), identity());
    thread::scope(|scope| {
        let one = scope.spawn(|| join(1).unwrap());
        let groups = [join(0).unwrap(), one.join().unwrap()];
        let line = join(1).map(drop).unwrap_err().to_string();
        assert!(line.contains("comes to a group that is complete; rank 1 (host "), "{line}");
        let threads = groups.map(|group| {
            scope.spawn(move || {
                group.barrier("undisturbed").unwrap();
                group.leave().unwrap();
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn ranks_that_want_something_else_are_named_with_what_differs() {
    let says = |line: &str, expected: &str| {
        assert!(line.starts_with("rank 1 (host ") && line.ends_with(expected), "{line}");
    };
    let lines = refusals(&[0, 1, 2], 3, &|number, _, identity| {
        if number == 1 {
            identity.facts[1].1 = "0.02".into();
        }
    });
    lines.iter().for_each(|line| says(line, " has lr 0.02, rank 0 has 0.01"));
    let lines = refusals(&[0, 1], 2, &|number, _, identity| {
        if number == 1 {
            identity.facts.push(("seed".into(), "3".into()));
        }
    });
    lines.iter().for_each(|line| says(line, " has seed 3, rank 0 has none"));
    let lines = refusals(&[0, 1], 2, &|number, _, identity| identity.version = format!("1.{number}"));
    lines.iter().for_each(|line| says(line, " has program version 1.1, rank 0 has 1.0"));
    let lines = refusals(&[0, 1], 2, &|number, membership, _| membership.world.size += number);
    lines.iter().for_each(|line| says(line, " has world size 3, rank 0 has 2"));
}

#[test]
fn a_rank_beyond_the_world_is_refused() {
    let world = World { rank: 2, size: 2, local_rank: 0, local_size: 1 };
    let error = Group::join(&Membership::new(world, "127.0.0.1:1"), identity()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "rank 2 of 2 ranks cannot be: ranks count from 0");
}

#[test]
fn an_address_that_leads_nowhere_is_told() {
    let error = looking("127.0.0.1");
    assert!(error.to_string().starts_with("`127.0.0.1` is no address of rank 0: write host:port"), "{error}");
    let error = looking("no-such-host.invalid:29500");
    assert!(matches!(error, GroupError::Unresolved { .. }), "{error}");
    assert!(error.to_string().contains("no-such-host.invalid:29500 cannot be found"), "{error}");
    // A port that is taken, and at which nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let line = looking(&address).to_string();
    let expected =
        format!("nobody answers at {address} for 1 s; does rank 0 run there, and is the port open?");
    assert_eq!(line, expected);
    // Somebody who listens and says nothing.
    let address = listener.local_addr().unwrap().to_string();
    assert!(matches!(looking(&address), GroupError::NobodyAnswers { .. }));
}

#[test]
fn another_program_at_the_port_is_told() {
    use std::io::Write;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
        stream
    });
    let line = looking(&address).to_string();
    assert_eq!(line, format!("what answers at {address} is not effnet; is another program using the port?"));
    drop(other.join().unwrap());
}

#[test]
fn a_port_in_use_is_told_with_the_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let error = Group::join(&alone(&format!("127.0.0.1:{port}")), identity()).map(drop).unwrap_err();
    let expected = format!(
        "port {port} is in use; choose another one: --rendezvous 127.0.0.1:PORT, or MASTER_PORT where a launcher \
        sets it"
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn an_inherited_descriptor_that_does_not_listen_is_told() {
    let not_a_socket = File::open("/dev/null").unwrap().into_raw_fd();
    for descriptor in [not_a_socket, 987_654] {
        let membership = Membership { listener: Some(descriptor), ..alone("127.0.0.1:29500") };
        let error = Group::join(&membership, identity()).map(drop).unwrap_err();
        assert!(matches!(error, GroupError::Listen { .. }), "{error}");
    }
}

#[test]
fn groups_do_not_disturb_each_other() {
    for _ in 0..20 {
        ranks(2, |group| {
            group.barrier("one of many").unwrap();
            group.leave().unwrap();
        });
    }
}

#[test]
fn ranks_that_come_after_the_refusal_still_hear_why() {
    let lines = refusals(&[0, 1, 2], 3, &|number, _, identity| {
        if number == 1 {
            identity.facts[0].1 = "b1".into();
        }
        thread::sleep(Duration::from_millis(if number == 2 { 1000 } else { 0 }));
    });
    assert!(lines[2].ends_with(" has model b1, rank 0 has b0"), "{}", lines[2]);
    assert!(lines.iter().all(|line| *line == lines[2]), "{lines:?}");
}

/// Who is asked to stop while it waits for others ends at once, and with it all that wait.
#[test]
fn a_request_to_stop_ends_all_that_wait() {
    for asked in [0, 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stop = AtomicBool::new(false);
        let wait = |rank: usize| {
            let membership =
                Membership { timeout: seconds(100), ..Membership::local(rank, 4, &listener).unwrap() };
            let never = AtomicBool::new(false);
            Group::join_unless(&membership, identity(), if rank == asked { &stop } else { &never })
        };
        thread::scope(|scope| {
            // Rank 3 does not come.
            let wait = &wait;
            let ranks: Vec<_> = (0..3).map(|rank| scope.spawn(move || wait(rank).map(drop))).collect();
            thread::sleep(Duration::from_millis(300));
            assert!(ranks.iter().all(|rank| !rank.is_finished()));
            let since = Instant::now();
            stop.store(true, Ordering::Relaxed);
            for rank in ranks {
                let error = rank.join().unwrap().unwrap_err();
                assert!(matches!(error, GroupError::Interrupted), "{error}");
            }
            assert!(since.elapsed() < seconds(20), "{:?}", since.elapsed());
        });
    }
}

/// Also where rank 0 is not there, or takes nobody in yet.
#[test]
fn a_request_to_stop_ends_a_rank_that_nobody_answers() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpStream::connect(silent.local_addr().unwrap()).unwrap();
    for address in [silent.local_addr().unwrap(), taken.local_addr().unwrap()] {
        let world = World { rank: 1, size: 2, local_rank: 1, local_size: 2 };
        let membership = Membership { timeout: seconds(100), ..Membership::new(world, address.to_string()) };
        let since = Instant::now();
        let error =
            Group::join_unless(&membership, identity(), &AtomicBool::new(true)).map(drop).unwrap_err();
        assert!(matches!(error, GroupError::Interrupted), "{error}");
        assert!(since.elapsed() < seconds(20), "{:?}", since.elapsed());
    }
}
