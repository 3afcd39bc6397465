//! How the ranks have ended, and the launcher's own exit status and error.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use signal_hook::consts::SIGTERM;
use signal_hook::low_level::signal_name;

/// The exit status of a run that was interrupted and has saved.
const INTERRUPTED: i32 = 130;
/// The exit status for a command line that cannot be carried out.
const USAGE: i32 = 2;

/// How one rank ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Status(i32),
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Exit {
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Status(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Exit::Status(status) => write!(f, "ended with status {status}"),
            Exit::Signal(signal) => match signal_name(signal) {
                Some(name) => write!(f, "was ended by signal {signal} ({name})"),
                None => write!(f, "was ended by signal {signal}"),
            },
        }
    }
}

impl Exit {
    /// Finished, or interrupted and saved.
    fn is_good(self) -> bool {
        matches!(self, Exit::Status(0 | INTERRUPTED))
    }
}

/// How the ranks of this machine have ended so far, in that order.
#[derive(Debug)]
pub struct Exits {
    /// The rank, among all ranks, of this machine's first.
    first: usize,
    exits: Vec<(usize, Exit)>,
    /// The user has asked the run to end.
    pub interrupted: bool,
    /// The user has asked again, and the ranks were killed.
    pub killed: bool,
    /// The launcher has signalled ranks that did not end by themselves after another one had failed.
    pub pressed: bool,
}

impl Exits {
    pub fn new(first: usize) -> Exits {
        Exits { first, exits: Vec::new(), interrupted: false, killed: false, pressed: false }
    }

    /// Adds a rank. True if it failed, so that the others must end too. After a rank that has saved, the others have all
    /// the time they need: rank 0 may still be writing.
    pub fn add(&mut self, local: usize, exit: Exit) -> bool {
        self.exits.push((self.first + local, exit));
        !exit.is_good()
    }

    /// The exit status of the launcher.
    pub fn status(&self) -> u8 {
        let all = |good: &dyn Fn(Exit) -> bool| self.exits.iter().all(|(_, exit)| good(*exit));
        if self.killed {
            INTERRUPTED as u8
        } else if all(&|exit| exit == Exit::Status(0)) {
            0
        } else if all(&|exit| exit.is_good() || (self.interrupted && exit == Exit::Signal(SIGTERM))) {
            // SIGTERM ends a rank that has not started to train yet. There is nothing to save then.
            INTERRUPTED as u8
        } else if self.exits.iter().any(|(_, exit)| *exit == Exit::Status(USAGE)) {
            USAGE as u8
        } else {
            1
        }
    }

    /// The launcher's error line, if no rank can print it. Rank 0 reports for all ranks, unless a signal ended it; then
    /// another rank may have reported through the launcher (`reported`). On a machine without rank 0, rank 0 reports
    /// elsewhere, but a failure must not be silent.
    pub fn error(&self, reported: bool) -> Option<String> {
        const GO_ON: &str = "the last checkpoint is intact: go on with --resume";
        if reported || self.killed || matches!(self.status(), 0 | 130) {
            return None;
        }
        let &(rank, exit) = self.exits.iter().find(|(_, exit)| !exit.is_good())?;
        let line = match (exit, self.of_rank_0()) {
            (Exit::Status(_), None) => format!("rank {rank} {exit}; rank 0 says why, on its machine"),
            (Exit::Signal(_), None) => format!("rank {rank} {exit}; {GO_ON}"),
            // Rank 0 was still waiting for the others when the launcher stopped it, and knows of no error.
            (_, Some(Exit::Status(INTERRUPTED))) if self.pressed && !self.interrupted => {
                format!("rank {rank} {exit}; {GO_ON}")
            }
            (_, Some(Exit::Status(_))) => return None,
            (_, Some(of_rank_0)) if rank == 0 || !self.pressed => format!("rank 0 {of_rank_0}; {GO_ON}"),
            (_, Some(_)) => format!("rank {rank} {exit}, and rank 0 had to be stopped; {GO_ON}"),
        };
        Some(format!("error: {line}"))
    }

    fn of_rank_0(&self) -> Option<Exit> {
        self.exits.iter().find(|(rank, _)| *rank == 0).map(|&(_, exit)| exit)
    }
}

#[cfg(test)]
mod tests {
    use Exit::{Signal, Status};

    use super::*;

    fn exits(first: usize, added: &[(usize, Exit)]) -> Exits {
        let mut exits = Exits::new(first);
        for &(local, exit) in added {
            exits.add(local, exit);
        }
        exits
    }

    #[test]
    fn status_is_one_for_all_ranks() {
        for (both, status) in [
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
            assert_eq!(exits(0, &[(0, both[0]), (1, both[1])]).status(), status, "{both:?}");
        }
        let interrupted = Exits { interrupted: true, ..exits(0, &[(0, Signal(15)), (1, Status(130))]) };
        assert_eq!((interrupted.status(), interrupted.error(false)), (130, None));
        let killed = Exits { killed: true, ..exits(0, &[(0, Signal(9)), (1, Status(1))]) };
        assert_eq!((killed.status(), killed.error(false)), (130, None));
    }

    #[test]
    fn failed_rank_ends_the_others() {
        let mut exits = Exits::new(0);
        let failed = [Status(0), Status(130), Status(1), Status(2), Signal(9)].map(|exit| exits.add(0, exit));
        assert_eq!(failed, [false, false, true, true, true]);
    }

    #[test]
    fn error_is_the_launcher_s_if_rank_0_cannot_print_it() {
        let error = |added: &[(usize, Exit)]| exits(0, added).error(false);
        let expected = "error: rank 0 was ended by signal 9 (SIGKILL); the last checkpoint is intact: go on with \
            --resume";
        assert_eq!(error(&[(0, Signal(9)), (1, Status(1))]).as_deref(), Some(expected));
        assert_eq!(error(&[(1, Signal(9)), (0, Status(1))]), None);
        assert_eq!(error(&[(1, Status(1)), (0, Status(1))]), None);
        assert_eq!(error(&[(0, Status(0)), (1, Status(0))]), None);
        let stuck = Exits { pressed: true, ..exits(0, &[(1, Signal(11)), (0, Signal(9))]) };
        let error = stuck.error(false).unwrap();
        assert!(
            error.contains("rank 1 was ended by signal 11 (SIGSEGV), and rank 0 had to be stopped"),
            "{error}"
        );
        // Rank 0 was still waiting for the killed rank, and ended when the launcher asked it to.
        let early = [(3, Signal(9)), (0, Status(130)), (1, Status(130))];
        let early = Exits { pressed: true, ..exits(0, &early) };
        let error = early.error(false).unwrap();
        assert!(error.contains("rank 3 was ended by signal 9") && early.status() == 1, "{error}");
    }

    #[test]
    fn error_on_a_machine_without_rank_0() {
        let error = |exit, reported| exits(4, &[(1, exit), (0, Status(1))]).error(reported);
        let line = error(Signal(9), false).unwrap();
        assert!(line.starts_with("error: rank 5 was ended by signal 9 (SIGKILL)"), "{line}");
        assert!(error(Status(1), false).unwrap().contains("rank 0 says why"));
        assert_eq!(error(Status(1), true), None);
    }
}
