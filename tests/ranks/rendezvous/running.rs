//! Exchanges.

use effnet::parallel::{GroupError, LIMIT};

use super::ranks;

#[test]
fn an_exchange_gives_all_parts_in_rank_order() {
    ranks(4, |group| {
        let own = group.world().rank;
        for round in 0..200 {
            // Of differing length, and empty too.
            let part = |rank: usize| vec![rank as u8 + 10; (rank * round) % 7];
            let parts = group.exchange("parts", &part(own)).unwrap();
            assert_eq!(parts, [part(0), part(1), part(2), part(3)]);
        }
        group.leave().unwrap();
    });
}

#[test]
fn several_megabytes_are_one_part() {
    ranks(3, |group| {
        let part =
            |rank: usize| -> Vec<u8> { (0..5 << 20).map(|at: usize| (at >> 8) as u8 ^ rank as u8).collect() };
        let parts = group.exchange("large parts", &part(group.world().rank)).unwrap();
        assert!(parts == [part(0), part(1), part(2)]);
        group.leave().unwrap();
    });
}

#[test]
fn a_group_of_one_rank_works() {
    ranks(1, |group| {
        assert_eq!(group.sum("sum", &[4]).unwrap(), [4]);
        assert_eq!(group.peer_host(), "127.0.0.1");
        group.leave().unwrap();
        assert!(matches!(group.barrier("too late"), Err(GroupError::Left)));
    });
}

#[test]
fn the_two_halves_of_an_exchange_are_called_in_turn() {
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
        // None of that has disturbed anything.
        group.barrier("end").unwrap();
        group.leave().unwrap();
    });
}

#[test]
fn sums_flags_and_broadcasts() {
    ranks(3, |group| {
        let rank = group.world().rank as u64;
        assert_eq!(group.sum("sum", &[1, rank, u64::MAX - rank]).unwrap(), [3, 3, u64::MAX - 5]);
        assert!(!group.any("nobody", false).unwrap());
        assert!(group.any("rank 2", rank == 2).unwrap());
        let bytes = [b"zero".as_slice(), b"one", b"two"][rank as usize];
        assert_eq!(group.broadcast("bytes", Some(bytes)).unwrap(), b"zero");
        let bytes = (rank == 0).then_some(b"again".as_slice());
        assert_eq!(group.broadcast("bytes", bytes).unwrap(), b"again");
        // All have the same number of numbers, or are told.
        let numbers = vec![1; 1 + rank as usize];
        match group.sum("lengths", &numbers) {
            Err(GroupError::Length { rank: 0, found: 8, .. }) if rank > 0 => {}
            Err(GroupError::Length { rank: 1, found: 16, .. }) if rank == 0 => {}
            other => panic!("{other:?}"),
        }
        group.leave().unwrap();
    });
}

#[test]
fn nobody_passes_a_barrier_before_all_have_come() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let came = AtomicUsize::new(0);
    ranks(4, |group| {
        for round in 1..50 {
            came.fetch_add(1, Ordering::SeqCst);
            group.barrier("first").unwrap();
            assert_eq!(came.load(Ordering::SeqCst), 4 * round);
            group.barrier("second").unwrap();
        }
        group.leave().unwrap();
    });
}
