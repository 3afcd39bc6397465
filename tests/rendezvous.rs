//! The control path: groups of threads over the loopback.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use effnet::parallel::{Group, GroupError, Identity, Membership};

/// Runs `rank` as every rank of a group, each on a thread of its own.
fn ranks<T: Send>(
    size: usize,
    change: impl Fn(&mut Membership, &mut Identity) + Sync,
    rank: impl Fn(Result<Arc<Group>, GroupError>) -> T + Sync,
) -> Vec<T> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = |number| {
        let mut membership = Membership::local(number, size, &listener).unwrap();
        let mut identity = Identity { version: "1".into(), facts: vec![("lr".into(), "0.01".into())] };
        change(&mut membership, &mut identity);
        rank(Group::join(&membership, identity))
    };
    thread::scope(|scope| {
        let one = &one;
        let threads: Vec<_> = (0..size).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn an_exchange_gives_all_parts_in_rank_order() {
    let found = ranks(
        4,
        |_, _| {},
        |group| {
            let group = group.unwrap();
            let own = [group.world().rank as u8; 3];
            let parts = group.exchange("parts", &own).unwrap();
            group.leave().unwrap();
            parts
        },
    );
    for parts in found {
        assert_eq!(parts, [[0; 3], [1; 3], [2; 3], [3; 3]]);
    }
}
