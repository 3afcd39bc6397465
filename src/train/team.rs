//! The ranks of a run, or its only process.
//!
//! All ranks run the same loop over the same recipe, each on its share of every batch. They make the same decisions,
//! because these depend only on values summed over all ranks. Only rank 0 writes files and reports. Besides the sums of
//! gradients, the ranks exchange a few values over the group's control connection: whether any rank was asked to stop,
//! the counts of an evaluation, a micro-batch that fits on all of them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::TrainError;
use crate::data::Share;
use crate::ops::OpsError;
use crate::parallel::{Group, GroupError, Identity, Membership, World};

/// See the module's description. Without a group, every method returns this process's own value.
#[derive(Clone, Default)]
pub struct Team {
    group: Option<Arc<Group>>,
}

type Result<T = ()> = std::result::Result<T, GroupError>;

impl Team {
    /// Waits for the other ranks, if there are any, unless `stop` is set.
    ///
    /// # Errors
    /// If a rank does not connect or runs something else; see [`GroupError`].
    pub fn join(
        membership: Option<&Membership>,
        identity: impl FnOnce() -> Identity,
        stop: &AtomicBool,
    ) -> Result<Team> {
        let group =
            membership.map(|membership| Group::join_unless(membership, identity(), stop)).transpose()?;
        Ok(Team { group })
    }

    pub fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    pub fn world(&self) -> World {
        self.group.as_ref().map_or(World::ALONE, |group| group.world())
    }

    /// This rank's share of every batch.
    pub fn share(&self) -> Share {
        let World { rank, size, .. } = self.world();
        Share { part: rank, parts: size }
    }

    /// Whether this process writes files and reports.
    pub fn leads(&self) -> bool {
        self.world().leads()
    }

    /// Records what this rank does now, for messages and the watchdog.
    pub fn doing(&self, step: u64, what: &'static str) {
        if let Some(group) = &self.group {
            group.doing(step, what);
        }
    }

    /// Tells the watchdog that this rank makes progress.
    ///
    /// # Errors
    /// [`GroupError::Stopped`] if any rank has failed.
    pub fn progress(&self) -> Result {
        let Some(group) = &self.group else { return Ok(()) };
        group.progress();
        group.stopped().map_or(Ok(()), |stopped| Err(GroupError::Stopped(stopped)))
    }

    /// Whether `own` is true at any rank.
    pub fn any(&self, what: &'static str, own: bool) -> Result<bool> {
        self.group.as_ref().map_or(Ok(own), |group| group.any(what, own))
    }

    /// Sends the question of [`Team::any`] without waiting, so that it is answered while a step is computed.
    pub fn ask(&self, what: &'static str, own: bool) -> Result {
        self.group.as_ref().map_or(Ok(()), |group| group.post(what, &[own.into()]))
    }

    /// The answer to [`Team::ask`]; none without a group.
    pub fn answer(&self) -> Result<Option<bool>> {
        let answers = self.group.as_ref().map(|group| group.collect()).transpose()?;
        Ok(answers.map(|all| all.iter().any(|answer| answer.contains(&1))))
    }

    /// The least number of all ranks.
    pub fn least(&self, what: &'static str, own: usize) -> Result<usize> {
        let Some(group) = &self.group else { return Ok(own) };
        let all = group.exchange(what, &(own as u64).to_le_bytes())?;
        Ok(all.iter().filter_map(|bytes| number(bytes)).min().map_or(own, |least| least as usize))
    }

    /// The bytes of every rank, in rank order.
    pub fn gather(&self, what: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.group.as_ref().map_or_else(|| Ok(vec![own.to_vec()]), |group| group.exchange(what, own))
    }

    /// Stops the other ranks with this rank's error, unless they are stopped already.
    pub fn fail(&self, error: &TrainError) {
        match (&self.group, error) {
            (None, _) => {}
            // A broken connection is the fault of another rank, which may still report its error.
            (Some(group), TrainError::Ops(OpsError::Rank(text))) => drop(group.suspect(text.clone())),
            (Some(group), error) => drop(group.fail(error.to_string())),
        }
    }

    /// Ends this rank's part in the run. After success the rank leaves the group; after an error it stops the other
    /// ranks. The first error, from whichever rank, is returned by all ranks.
    pub fn conclude<T>(
        &self,
        outcome: std::result::Result<T, TrainError>,
    ) -> std::result::Result<T, TrainError> {
        let Some(group) = &self.group else { return outcome };
        let error = match outcome {
            Ok(value) => match group.leave() {
                Ok(()) => return Ok(value),
                Err(error) => error.into(),
            },
            Err(error) => error,
        };
        self.fail(&error);
        let own = group.stopped().is_none_or(|stopped| stopped.rank == group.world().rank);
        let told = !group.prints_error();
        match group.stopped() {
            Some(stopped) if !own || told => Err(TrainError::Rank { stopped, told }),
            _ => Err(error),
        }
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Runs `work` on each of two ranks, which are threads of this process.
    fn two<T: Send>(work: impl Fn(usize, Team) -> T + Sync) -> [T; 2] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = |rank: usize| {
            let membership = Membership::local(rank, 2, &listener).unwrap();
            let team = Team::join(Some(&membership), Identity::default, &AtomicBool::new(false));
            work(rank, team.unwrap())
        };
        std::thread::scope(|scope| {
            let one = &one;
            [0, 1].map(|rank| scope.spawn(move || one(rank))).map(|rank| rank.join().unwrap())
        })
    }

    /// An error that only the group notices is reported as it is, not as a rank that disappeared.
    #[test]
    fn conclude_reports_an_error_of_leaving_the_group() {
        let lines = two(|rank, team| {
            if rank == 1 {
                team.ask("a last question", false).unwrap();
                return team.conclude(Ok(())).unwrap_err().to_string();
            }
            loop {
                if let Err(error) = team.progress() {
                    return error.to_string();
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        for line in lines {
            assert!(line.contains("rank 1 (host ") && line.ends_with("is not collected"), "{line}");
        }
    }
}
