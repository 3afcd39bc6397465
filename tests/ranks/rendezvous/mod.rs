//! The control path between ranks. Groups are threads over the loopback, or processes if a rank must die or hang.

mod joining;
mod processes;
mod running;
mod stopping;
mod strangers;

use std::sync::Arc;
use std::time::Duration;

use crate::common::ranks::members;
use effnet::parallel::{Group, GroupError, Identity, Membership};

/// What is different at a rank.
type Change<'a> = &'a (dyn Fn(usize, &mut Membership, &mut Identity) + Sync);

/// Runs `rank` for each of `numbers` in a group of `size`, each on its own thread. Returns the results in that order.
fn some_ranks<T: Send>(
    (numbers, size): (&[usize], usize),
    change: Change,
    rank: impl Fn(usize, Result<Arc<Group>, GroupError>) -> T + Sync,
) -> Vec<T> {
    members(numbers.iter().copied(), size, |number, mut membership| {
        let mut identity = identity();
        change(number, &mut membership, &mut identity);
        rank(number, Group::join(&membership, identity))
    })
}

/// Runs `rank` as each rank of a group.
fn ranks<T: Send>(size: usize, rank: impl Fn(&Arc<Group>) -> T + Sync) -> Vec<T> {
    let numbers: Vec<usize> = (0..size).collect();
    some_ranks((&numbers, size), &|_, _, _| {}, |_, group| rank(&group.unwrap()))
}

/// The errors with which the ranks fail to join.
fn refusals(numbers: &[usize], size: usize, change: Change) -> Vec<String> {
    some_ranks((numbers, size), change, |_, group| group.map(drop).unwrap_err().to_string())
}

/// The identity of all ranks in these tests.
fn identity() -> Identity {
    let facts = [("model", "b0"), ("lr", "0.01")];
    let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Identity { version: "1.2.3".into(), facts: facts.into() }
}

/// Returns when all ranks have called it.
fn barrier(group: &Group, what: &'static str) -> Result<(), GroupError> {
    group.exchange(what, &[]).map(drop)
}

/// The error that has stopped the group, as this rank's next exchange returns it.
fn stopped(group: &Group) -> String {
    let error = barrier(group, "after the stop").unwrap_err();
    assert!(error.stopped().is_some(), "{error}");
    error.to_string()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// How messages name a rank of this machine.
fn name(rank: usize, pid: u32) -> String {
    let system = rustix::system::uname();
    format!("rank {rank} (host {}, pid {pid})", system.nodename().to_str().unwrap())
}

/// How messages name a rank that is a thread of this process.
fn own_name(rank: usize) -> String {
    name(rank, std::process::id())
}
