//! Ranks as threads of a test.

use std::net::TcpListener;
use std::sync::Arc;

use effnet::parallel::{Group, Identity, Membership};

/// What `work` gives on each of `size` ranks, in rank order.
pub fn ranks<T: Send>(size: usize, work: impl Fn(usize, Arc<Group>) -> T + Sync) -> Vec<T> {
    members(0..size, size, |rank, membership| {
        work(rank, Group::join(&membership, Identity::default()).unwrap())
    })
}

/// What `work` gives on each of these ranks of `size`, in this order. They have not joined.
pub fn members<T: Send>(
    numbers: impl IntoIterator<Item = usize>,
    size: usize,
    work: impl Fn(usize, Membership) -> T + Sync,
) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    std::thread::scope(|scope| {
        let one = |rank| {
            let membership = Membership::local(rank, size, &listener).unwrap();
            let work = &work;
            scope.spawn(move || work(rank, membership))
        };
        let threads: Vec<_> = numbers.into_iter().map(one).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    })
}
