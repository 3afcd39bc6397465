//! How ranks have ended, and what the launcher makes of it.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use signal_hook::consts::SIGTERM;
use signal_hook::low_level::signal_name;

/// The status of a run that was interrupted and has saved.
const INTERRUPTED: i32 = 130;
/// The status of a command line that asks for what cannot be done.
const USAGE: i32 = 2;

/// How one rank ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Status(i32),
    Signal(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Ended {
        match (status.code(), status.signal()) {
            (Some(code), _) => Ended::Status(code),
            (None, signal) => Ended::Signal(signal.unwrap_or(0)),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ended::Status(status) => write!(f, "ended with status {status}"),
            Ended::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "was ended by signal {signal} ({name})"),
                None => write!(f, "was ended by signal {signal}"),
            },
        }
    }
}

/// How the ranks of this machine have ended so far, in that order.
#[derive(Debug)]
pub struct Ends {
    /// The number, in all, of this machine's first rank.
    first: usize,
    ended: Vec<(usize, Ended)>,
    /// The user asked for the end, once, and twice.
    pub interrupted: bool,
    pub killed: bool,
    /// Ranks were ended that would not end by themselves after another had failed.
    pub pressed: bool,
}

impl Ends {
    pub fn new(first: usize) -> Ends {
        Ends { first, ended: Vec::new(), interrupted: false, killed: false, pressed: false }
    }

    /// True if it ended badly, so that the others have to end too. One that has saved and ended leaves others their
    /// time: rank 0 may be writing still.
    pub fn add(&mut self, local: usize, end: Ended) -> bool {
        self.ended.push((self.first + local, end));
        !matches!(end, Ended::Status(0 | INTERRUPTED))
    }

    pub fn status(&self) -> u8 {
        // Before a rank has got as far as to save on SIGTERM, that ends it; nothing is lost.
        let saved = |end: &Ended| *end == Ended::Status(INTERRUPTED) || *end == Ended::Signal(SIGTERM);
        let ended = || self.ended.iter().map(|(_, end)| end);
        match () {
            () if self.killed => INTERRUPTED as u8,
            () if ended().all(|end| *end == Ended::Status(0)) => 0,
            () if self.interrupted && ended().all(|end| *end == Ended::Status(0) || saved(end)) => {
                INTERRUPTED as u8
            }
            () if ended().all(|end| matches!(end, Ended::Status(0 | INTERRUPTED))) => INTERRUPTED as u8,
            () if ended().any(|end| *end == Ended::Status(USAGE)) => USAGE as u8,
            () => 1,
        }
    }

    /// What nobody else can say: rank 0 tells of itself and of the others, unless a signal has ended it, and then others
    /// may have told that by way of the launcher (`told`). On a machine without rank 0 all is said elsewhere, but a
    /// failure must not be mute.
    pub fn last_word(&self, told: bool) -> Option<String> {
        const GO_ON: &str = "the last checkpoint is intact: go on with --resume";
        if self.killed || matches!(self.status(), 0 | 130) {
            return None;
        }
        let bad = |end: &Ended| !matches!(end, Ended::Status(0 | INTERRUPTED));
        let &(rank, end) = self.ended.iter().find(|(_, end)| bad(end))?;
        let line = match (end, self.of_rank_0()) {
            _ if told => return None,
            (Ended::Status(_), None) => format!("rank {rank} {end}; rank 0 says why, on its machine"),
            (Ended::Signal(_), None) => format!("rank {rank} {end}; {GO_ON}"),
            // It waited for the others when it was stopped, and knows of nothing.
            (_, Some(Ended::Status(INTERRUPTED))) if self.pressed && !self.interrupted => {
                format!("rank {rank} {end}; {GO_ON}")
            }
            (_, Some(Ended::Status(_))) => return None,
            (_, Some(Ended::Signal(_))) if rank == 0 || !self.pressed => {
                let end = self.of_rank_0()?;
                format!("rank 0 {end}; {GO_ON}")
            }
            (_, Some(Ended::Signal(_))) => {
                format!("rank {rank} {end}, and rank 0 had to be stopped; {GO_ON}")
            }
        };
        Some(format!("error: {line}"))
    }

