//! The ranks of a run, or the one process that it is.
//!
//! All ranks run the same loop over the same recipe, each on its share of every batch, and decide alike, since what
//! they decide by is summed over all. Rank 0 alone writes and tells. What they must agree on beyond the sums of
//! gradients goes over the group's control path: whether anybody was asked to stop, an evaluation's counts, a
//! micro-batch that fits everywhere.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::checkpoint::Checkpoint;
use super::error::TrainError;
use super::recipe::{Recipe, RecipeError};
use crate::data::{Share, Source};
use crate::ops::OpsError;
use crate::parallel::{Group, GroupError, Identity, Membership, World};

/// See the module. Without a group every question has this process's own answer.
#[derive(Clone, Default)]
pub struct Team {
    group: Option<Arc<Group>>,
}

type Result<T = ()> = std::result::Result<T, GroupError>;

impl Team {
    /// Waits for the other ranks, where there are any, unless `stop` is raised.
    ///
    /// # Errors
    /// Where they do not come, or want something else; see [`GroupError`].
    pub fn join(
        membership: Option<&Membership>,
        identity: impl FnOnce() -> Identity,
        stop: &AtomicBool,
    ) -> Result<Team> {
        let join = |membership| Group::join_unless(membership, identity(), stop);
        let group = membership.map(join).transpose()?;
        Ok(Team { group })
    }

    pub fn group(&self) -> Option<&Arc<Group>> {
        self.group.as_ref()
    }

    pub fn world(&self) -> World {
        self.group.as_ref().map_or(World::ALONE, |group| group.world())
    }

    /// This rank's part of every batch.
    pub fn share(&self) -> Share {
        let World { rank, size, .. } = self.world();
        Share { part: rank, parts: size }
    }

    /// Whether this process writes and tells.
    pub fn leads(&self) -> bool {
        self.world().leads()
    }

    /// What this rank does now, for messages and the watchdog.
    pub fn doing(&self, step: u64, what: &'static str) {
        if let Some(group) = &self.group {
            group.doing(step, what);
        }
    }

    /// It moves, unless it has nothing to move for any more.
    ///
    /// # Errors
    /// [`GroupError::Stopped`] where any rank has failed.
    pub fn progress(&self) -> Result {
        let Some(group) = &self.group else { return Ok(()) };
        group.progress();
        group.stopped().map_or(Ok(()), |stopped| Err(GroupError::Stopped(stopped)))
    }

    /// Whether any rank says yes.
    pub fn any(&self, what: &'static str, own: bool) -> Result<bool> {
        self.group.as_ref().map_or(Ok(own), |group| group.any(what, own))
    }

    /// Asks the same in two halves, so that the answer is on its way while a step is computed.
    pub fn ask(&self, what: &'static str, own: bool) -> Result {
        self.group.as_ref().map_or(Ok(()), |group| group.post(what, &[own.into()]))
    }

    /// The answer to [`Team::ask`]; none for a process by itself.
    pub fn answer(&self) -> Result<Option<bool>> {
        let answers = self.group.as_ref().map(|group| group.collect()).transpose()?;
        Ok(answers.map(|all| all.iter().any(|answer| answer.contains(&1))))
    }

    /// The least of all ranks' numbers.
    pub fn least(&self, what: &'static str, own: usize) -> Result<usize> {
        let Some(group) = &self.group else { return Ok(own) };
        let all = group.exchange(what, &(own as u64).to_le_bytes())?;
        Ok(all.iter().filter_map(|bytes| number(bytes)).min().map_or(own, |least| least as usize))
    }

    /// Every rank's bytes, in rank order.
    pub fn gather(&self, what: &'static str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.group.as_ref().map_or_else(|| Ok(vec![own.to_vec()]), |group| group.exchange(what, own))
    }

    /// Stops the others with this rank's error, unless they are stopped already.
    pub fn fail(&self, error: &TrainError) {
        match (&self.group, error) {
            (None, _) => {}
            // A connection that broke off is somebody else's doing, who may still say so.
            (Some(group), TrainError::Ops(OpsError::Rank(text))) => drop(group.suspect(text.clone())),
            (Some(group), error) => drop(group.fail(error.to_string())),
        }
    }

    /// Ends this rank's part in the run as it came out: leaves in order, or stops the others with the first error. That
    /// error, whosever it is, is then every rank's.
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
        let told = !group.tells();
        match group.stopped() {
            Some(stopped) if !own || told => Err(TrainError::Rank { stopped, told }),
            _ => Err(error),
        }
    }
}

