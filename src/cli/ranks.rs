//! Which ranks train: those that a launcher has given, those that the flags ask for, or one.

use std::time::Duration;

use super::UsageError;
use super::flags::{Actions, Settings};
use crate::parallel::environment::{self, Given, Launcher};
use crate::parallel::launch::{LISTENER, Launch, inherited_listener};
use crate::parallel::nccl::ranks_may_share_gpus;
use crate::parallel::{Membership, Ranks};
use crate::train::DeviceChoice;
use crate::train::device::gpus;

/// Ranks of a machine, and machines.
const MOST: u64 = 1024;
/// Seconds: a week is no limit to anybody.
const LONGEST: u64 = 7 * 24 * 3600;

/// `--gpus` means GPUs and `--ranks` the CPU, whatever `auto` would take.
///
/// # Errors
/// Where `--device` says otherwise.
pub fn settle_device(settings: &mut Settings) -> Result<(), UsageError> {
    if settings.gpus == Some(0) {
        return usage("--gpus 0: must be at least 1; --device cpu uses none");
    }
    match (settings.gpus, settings.ranks, settings.device) {
        (Some(_), Some(_), _) => {
            usage("--ranks: every GPU has a rank of its own; give --gpus for GPUs, or --ranks for the CPU")
        }
        (Some(_), None, Some(DeviceChoice::Cpu)) => {
            usage("--gpus: --device cpu uses none; leave one of them out")
        }
        (None, Some(ranks), Some(DeviceChoice::Cuda)) => usage(format!(
            "--ranks {ranks}: these are processes on the CPU; on GPUs say how many with --gpus {ranks}"
        )),
        (gpus, ranks, device) => {
            settings.device = match (gpus, ranks) {
                (Some(_), _) => Some(DeviceChoice::Cuda),
                (_, Some(_)) => Some(DeviceChoice::Cpu),
                _ => device,
            };
            Ok(())
        }
    }
}

/// The flags that start as many ranks again on one machine; none for one.
pub fn started_with(settings: &Settings) -> Option<String> {
    match (settings.gpus, settings.ranks) {
        _ if settings.nodes.is_some_and(|nodes| nodes > 1) => None,
        (Some(gpus), _) if gpus > 1 => Some(format!("--gpus {gpus}")),
        (_, Some(ranks)) if ranks > 1 => Some(format!("--ranks {ranks}")),
        _ => None,
    }
}

