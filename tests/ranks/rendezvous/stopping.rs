//! The first error stops all ranks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use effnet::parallel::{Cause, Group, Membership};

use super::{barrier, own_name, ranks, seconds, some_ranks, stopped};

/// Runs `rank` as each rank of a group, once all ranks have passed a barrier: a stop may arrive before its result.
fn started_ranks<T: Send>(size: usize, rank: impl Fn(&Arc<Group>) -> T + Sync) -> Vec<T> {
    let all = Barrier::new(size);
    ranks(size, |group| {
        group.doing(17, "training");
        barrier(group, "all are here").unwrap();
        all.wait();
        rank(group)
    })
}

#[test]
fn error_reaches_all_ranks_as_the_first() {
    let lines = started_ranks(4, |group| {
        let rank = group.world().rank;
        let hooks = Arc::new(AtomicUsize::new(0));
        let count = hooks.clone();
        let hook = move || {
            count.fetch_add(1, Ordering::SeqCst);
        };
        group.on_stop(Box::new(hook.clone()));
        group.doing(17, "reading shards");
        if rank == 2 {
            assert!(group.fail("train-0003.shard is damaged"));
        }
        // Other ranks may be blocked when the stop arrives, or call this later.
        let line = stopped(group);
        assert!(group.fail("a later error"), "rank 0 knows of an error");
        let first = group.stopped().unwrap();
        assert_eq!((first.rank, first.step, first.cause), (2, 17, Cause::Failed));
        assert_eq!((first.what.as_str(), first.pid), ("reading shards", std::process::id()));
        assert_eq!(first.message, "train-0003.shard is damaged");
        assert_eq!(group.prints_error(), rank == 0);
        assert!(group.leave().unwrap_err().stopped().is_some());
        // A hook runs on another thread soon after the stop; a hook that is set after the stop runs at once.
        let start = Instant::now();
        while hooks.load(Ordering::SeqCst) == 0 && start.elapsed() < seconds(10) {
            thread::sleep(Duration::from_millis(5));
        }
        group.on_stop(Box::new(hook));
        assert_eq!(hooks.load(Ordering::SeqCst), 2);
        assert_eq!(line, format!("{} in step 17, reading shards: train-0003.shard is damaged", own_name(2)));
        line
    });
    assert!(lines.iter().all(|line| *line == lines[0]));
}

#[test]
fn error_of_rank_0_reaches_all_ranks_if_it_ends_at_once() {
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
fn error_is_the_same_at_all_ranks_if_two_fail() {
    let lines = started_ranks(3, |group| {
        let rank = group.world().rank;
        if rank > 0 {
            assert!(group.fail(format!("error of rank {rank}")));
        }
        stopped(group)
    });
    assert!(lines.iter().all(|line| *line == lines[0]), "{lines:?}");
}

#[test]
fn rank_that_ends_without_a_message_is_named() {
    for gone in [0, 2] {
        // The group of this rank is dropped, as when its thread panics.
        let groups = started_ranks(3, |group| (group.world().rank != gone).then(|| group.clone()));
        for group in groups.into_iter().flatten() {
            let expected = format!("{} ended without a message; it was in step 17: training", own_name(gone));
            assert_eq!(stopped(&group), expected);
            assert_eq!(group.stopped().unwrap().cause, Cause::Ended);
        }
    }
}

#[test]
fn consequence_gives_way_to_its_cause() {
    let lines = started_ranks(3, |group| {
        match group.world().rank {
            1 => thread::sleep(Duration::from_millis(300)),
            2 => assert!(group.suspect("the connection to rank 1 has ended")),
            _ => return stopped(group),
        }
        String::new()
    });
    assert!(lines[0].starts_with(&format!("{} ended without a message", own_name(1))), "{}", lines[0]);
    // Without a cause, it is the error itself.
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
        let line = barrier(group, what).unwrap_err().to_string();
        assert_eq!(group.stopped().unwrap().cause, Cause::Mismatch);
        line
    }) {
        let odd = line.find("rank 1 (host ").unwrap();
        assert!(line[odd..].split(" while ").next().unwrap().contains("is at `learning rate`"), "{line}");
        assert!(line.contains("is at `loss`") && line.ends_with("; ranks must do the same"), "{line}");
    }
}

#[test]
fn exchange_with_a_rank_that_has_left_is_an_error() {
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
        assert!(line.contains(&format!("is at `after the stop` while {} has left; ", own_name(1))), "{line}");
    }
}

/// A group in which ranks must make progress every two seconds.
fn watched<T: Send>(size: usize, rank: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let numbers: Vec<usize> = (0..size).collect();
    let short = |_, membership: &mut Membership, _: &mut _| membership.watchdog = seconds(2);
    some_ranks((&numbers, size), &short, |_, group| rank(&group.unwrap()))
}

/// Longer than the watchdog allows without progress.
fn work_for_long(group: &Group) {
    let start = Instant::now();
    while start.elapsed() < seconds(4) {
        group.progress();
        thread::sleep(Duration::from_millis(10));
    }
}

fn hang_until_stopped(group: &Group) {
    while group.stopped().is_none() {
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn idle_rank_is_named_if_others_wait_for_it() {
    let lines = watched(3, |group| {
        match group.world().rank {
            // Waits outside of an exchange.
            0 => group.waiting(true),
            2 => {
                group.doing(17, "loading images");
                hang_until_stopped(group);
            }
            _ => {}
        }
        let line = stopped(group);
        assert_eq!(group.stopped().unwrap().cause, Cause::Stalled);
        line
    });
    let expected = format!("{} has made no progress for 2 s; it was in step 17: loading images", own_name(2));
    assert!(lines.iter().all(|line| *line == expected), "{lines:?}");
}

#[test]
fn idle_rank_that_owes_its_part_is_named_if_all_wait() {
    let lines = watched(2, |group| {
        if group.world().rank == 1 {
            group.doing(4, "summing gradients");
            group.waiting(true);
            hang_until_stopped(group);
        }
        stopped(group)
    });
    for line in lines {
        assert!(line.starts_with(&own_name(1)) && line.ends_with("in step 4: summing gradients"), "{line}");
    }
}

#[test]
fn watchdog_allows_long_work_with_progress() {
    watched(2, |group| {
        if group.world().rank == 1 {
            work_for_long(group);
        }
        barrier(group, "at last").unwrap();
        group.leave().unwrap();
    });
}

#[test]
fn rank_0_leaves_last_however_long_it_waits() {
    let leaving = AtomicUsize::new(0);
    watched(3, |group| {
        if !group.world().leads() {
            work_for_long(group);
            leaving.fetch_add(1, Ordering::SeqCst);
        }
        group.leave().unwrap();
        if group.world().leads() {
            assert_eq!(leaving.load(Ordering::SeqCst), 2);
        }
    });
}

#[test]
fn rank_0_gets_the_error_of_another_rank_while_it_leaves() {
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
