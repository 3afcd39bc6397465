//! The control path between ranks: groups of threads over the loopback, of processes where a rank must die or stop.

mod joining;
mod processes;
mod running;
mod stopping;
mod strangers;

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use effnet::parallel::{Group, GroupError, Identity, Membership};

/// How the ranks of a test differ from each other.
type Change<'a> = &'a (dyn Fn(usize, &mut Membership, &mut Identity) + Sync);

/// Runs `rank` for each of `numbers` in a group of `size`, each on a thread of its own; results in their order.
fn some_ranks<T: Send>(
    (numbers, size): (&[usize], usize),
    change: Change,
    rank: impl Fn(usize, Result<Arc<Group>, GroupError>) -> T + Sync,
) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = |number| {
        let mut membership = Membership::local(number, size, &listener).unwrap();
        let mut identity = identity();
        change(number, &mut membership, &mut identity);
        rank(number, Group::join(&membership, identity))
    };
    thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = numbers.iter().map(|number| scope.spawn(move || one(*number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Runs `rank` as each rank of a group that comes together.
fn ranks<T: Send>(size: usize, rank: impl Fn(&Arc<Group>) -> T + Sync) -> Vec<T> {
    let numbers: Vec<usize> = (0..size).collect();
    some_ranks((&numbers, size), &|_, _, _| {}, |_, group| rank(&group.unwrap()))
}

/// The line with which each of the ranks fails to join.
fn refusals(numbers: &[usize], size: usize, change: Change) -> Vec<String> {
    some_ranks((numbers, size), change, |_, group| group.map(drop).unwrap_err().to_string())
}

/// What all ranks of these tests want.
fn identity() -> Identity {
    let facts = [("model", "b0"), ("lr", "0.01")];
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Identity { version: "1.2.3".into(), facts: facts.into() }
}

/// The line with which the group was stopped, as this rank's next exchange tells it.
fn stopped(group: &Group) -> String {
    let error = group.barrier("after the stop").unwrap_err();
    assert!(error.stopped().is_some(), "{error}");
    error.to_string()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// "rank 1 (host HERE, pid THIS", as every rank of a test within one process is named.
fn here(rank: usize, group: &Group) -> String {
    let name = group.name(rank);
    assert!(name.starts_with(&format!("rank {rank} (host ")), "{name}");
    name
}
