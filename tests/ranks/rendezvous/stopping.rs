//! The first error stops all.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use effnet::parallel::{Cause, Membership};

use super::{here, ranks, seconds, some_ranks, stopped};

#[test]
fn an_error_reaches_everybody_as_the_first() {
    // Ranks end only when the others have come out of the barrier: a stop overtakes its result.
    let all = Barrier::new(4);
    let lines = ranks(4, |group| {
        let rank = group.world().rank;
        let hooks = Arc::new(AtomicUsize::new(0));
        let count = hooks.clone();
        group.on_stop(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        group.doing(17, "reading shards");
        assert!(group.stopped().is_none());
        group.barrier("all are here").unwrap();
        all.wait();
        if rank == 2 {
            assert!(group.fail("train-0003.shard is damaged"));
        }
        // Others are blocked when it comes, or come later.
        let line = stopped(group);
        assert!(group.fail("a later error"), "rank 0 knows of an error");
        let first = group.stopped().unwrap();
        assert_eq!((first.rank, first.step, first.cause), (2, 17, Cause::Failed));
        assert_eq!((first.what.as_str(), first.pid), ("reading shards", std::process::id()));
        assert_eq!(first.message, "train-0003.shard is damaged");
        assert_eq!(group.tells(), rank == 0);
        assert!(group.leave().unwrap_err().stopped().is_some());
        // Hooks run on another thread, soon; one that comes late, at once.
        let start = Instant::now();
        while hooks.load(Ordering::SeqCst) == 0 && start.elapsed() < seconds(10) {
            thread::sleep(Duration::from_millis(5));
        }
        let count = hooks.clone();
        group.on_stop(Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }));
        assert_eq!(hooks.load(Ordering::SeqCst), 2);
        assert_eq!(
            line,
            format!("{} in step 17, reading shards: train-0003.shard is damaged", here(2, group))
        );
        line
    });
    assert!(lines.iter().all(|line| *line == lines[0]));
}

#[test]
fn rank_0_may_be_the_one_that_fails_and_ends_at_once() {
    let lines = ranks(3, |group| {
        if group.world().leads() {
            assert!(group.fail("the disk is full"));
            return "the disk is full".into();
        }
        stopped(group)
    });
    assert!(lines.iter().all(|line| line.ends_with("the disk is full")), "{lines:?}");
}

#[test]
fn of_two_errors_all_ranks_hear_of_the_same() {
    // Ranks end only when the others have come out of the barrier: a stop overtakes its result.
    let all = Barrier::new(3);
    let lines = ranks(3, |group| {
        let rank = group.world().rank;
        group.barrier("all are here").unwrap();
        all.wait();
        if rank > 0 {
            assert!(group.fail(format!("error of rank {rank}")));
        }
        stopped(group)
    });
    assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
}

#[test]
fn a_rank_that_ends_without_a_word_is_named() {
    // Ranks end only when the others have come out of the barrier: a stop overtakes its result.
    let all = Barrier::new(3);
    for gone in [0, 2] {
        let lines = ranks(3, |group| {
            group.doing(17, "training");
            group.barrier("all are here").unwrap();
            all.wait();
            let expected = format!("{} ended without a word; it was in step 17: training", here(gone, group));
            // Dropped, as when a thread panics.
            let line = if group.world().rank == gone { expected.clone() } else { String::new() };
            (line, expected, (group.world().rank != gone).then(|| group.clone()))
        });
        for (line, expected, group) in lines {
            if let Some(group) = group {
                assert_eq!(stopped(&group), expected);
                assert_eq!(group.stopped().unwrap().cause, Cause::Ended);
            } else {
                assert_eq!(line, expected);
            }
        }
    }
}

#[test]
fn an_error_that_is_a_consequence_gives_way_to_its_cause() {
    // Ranks end only when the others have come out of the barrier: a stop overtakes its result.
    let all = Barrier::new(3);
    let lines = ranks(3, |group| {
        group.doing(3, "training");
        group.barrier("all are here").unwrap();
        all.wait();
        match group.world().rank {
            1 => thread::sleep(Duration::from_millis(300)),
            2 => assert!(group.suspect("the connection to rank 1 has ended")),
            _ => return stopped(group),
        }
        String::new()
    });
    assert!(lines[0].starts_with("rank 1 ") && lines[0].contains("ended without a word"), "{}", lines[0]);
    // Where no cause is found, it stands for itself.
    let lines = ranks(2, |group| {
        if group.world().rank == 1 {
            assert!(group.suspect("the connection to rank 0 has ended"));
        }
        stopped(group)
    });
    assert!(lines.iter().all(|line| line.ends_with("the connection to rank 0 has ended")), "{lines:?}");
}

