//! Who stands still.

use std::time::Duration;

/// How a rank stands, seen from the service.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub rank: usize,
    /// Since anything was heard of it.
    pub silent: Duration,
    /// Since it moved.
    pub still: Duration,
    /// It waits for other ranks.
    pub waiting: bool,
    /// It has given its part to the exchange that goes on.
    pub posted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Silent,
    Still,
}

/// The rank that holds the others up, if one does so for longer than `limit`, and how.
///
/// Who is not heard of comes first, then who stands still and does not wait for others. Where all wait for each other,
/// it is the one that has stood longest, of those that still owe their part of an exchange if there are such.
pub fn culprit(ranks: &[Standing], limit: Duration) -> Option<(usize, Verdict)> {
    if let Some(silent) = ranks.iter().filter(|of| of.silent > limit).max_by_key(|of| of.silent) {
        return Some((silent.rank, Verdict::Silent));
    }
    let still = |of: &&Standing| of.still > limit;
    let idle = ranks.iter().filter(still).filter(|of| !of.waiting).max_by_key(|of| of.still);
    let stuck = || ranks.iter().max_by_key(|of| (!of.posted, of.still));
    let all = || ranks.iter().all(|of| of.waiting && of.still > limit);
    let found = idle.or_else(|| all().then(stuck).flatten());
    found.map(|of| (of.rank, Verdict::Still))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(rank: usize, silent: u64, still: u64, waiting: bool) -> Standing {
        let [silent, still] = [silent, still].map(Duration::from_secs);
        Standing { rank, silent, still, waiting, posted: false }
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn who_moves_or_waits_for_one_that_moves_is_left_alone() {
        let ranks = [standing(0, 0, 99, true), standing(1, 1, 9, false), standing(2, 10, 10, false)];
        assert_eq!(culprit(&ranks, LIMIT), None);
        assert_eq!(culprit(&[], LIMIT), None);
    }

    #[test]
    fn the_silent_come_first_then_those_that_do_not_wait() {
        let mut ranks = [standing(0, 0, 99, true), standing(1, 0, 20, false), standing(2, 0, 30, false)];
        assert_eq!(culprit(&ranks, LIMIT), Some((2, Verdict::Still)));
        ranks[1].silent = Duration::from_secs(11);
        assert_eq!(culprit(&ranks, LIMIT), Some((1, Verdict::Silent)));
    }

    #[test]
    fn where_all_wait_it_is_the_one_that_stood_longest() {
        let mut ranks = [standing(0, 0, 11, true), standing(1, 0, 30, true), standing(2, 0, 20, true)];
        assert_eq!(culprit(&ranks, LIMIT), Some((1, Verdict::Still)));
        ranks[1].posted = true;
        assert_eq!(culprit(&ranks, LIMIT), Some((2, Verdict::Still)));
        ranks[0].still = Duration::from_secs(9);
        assert_eq!(culprit(&ranks, LIMIT), None);
    }
}