fn number(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Cuts the batch among the ranks. Where the micro-batch is free, or cannot stay what it was in the run that goes on,
/// it becomes the largest that each rank's share has room for; says so in words where it changes.
///
/// # Errors
/// A batch that the ranks do not divide, or a micro-batch given that does not divide a rank's share.
pub fn divide(
    recipe: &mut Recipe,
    free: bool,
    saved: Option<&Checkpoint>,
    ranks: usize,
) -> std::result::Result<Option<String>, RecipeError> {
    let (batch_size, micro_batch) = (recipe.batch_size, recipe.micro_batch);
    if !batch_size.is_multiple_of(ranks) {
        return Err(RecipeError::Ranks { batch_size, ranks });
    }
    let share = batch_size / ranks;
    if share.is_multiple_of(micro_batch) {
        return Ok(None);
    }
    if !free {
        return Err(RecipeError::MicroBatchOfRanks { micro_batch, share, batch_size, ranks });
    }
    let fits = (1..=share.min(micro_batch)).rev().find(|images| share.is_multiple_of(*images));
    recipe.micro_batch = fits.unwrap_or(1);
    Ok(saved.map(|_| {
        format!(
            "micro-batch: {} images instead of {micro_batch}, as each of {ranks} ranks has {share} of a step's \
             {batch_size}: batch norm sees fewer from here on",
            recipe.micro_batch
        )
    }))
}

/// What all ranks must have in common.
pub fn identity(
    recipe: &Recipe,
    max_steps: Option<u64>,
    source: &Source,
    saved: Option<&Checkpoint>,
) -> Identity {
    let mut facts: Vec<(String, String)> = match serde_json::to_value(recipe) {
        Ok(serde_json::Value::Object(fields)) => {
            fields.into_iter().map(|(name, value)| (name, value.to_string())).collect()
        }
        _ => unreachable!("a recipe becomes a JSON object"),
    };
    // No part of the recipe, but ranks that end at different steps are none.
    facts.push(("max-steps".into(), max_steps.map_or("none".into(), |steps| steps.to_string())));
    facts.push(("data set".into(), source.fingerprint()));
    facts.push(("classes".into(), source.classes().to_string()));
    facts.push(match saved {
        Some(saved) => {
            ("checkpoint".into(), format!("{} of step {}", saved.metadata.checksum, saved.metadata.step))
        }
        None => ("checkpoint".into(), "none".into()),
    });
    Identity { version: env!("CARGO_PKG_VERSION").into(), facts }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::device::Cpu;
    use super::super::engine::Engine;
    use super::super::loading::Loading;
    use super::*;
    use crate::data::Form;
    use crate::model::Variant;
    use crate::ops::StepParams;

    /// Runs `work` as each of two ranks, threads of this process.
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

    /// Also an error that only the group sees is told, and not taken for a rank that went without a word.
    #[test]
    fn what_goes_wrong_at_the_end_is_told_as_what_it_is() {
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

    /// A step of a large network on the CPU may take longer than the watchdog waits.
    #[test]
    fn a_rank_moves_with_every_pass() {
        let moved = two(|_, team| {
            let recipe = Recipe { resolution: 32, micro_batch: 1, ..Recipe::reference(Variant::B0, 2) };
            let source = Source::synthetic(2, 8, 2, 32).unwrap();
            let (share, form) = (team.share(), Form::Squares);
            let loading =
                Loading { source: &source, recipe: &recipe, form, share, threads: 1, processors: &[] };
            let batch = loading.training(0, 1).unwrap().next().unwrap().unwrap();
            let arch = recipe.architecture(2).unwrap();
            let cpu = Cpu::new(1, "a test");
            let mut engine = Engine::new(&recipe, &arch, source.normalise(), cpu, &team).unwrap();
            let moves = || team.group().unwrap().moves();
            let before = moves();
            engine.step(&batch, StepParams::default()).unwrap();
            let moved = moves() - before;
            team.conclude(Ok(())).unwrap();
            moved
        });
        assert!(moved.iter().all(|moved| *moved > 100), "{moved:?}");
    }

    #[test]
    fn a_batch_is_cut_evenly_or_refused_with_what_works() {
        let recipe = || Recipe::reference(Variant::B0, 96);
        let mut four = recipe();
        assert_eq!(divide(&mut four, true, None, 4), Ok(None));
        assert_eq!((four.batch_size, four.micro_batch), (96, 24));
        // One that divides the share stays.
        let mut eight = Recipe { micro_batch: 8, ..recipe() };
        assert_eq!(divide(&mut eight, false, None, 3), Ok(None));
        assert_eq!(eight.micro_batch, 8);
        let line =
            divide(&mut Recipe { micro_batch: 16, ..recipe() }, false, None, 4).unwrap_err().to_string();
        assert!(line.contains("--micro-batch 16") && line.contains("24 images"), "{line}");
        let line = divide(&mut recipe(), true, None, 7).unwrap_err().to_string();
        assert!(line.contains("7 ranks") && line.contains("6 or 8") && line.contains("91 or 98"), "{line}");
    }
}