#[test]
fn ranks_at_different_places_are_named() {
    for line in ranks(3, |group| {
        let what = if group.world().rank == 1 { "learning rate" } else { "loss" };
        let line = group.barrier(what).unwrap_err().to_string();
        assert_eq!(group.stopped().unwrap().cause, Cause::Mismatch);
        line
    }) {
        let odd = line.find("rank 1 (host ").unwrap();
        assert!(line[odd..].split(" while ").next().unwrap().contains("is at `learning rate`"), "{line}");
        assert!(line.contains("is at `loss`") && line.ends_with("; ranks must do the same"), "{line}");
    }
}

#[test]
fn an_exchange_with_a_rank_that_has_left_is_an_error() {
    let left = Barrier::new(3);
    let lines = ranks(3, |group| {
        if group.world().rank == 1 {
            group.leave().unwrap();
            left.wait();
            return String::new();
        }
        left.wait();
        stopped(group)
    });
    for line in [&lines[0], &lines[2]] {
        assert!(line.contains("is at `after the stop` while rank 1 (host "), "{line}");
        assert!(line.contains(" has left; "), "{line}");
    }
}

/// A group in which ranks may stand still for two seconds.
fn watched(size: usize, rank: impl Fn(&effnet::parallel::Group) -> String + Sync) -> Vec<String> {
    let numbers: Vec<usize> = (0..size).collect();
    let short = |_, membership: &mut Membership, _: &mut _| membership.watchdog = seconds(2);
    some_ranks((&numbers, size), &short, |_, group| rank(&group.unwrap()))
}

#[test]
fn a_rank_that_stands_still_is_named_by_those_who_wait() {
    let lines = watched(3, |group| {
        match group.world().rank {
            // Waits outside of an exchange.
            0 => group.waiting(true),
            2 => {
                group.doing(17, "loading images");
                while group.stopped().is_none() {
                    thread::sleep(Duration::from_millis(10));
                }
            }
            _ => {}
        }
        let line = stopped(group);
        assert_eq!(group.stopped().unwrap().cause, Cause::Stalled);
        line
    });
    for line in lines {
        assert!(line.starts_with("rank 2 (host "), "{line}");
        assert!(line.ends_with(" has not moved for 2 s; it was in step 17: loading images"), "{line}");
    }
}

#[test]
fn where_all_wait_it_is_the_one_that_owes_its_part() {
    let lines = watched(2, |group| {
        if group.world().rank == 1 {
            group.doing(4, "summing gradients");
            group.waiting(true);
            while group.stopped().is_none() {
                thread::sleep(Duration::from_millis(10));
            }
        }
        stopped(group)
    });
    for line in lines {
        assert!(
            line.starts_with("rank 1 (host ") && line.ends_with("in step 4: summing gradients"),
            "{line}"
        );
    }
}

#[test]
fn a_rank_that_moves_may_take_its_time() {
    watched(2, |group| {
        if group.world().rank == 1 {
            let start = Instant::now();
            while start.elapsed() < seconds(4) {
                group.progress();
                thread::sleep(Duration::from_millis(10));
            }
        }
        group.barrier("at last").unwrap();
        group.leave().unwrap();
        String::new()
    });
}

#[test]
fn rank_0_leaves_last_and_may_wait_for_long() {
    let leaving = AtomicUsize::new(0);
    watched(3, |group| {
        if !group.world().leads() {
            let start = Instant::now();
            while start.elapsed() < seconds(4) {
                group.progress();
                thread::sleep(Duration::from_millis(10));
            }
            leaving.fetch_add(1, Ordering::SeqCst);
        }
        group.leave().unwrap();
        if group.world().leads() {
            assert_eq!(leaving.load(Ordering::SeqCst), 2);
        }
        String::new()
    });
}

#[test]
fn a_rank_0_that_waits_for_the_last_to_leave_hears_of_their_errors() {
    let lines = ranks(2, |group| {
        if group.world().leads() {
            return group.leave().unwrap_err().to_string();
        }
        thread::sleep(Duration::from_millis(300));
        assert!(group.fail("the last image is damaged"));
        stopped(group)
    });
    assert!(lines.iter().all(|line| line.ends_with("the last image is damaged")), "{lines:?}");
}