    fn of_rank_0(&self) -> Option<Ended> {
        self.ended.iter().find(|(rank, _)| *rank == 0).map(|&(_, end)| end)
    }
}

#[cfg(test)]
mod tests {
    use Ended::{Signal, Status};

    use super::*;

    fn ends(first: usize, ended: &[(usize, Ended)]) -> Ends {
        let mut ends = Ends::new(first);
        for &(local, end) in ended {
            ends.add(local, end);
        }
        ends
    }

    #[test]
    fn one_status_stands_for_all() {
        for (ended, status) in [
            ([Status(0), Status(0)], 0),
            ([Status(130), Status(130)], 130),
            ([Status(0), Status(130)], 130),
            ([Status(0), Status(1)], 1),
            ([Status(2), Status(1)], 2),
            ([Status(2), Status(130)], 2),
            ([Signal(9), Status(0)], 1),
            ([Signal(15), Status(130)], 1),
            ([Status(101), Status(0)], 1),
        ] {
            assert_eq!(ends(0, &[(0, ended[0]), (1, ended[1])]).status(), status, "{ended:?}");
        }
        let asked = Ends { interrupted: true, ..ends(0, &[(0, Signal(15)), (1, Status(130))]) };
        assert_eq!((asked.status(), asked.last_word(false)), (130, None));
        let killed = Ends { killed: true, ..ends(0, &[(0, Signal(9)), (1, Status(1))]) };
        assert_eq!((killed.status(), killed.last_word(false)), (130, None));
    }

    #[test]
    fn only_bad_ends_hurry_the_others() {
        let mut ends = Ends::new(0);
        let bad = [Status(0), Status(130), Status(1), Status(2), Signal(9)].map(|end| ends.add(0, end));
        assert_eq!(bad, [false, false, true, true, true]);
    }

    #[test]
    fn the_launcher_speaks_where_rank_0_cannot() {
        let word = |ended: &[(usize, Ended)]| ends(0, ended).last_word(false);
        let expected = "error: rank 0 was ended by signal 9 (SIGKILL); the last checkpoint is intact: go on with \
            --resume";
        assert_eq!(word(&[(0, Signal(9)), (1, Status(1))]).as_deref(), Some(expected));
        assert_eq!(word(&[(1, Signal(9)), (0, Status(1))]), None);
        assert_eq!(word(&[(1, Status(1)), (0, Status(1))]), None);
        assert_eq!(word(&[(0, Status(0)), (1, Status(0))]), None);
        let stuck = Ends { pressed: true, ..ends(0, &[(1, Signal(11)), (0, Signal(9))]) };
        let word = stuck.last_word(false).unwrap();
        assert!(
            word.contains("rank 1 was ended by signal 11 (SIGSEGV), and rank 0 had to be stopped"),
            "{word}"
        );
        // Rank 0 was still waiting for the one that went, and ended when it was told to.
        let ended = [(3, Signal(9)), (0, Status(130)), (1, Status(130))];
        let early = Ends { pressed: true, ..ends(0, &ended) };
        let word = early.last_word(false).unwrap();
        assert!(word.contains("rank 3 was ended by signal 9") && early.status() == 1, "{word}");
    }

    #[test]
    fn a_machine_without_rank_0_is_not_mute() {
        let word = |end, told| ends(4, &[(1, end), (0, Status(1))]).last_word(told);
        assert!(word(Signal(9), false).unwrap().starts_with("error: rank 5 was ended by signal 9 (SIGKILL)"));
        assert!(word(Status(1), false).unwrap().contains("rank 0 says why"));
        assert_eq!(word(Status(1), true), None);
    }
}
