//! Exchanges.

use effnet::parallel::{GroupError, LIMIT};

use super::{barrier, ranks};

#[test]
fn exchange_returns_all_parts_in_rank_order() {
    ranks(4, |group| {
        let own = group.world().rank;
        for round in 0..200 {
            // Of different lengths, some empty.
            let part = |rank: usize| vec![rank as u8 + 10; (rank * round) % 7];
            let parts = group.exchange("parts", &part(own)).unwrap();
            assert_eq!(parts, [part(0), part(1), part(2), part(3)]);
        }
        group.leave().unwrap();
    });
}

#[test]
fn exchange_of_several_megabytes() {
    ranks(3, |group| {
        let part =
            |rank: usize| -> Vec<u8> { (0..5 << 20).map(|at: usize| (at >> 8) as u8 ^ rank as u8).collect() };
        let parts = group.exchange("large parts", &part(group.world().rank)).unwrap();
        assert!(parts == [part(0), part(1), part(2)]);
        group.leave().unwrap();
    });
}

#[test]
fn group_of_one_rank() {
    ranks(1, |group| {
        assert_eq!(group.exchange("part", &[4]).unwrap(), [[4]]);
        assert_eq!(group.peer_host(), "127.0.0.1");
        group.leave().unwrap();
        assert!(matches!(barrier(group, "too late"), Err(GroupError::Left)));
    });
}

#[test]
fn halves_of_an_exchange_alternate() {
    ranks(2, |group| {
        let own = [group.world().rank as u8];
        assert!(matches!(group.collect(), Err(GroupError::NothingPosted)));
        for _ in 0..3 {
            group.post("halves", &own).unwrap();
            assert!(matches!(group.post("another", &own), Err(GroupError::Outstanding("another"))));
            assert!(matches!(group.leave(), Err(GroupError::Outstanding("halves"))));
            assert_eq!(group.collect().unwrap(), [[0], [1]]);
        }
        let long = vec![0; LIMIT + 1];
        assert!(matches!(group.exchange("long", &long), Err(GroupError::TooLarge { what: "long", .. })));
        // The group still works.
        barrier(group, "end").unwrap();
        group.leave().unwrap();
    });
}

#[test]
fn flags_and_broadcasts() {
    ranks(3, |group| {
        let rank = group.world().rank;
        assert!(!group.any("no rank", false).unwrap());
        assert!(group.any("rank 2", rank == 2).unwrap());
        let bytes = [b"zero".as_slice(), b"one", b"two"][rank];
        assert_eq!(group.broadcast("bytes", Some(bytes)).unwrap(), b"zero");
        let bytes = (rank == 0).then_some(b"again".as_slice());
        assert_eq!(group.broadcast("bytes", bytes).unwrap(), b"again");
        group.leave().unwrap();
    });
}

#[test]
fn exchange_returns_only_after_all_ranks_have_called_it() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let came = AtomicUsize::new(0);
    ranks(4, |group| {
        for round in 1..50 {
            came.fetch_add(1, Ordering::SeqCst);
            barrier(group, "first").unwrap();
            assert_eq!(came.load(Ordering::SeqCst), 4 * round);
            barrier(group, "second").unwrap();
        }
        group.leave().unwrap();
    });
}
