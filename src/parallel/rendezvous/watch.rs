//! Which rank holds the others up.

use std::time::Duration;

/// How a rank looks from the service.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    pub rank: usize,
    /// Time since anything arrived from it.
    pub silent: Duration,
    /// Time since its last progress.
    pub idle: Duration,
    /// Whether it waits for other ranks.
    pub waiting: bool,
    /// Whether it has given its part to the exchange under way.
    pub posted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    Silent,
    Idle,
}

/// The rank that holds the others up for longer than `limit`, if there is one, and how.
///
/// A silent rank comes first, then a rank that makes no progress without waiting for others. If all ranks wait for each
/// other, it is the one that has waited longest, among those that still owe their part of an exchange if there are any.
pub fn find_stalled(ranks: &[Activity], limit: Duration) -> Option<(usize, Symptom)> {
    if let Some(silent) = ranks.iter().filter(|of| of.silent > limit).max_by_key(|of| of.silent) {
        return Some((silent.rank, Symptom::Silent));
    }
    let working = ranks.iter().filter(|of| of.idle > limit && !of.waiting).max_by_key(|of| of.idle);
    let all_wait = ranks.iter().all(|of| of.waiting && of.idle > limit);
    let longest = || ranks.iter().filter(|_| all_wait).max_by_key(|of| (!of.posted, of.idle));
    working.or_else(longest).map(|of| (of.rank, Symptom::Idle))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(rank: usize, silent: u64, idle: u64, waiting: bool) -> Activity {
        let [silent, idle] = [silent, idle].map(Duration::from_secs);
        Activity { rank, silent, idle, waiting, posted: false }
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn stalled_is_no_rank_that_works_or_waits_for_one_that_does() {
        let ranks = [activity(0, 0, 99, true), activity(1, 1, 9, false), activity(2, 10, 10, false)];
        assert_eq!(find_stalled(&ranks, LIMIT), None);
        assert_eq!(find_stalled(&[], LIMIT), None);
    }

    #[test]
    fn stalled_is_a_silent_rank_before_one_that_does_not_wait() {
        let mut ranks = [activity(0, 0, 99, true), activity(1, 0, 20, false), activity(2, 0, 30, false)];
        assert_eq!(find_stalled(&ranks, LIMIT), Some((2, Symptom::Idle)));
        ranks[1].silent = Duration::from_secs(11);
        assert_eq!(find_stalled(&ranks, LIMIT), Some((1, Symptom::Silent)));
    }

    #[test]
    fn stalled_is_the_longest_idle_rank_if_all_wait() {
        let mut ranks = [activity(0, 0, 11, true), activity(1, 0, 30, true), activity(2, 0, 20, true)];
        assert_eq!(find_stalled(&ranks, LIMIT), Some((1, Symptom::Idle)));
        ranks[1].posted = true;
        assert_eq!(find_stalled(&ranks, LIMIT), Some((2, Symptom::Idle)));
        ranks[0].idle = Duration::from_secs(9);
        assert_eq!(find_stalled(&ranks, LIMIT), None);
    }
}
