//! Groups that are formed, and groups that are not: every rank gets one line that says why.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use effnet::parallel::{Address, Group, GroupError, Membership, World};

use super::{barrier, identity, ranks, refusals, seconds, some_ranks};

const SECOND_OF_TWO: World = World { rank: 1, size: 2, local_rank: 1, local_size: 2 };

fn membership(world: World, address: &str, timeout: u64) -> Membership {
    Membership { timeout: seconds(timeout), ..Membership::new(world, address.parse().unwrap()) }
}

/// The error of rank 1 of 2 if it looks for rank 0 at this address.
fn looking_for_rank_0(address: &str) -> GroupError {
    Group::join(&membership(SECOND_OF_TWO, address, 1), identity()).map(drop).unwrap_err()
}

/// A port at which nothing listens, and which is not free. It is taken while the connection lives.
fn taken_port() -> (SocketAddr, [TcpStream; 2]) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (taken.local_addr().unwrap(), [taken, listener.accept().unwrap().0])
}

#[test]
fn late_ranks_are_waited_for() {
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
fn rank_0_opens_the_port_if_it_inherits_none() {
    for host in ["127.0.0.1", "localhost"] {
        // Another program may take the chosen port first. Then the next one is tried.
        let joined = (0..20).any(|_| {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let membership = membership(World::ALONE, &format!("{host}:{port}"), 1);
            let group = match Group::join(&membership, identity()) {
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
fn rank_0_takes_any_port_if_it_is_alone() {
    let membership = Membership::new(World::ALONE, Address::new("127.0.0.1", 0));
    Group::join(&membership, identity()).unwrap().leave().unwrap();
}

#[test]
fn inherited_listener_is_closed_with_the_group() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let membership = Membership::local(0, 1, &listener).unwrap();
    drop(listener);
    let group = Group::join(&membership, identity()).unwrap();
    TcpStream::connect(address).unwrap();
    group.leave().unwrap();
    drop(group);
    assert!(TcpStream::connect(address).is_err());
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
fn ranks_with_the_same_number_are_both_named() {
    let pid = std::process::id();
    for line in refusals(&[0, 1, 1], 3, &|_, _, _| {}) {
        assert!(line.starts_with("two processes say that they are rank 1: rank 1 (host "), "{line}");
        assert_eq!(line.matches(&format!("pid {pid})")).count(), 2, "{line}");
    }
}

#[test]
fn complete_group_refuses_another_rank_and_continues() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let join = |number| Group::join(&Membership::local(number, 2, &listener).unwrap(), identity());
    thread::scope(|scope| {
        let one = scope.spawn(|| join(1).unwrap());
        let groups = [join(0).unwrap(), one.join().unwrap()];
        let line = join(1).map(drop).unwrap_err().to_string();
        assert!(line.contains("comes to a group that is complete; rank 1 (host "), "{line}");
        let threads = groups.map(|group| {
            scope.spawn(move || {
                barrier(&group, "undisturbed").unwrap();
                group.leave().unwrap();
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn rank_that_differs_is_named_with_the_difference() {
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
fn rank_beyond_the_world_is_refused() {
    let world = World { rank: 2, size: 2, local_rank: 0, local_size: 1 };
    let error = Group::join(&membership(world, "127.0.0.1:1", 1), identity()).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "rank 2 of 2 ranks is not possible: ranks count from 0");
}

#[test]
fn address_without_rank_0_is_named() {
    let error = looking_for_rank_0("no-such-host.invalid:29500");
    assert!(matches!(error, GroupError::Unresolved { .. }), "{error}");
    assert!(error.to_string().contains("no-such-host.invalid:29500 cannot be found"), "{error}");
    let (address, _taken) = taken_port();
    let line = looking_for_rank_0(&address.to_string()).to_string();
    let expected = format!("no answer from {address} for 1 s; does rank 0 run there, and is the port open?");
    assert_eq!(line, expected);
    // A program that listens and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = looking_for_rank_0(&silent.local_addr().unwrap().to_string());
    assert!(matches!(error, GroupError::NoAnswer { .. }), "{error}");
}

#[test]
fn other_program_at_the_port_is_reported() {
    use std::io::Write;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let other = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").unwrap();
        stream
    });
    let line = looking_for_rank_0(&address).to_string();
    assert_eq!(line, format!("what answers at {address} is not effnet; is another program using the port?"));
    drop(other.join().unwrap());
}

#[test]
fn port_in_use_is_reported_with_the_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let membership = membership(World::ALONE, &format!("127.0.0.1:{port}"), 1);
    let error = Group::join(&membership, identity()).map(drop).unwrap_err();
    let expected = format!(
        "port {port} is in use; choose another one: --rendezvous 127.0.0.1:PORT, or MASTER_PORT if a launcher \
        sets it"
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn groups_do_not_disturb_each_other() {
    for _ in 0..20 {
        ranks(2, |group| {
            barrier(group, "one of many").unwrap();
            group.leave().unwrap();
        });
    }
}

#[test]
fn rank_that_comes_after_the_refusal_gets_the_reason() {
    let lines = refusals(&[0, 1, 2], 3, &|number, _, identity| {
        if number == 1 {
            identity.facts[0].1 = "b1".into();
        }
        thread::sleep(Duration::from_millis(if number == 2 { 1000 } else { 0 }));
    });
    assert!(lines[2].ends_with(" has model b1, rank 0 has b0"), "{}", lines[2]);
    assert!(lines.iter().all(|line| *line == lines[2]), "{lines:?}");
}

/// Any rank may be asked to stop.
#[test]
fn request_to_stop_ends_all_ranks_that_wait() {
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
            // Rank 3 never comes.
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

/// Rank 0 may not be there, or not answer yet.
#[test]
fn request_to_stop_ends_a_rank_without_an_answer() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (nothing, _taken) = taken_port();
    for address in [silent.local_addr().unwrap(), nothing] {
        let membership = membership(SECOND_OF_TWO, &address.to_string(), 100);
        let since = Instant::now();
        let error =
            Group::join_unless(&membership, identity(), &AtomicBool::new(true)).map(drop).unwrap_err();
        assert!(matches!(error, GroupError::Interrupted), "{error}");
        assert!(since.elapsed() < seconds(20), "{:?}", since.elapsed());
    }
}