/// The ranks that train. `variable` looks into the environment.
///
/// # Errors
/// Flags that contradict the launcher, each other, or the machine; a launcher's variables that make no sense.
pub fn ranks(
    settings: &Settings,
    actions: &Actions,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Ranks, UsageError> {
    let number = |flag: &str, value: Option<u64>, most| match value {
        Some(0) => usage(format!("--{flag} 0: must be at least 1")),
        Some(value) if value > most => usage(format!("--{flag} {value}: must be at most {most}")),
        value => Ok(value),
    };
    number("gpus", settings.gpus, MOST)?;
    number("ranks", settings.ranks, MOST)?;
    number("nodes", settings.nodes, MOST)?;
    let seconds = |flag, value| Ok(Duration::from_secs(number(flag, value, LONGEST)?.unwrap_or(0)));
    let timeout = seconds("rendezvous-timeout", settings.rendezvous_timeout.or(Some(120)))?;
    let watchdog = seconds("watchdog", settings.watchdog.or(Some(300)))?;
    if let Some(address) = &settings.rendezvous
        && environment::split(address).is_none()
    {
        return usage(format!("--rendezvous {address}: must be HOST:PORT, such as node-a:29500"));
    }
    let given = environment::find(&variable, settings.rendezvous.as_deref());
    match given.map_err(|error| UsageError(error.to_string()))? {
        Some(given) => {
            agree(settings, actions, &given)?;
            let listener =
                match variable(LISTENER).filter(|_| given.by == Launcher::Own && given.world.leads()) {
                    Some(value) => Some(
                        inherited_listener(&value).or_else(|p| usage(format!("{LISTENER}={value}: {p}")))?,
                    ),
                    None => None,
                };
            let new = Membership::new(given.world, given.address);
            Ok(Ranks::Given(Membership { listener, timeout, watchdog, hard_exit: true, ..new }))
        }
        None => started_here(settings, actions),
    }
}

/// Whether the flags say what the launcher does.
fn agree(settings: &Settings, actions: &Actions, given: &Given) -> Result<(), UsageError> {
    let Given { world, by, .. } = given;
    let here = world.local_size;
    for (flag, value) in [("gpus", settings.gpus), ("ranks", settings.ranks)] {
        if let Some(value) = value.filter(|&value| value != here as u64) {
            let ranks = if here == 1 { "1 rank" } else { &format!("{here} ranks") };
            return usage(format!(
                "--{flag} {value}: {by} has started {ranks} on this machine; leave the flag out"
            ));
        }
    }
    if *by == Launcher::Own {
        return Ok(());
    }
    for (flag, value) in [("nodes", settings.nodes), ("node-rank", settings.node_rank)] {
        if let Some(value) = value {
            return usage(format!("--{flag} {value}: {by} has started the ranks; leave the flag out"));
        }
    }
    if actions.demo && world.size > 1 {
        return usage(format!(
            "--demo: the ranks that {by} has started would all pack its images; use --gpus or --ranks without {by}"
        ));
    }
    Ok(())
}

fn started_here(settings: &Settings, actions: &Actions) -> Result<Ranks, UsageError> {
    let (nodes, address) = (settings.nodes, settings.rendezvous.clone());
    let node_rank = match (nodes, settings.node_rank, &address) {
        (None, Some(rank), _) => {
            return usage(format!("--node-rank {rank}: needs --nodes, the number of machines"));
        }
        (None, _, Some(address)) => {
            return usage(format!(
                "--rendezvous {address}: needs --nodes and --node-rank, or a launcher such as torchrun, mpirun or srun"
            ));
        }
        (None | Some(1), None, _) => 0,
        (Some(nodes), None, _) => {
            return usage(format!(
                "--nodes {nodes}: needs --node-rank, from 0 on the machine of rank 0 to {}",
                nodes - 1
            ));
        }
        (Some(nodes), Some(rank), _) if rank >= nodes => {
            return usage(format!(
                "--node-rank {rank}: must be less than --nodes {nodes}; the first machine is 0"
            ));
        }
        (Some(nodes @ 2..), _, None) => {
            return usage(format!(
                "--nodes {nodes}: needs --rendezvous HOST:PORT, a name of machine 0 that the others know and a free port"
            ));
        }
        (Some(_), Some(rank), _) => rank,
    };
    let (local, nodes) = (settings.gpus.or(settings.ranks).unwrap_or(1), nodes.unwrap_or(1));
    if let Some(asked) = settings.gpus.filter(|_| !actions.summary && !actions.dry_run) {
        let count = gpus().map_err(|error| error.to_string());
        enough(asked, count, ranks_may_share_gpus())?;
    }
    if local * nodes == 1 {
        return Ok(Ranks::One);
    }
    if actions.demo && nodes > 1 {
        return usage("--demo: trains on one machine; leave out --nodes");
    }
    let (ranks, nodes, node_rank) = (local as usize, nodes as usize, node_rank as usize);
    Ok(Ranks::Launch(Launch { ranks, nodes, node_rank, address }))
}

fn enough(asked: u64, count: Result<usize, String>, share: bool) -> Result<(), UsageError> {
    match count {
        Ok(gpus) if asked <= gpus as u64 || (share && gpus > 0) => Ok(()),
        Ok(gpus) => usage(format!("--gpus {asked}: this machine has {gpus}")),
        Err(problem) => usage(format!("--gpus {asked}: {problem}; or use --device cpu")),
    }
}

fn usage<T>(text: impl Into<String>) -> Result<T, UsageError> {
    Err(UsageError(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::World;

    const TORCHRUN: [(&str, &str); 6] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("MASTER_ADDR", "node-a"),
        ("MASTER_PORT", "29500"),
    ];

    fn ranks_of(text: &str, variables: &[(&str, &str)], actions: Actions) -> Result<Ranks, String> {
        let mut settings = super::super::config::parse(text).unwrap();
        settle_device(&mut settings).map_err(|error| error.0)?;
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        ranks(&settings, &actions, find).map_err(|error| error.0)
    }

    fn alone(text: &str) -> Result<Ranks, String> {
        ranks_of(text, &[], Actions::default())
    }

    #[test]
    fn one_rank_is_this_process_and_more_are_started() {
        for text in ["", "ranks = 1", "nodes = 1", "nodes = 1\nnode-rank = 0", "watchdog = 7"] {
            assert_eq!(alone(text), Ok(Ranks::One), "{text}");
        }
        let launch = |ranks, nodes, node_rank, address: Option<&str>| {
            Ok(Ranks::Launch(Launch { ranks, nodes, node_rank, address: address.map(str::to_owned) }))
        };
        assert_eq!(alone("ranks = 4"), launch(4, 1, 0, None));
        let two = "nodes = 2\nnode-rank = 1\nrendezvous = \"a:5\"";
        assert_eq!(alone(two), launch(1, 2, 1, Some("a:5")));
        assert_eq!(alone(&format!("ranks = 3\n{two}")), launch(3, 2, 1, Some("a:5")));
        // A plan for more GPUs than there are.
        let plan = ranks_of("gpus = 8", &[], Actions { dry_run: true, ..Actions::default() });
        assert_eq!(plan, launch(8, 1, 0, None));
    }

    #[test]
    fn flags_that_say_too_little_or_too_much_are_refused() {
        for (text, parts) in [
            ("ranks = 0", ["--ranks 0", "at least 1"]),
            ("nodes = 0", ["--nodes 0", "at least 1"]),
            ("ranks = 5000", ["--ranks 5000", "at most 1024"]),
            ("watchdog = 0", ["--watchdog 0", "at least 1"]),
            ("rendezvous-timeout = 0", ["--rendezvous-timeout 0", "at least 1"]),
            ("nodes = 2", ["--nodes 2", "--node-rank"]),
            ("nodes = 2\nnode-rank = 0", ["--nodes 2", "--rendezvous HOST:PORT"]),
            ("nodes = 2\nrendezvous = \"a:1\"", ["--nodes 2", "--node-rank"]),
            ("nodes = 2\nnode-rank = 2\nrendezvous = \"a:1\"", ["--node-rank 2", "--nodes 2"]),
            ("node-rank = 0", ["--node-rank 0", "--nodes"]),
            ("rendezvous = \"a:1\"", ["--rendezvous a:1", "--nodes"]),
            ("rendezvous = \"a\"", ["--rendezvous a", "HOST:PORT"]),
            ("gpus = 2\nranks = 2", ["--ranks", "--gpus"]),
            ("ranks = 2\ndevice = \"cuda\"", ["--ranks 2", "--gpus 2"]),
            ("gpus = 2\ndevice = \"cpu\"", ["--gpus", "--device cpu"]),
        ] {
            let line = alone(text).unwrap_err();
            assert!(parts.iter().all(|part| line.contains(part)) && !line.contains('\n'), "{text}: {line}");
        }
        let demo = Actions { demo: true, ..Actions::default() };
        let line = ranks_of("nodes = 2\nnode-rank = 0\nrendezvous = \"a:1\"", &[], demo).unwrap_err();
        assert!(line.contains("--demo") && line.contains("--nodes"), "{line}");
    }

    #[test]
    fn a_launcher_has_the_last_word() {
        let found = ranks_of("watchdog = 7\nranks = 2", &TORCHRUN, Actions::default()).unwrap();
        let Ranks::Given(membership) = found else { panic!("{found:?}") };
        assert_eq!(membership.world, World { rank: 1, size: 4, local_rank: 1, local_size: 2 });
        assert_eq!((membership.address.as_str(), membership.listener), ("node-a:29500", None));
        let (timeout, watchdog) = (membership.timeout.as_secs(), membership.watchdog.as_secs());
        assert_eq!((timeout, watchdog, membership.hard_exit), (120, 7, true));
        let asked = ranks_of("rendezvous = \"b:6\"", &TORCHRUN, Actions::default()).unwrap();
        assert!(matches!(asked, Ranks::Given(Membership { address, .. }) if address == "b:6"));
        for (text, parts) in [
            ("ranks = 4", ["--ranks 4", "torchrun has started 2 ranks"]),
            ("gpus = 1", ["--gpus 1", "torchrun has started 2 ranks"]),
            ("nodes = 2", ["--nodes 2", "leave the flag out"]),
            ("node-rank = 0", ["--node-rank 0", "leave the flag out"]),
        ] {
            let line = ranks_of(text, &TORCHRUN, Actions::default()).unwrap_err();
            assert!(parts.iter().all(|part| line.contains(part)), "{text}: {line}");
        }
        let demo = Actions { demo: true, ..Actions::default() };
        assert!(ranks_of("", &TORCHRUN, demo).unwrap_err().contains("--demo"));
    }

    #[test]
    fn ranks_of_this_program_have_the_same_flags_as_their_launcher() {
        let launched = |more: &[(&'static str, &'static str)]| {
            let variables: Vec<_> =
                TORCHRUN.into_iter().chain([(environment::LAUNCHED, "1")]).chain(more.to_vec()).collect();
            ranks_of(
                "ranks = 2\nnodes = 2\nnode-rank = 0\nrendezvous = \"node-a:29500\"",
                &variables,
                Actions::default(),
            )
        };
        assert!(matches!(launched(&[]), Ok(Ranks::Given(m)) if m.address == "node-a:29500"));
        // Not rank 0: no listener is looked for.
        assert!(launched(&[(LISTENER, "none")]).is_ok());
        let first = [("RANK", "0"), ("WORLD_SIZE", "1"), (environment::LAUNCHED, "1"), (LISTENER, "none")];
        let line = ranks_of("", &first, Actions::default()).unwrap_err();
        assert!(line.contains("EFFNET_RENDEZVOUS_FD=none"), "{line}");
    }

    #[test]
    fn more_gpus_than_there_are_are_refused_by_their_number() {
        assert_eq!(enough(2, Ok(2), false), Ok(()));
        assert_eq!(enough(8, Ok(2), false), Err(UsageError("--gpus 8: this machine has 2".into())));
        assert_eq!(enough(8, Ok(2), true), Ok(()));
        assert_eq!(enough(8, Ok(0), true), Err(UsageError("--gpus 8: this machine has 0".into())));
        assert!(enough(1, Err("no driver".into()), true).unwrap_err().0.contains("--gpus 1: no driver"));
    }
}
