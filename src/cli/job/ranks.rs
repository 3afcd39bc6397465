//! Which ranks train: those that a launcher has started, those that the flags ask for, or only this process.

use std::time::Duration;

use crate::cli::flags::{Actions, Settings};
use crate::cli::{UsageError, usage};
use crate::parallel::environment::{self, Given, Launcher};
use crate::parallel::launch::{LISTENER, Launch, inherited_listener};
use crate::parallel::nccl::ranks_may_share_gpus;
use crate::parallel::{Address, InheritedListener, Membership, Ranks};
use crate::train::DeviceChoice;
use crate::train::device::gpus;

/// The device: `--gpus` implies GPUs and `--ranks` the CPU.
pub fn device(settings: &Settings) -> Option<DeviceChoice> {
    match (settings.gpus, settings.ranks) {
        (Some(_), _) => Some(DeviceChoice::Cuda),
        (_, Some(_)) => Some(DeviceChoice::Cpu),
        _ => settings.device,
    }
}

/// The flags that start as many ranks again on one machine; none for one rank.
pub fn started_with(settings: &Settings) -> Option<String> {
    match (settings.gpus, settings.ranks) {
        _ if settings.nodes.is_some_and(|nodes| nodes > 1) => None,
        (Some(gpus), _) if gpus > 1 => Some(format!("--gpus {gpus}")),
        (_, Some(ranks)) if ranks > 1 => Some(format!("--ranks {ranks}")),
        _ => None,
    }
}

/// The ranks that train. `variable` reads the environment.
///
/// # Errors
/// Flags that contradict the launcher, each other, or the machine; invalid variables of a launcher.
pub fn ranks(
    settings: &Settings,
    actions: &Actions,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Ranks, UsageError> {
    let address = settings.address()?;
    let given = environment::find(&variable, address.as_ref());
    let Some(given) = given.or_else(|error| usage(error.to_string()))? else {
        return started_here(settings, actions, address);
    };
    agree(settings, actions, &given)?;
    let inherits = given.by == Launcher::Own && given.world.leads();
    let listener = variable(LISTENER).filter(|_| inherits).map(|value| inherit(&value)).transpose()?;
    let new = Membership::new(given.world, given.address);
    Ok(Ranks::Given(Membership {
        listener,
        timeout: settings.rendezvous_timeout.map_or(new.timeout, Duration::from_secs),
        watchdog: settings.watchdog.map_or(new.watchdog, Duration::from_secs),
        hard_exit: true,
        ..new
    }))
}

fn inherit(value: &str) -> Result<InheritedListener, UsageError> {
    // SAFETY: the launcher has passed the descriptor to this process for this one use.
    let listener = unsafe { inherited_listener(value) };
    listener.map(InheritedListener::from).or_else(|problem| usage(format!("{LISTENER}={value}: {problem}")))
}

/// Checks that the flags agree with the launcher.
fn agree(settings: &Settings, actions: &Actions, given: &Given) -> Result<(), UsageError> {
    let Given { world, by, .. } = given;
    let here = world.local_size as u64;
    for (flag, value) in [("gpus", settings.gpus), ("ranks", settings.ranks)] {
        if let Some(value) = value.filter(|&value| value != here) {
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

/// The ranks of a process that no launcher has started.
fn started_here(
    settings: &Settings,
    actions: &Actions,
    address: Option<Address>,
) -> Result<Ranks, UsageError> {
    check_nodes(settings)?;
    if let Some(asked) = settings.gpus.filter(|_| !actions.summary && !actions.dry_run) {
        let count = gpus().map_err(|error| error.to_string());
        enough(asked, count, ranks_may_share_gpus())?;
    }
    let launch = Launch {
        ranks: settings.gpus.or(settings.ranks).unwrap_or(1) as usize,
        nodes: settings.nodes.unwrap_or(1) as usize,
        node_rank: settings.node_rank.unwrap_or(0) as usize,
        address,
    };
    if launch.ranks * launch.nodes == 1 {
        return Ok(Ranks::One);
    }
    if actions.demo && launch.nodes > 1 {
        return usage("--demo: trains on one machine; leave out --nodes");
    }
    Ok(Ranks::Launch(launch))
}

/// Several machines need --nodes, --node-rank and --rendezvous.
fn check_nodes(settings: &Settings) -> Result<(), UsageError> {
    match (settings.nodes, settings.node_rank, &settings.rendezvous) {
        (None, Some(rank), _) => usage(format!("--node-rank {rank}: needs --nodes, the number of machines")),
        (None, None, Some(address)) => usage(format!(
            "--rendezvous {address}: needs --nodes and --node-rank, or a launcher such as torchrun, mpirun or srun"
        )),
        (Some(nodes @ 2..), None, _) => usage(format!(
            "--nodes {nodes}: needs --node-rank, from 0 on the machine of rank 0 to {}",
            nodes - 1
        )),
        (Some(nodes), Some(rank), _) if rank >= nodes => {
            usage(format!("--node-rank {rank}: must be less than --nodes {nodes}; the first machine is 0"))
        }
        (Some(nodes @ 2..), _, None) => usage(format!(
            "--nodes {nodes}: needs --rendezvous HOST:PORT, a name of machine 0 that the others can resolve and a free \
             port"
        )),
        _ => Ok(()),
    }
}

fn enough(asked: u64, count: Result<usize, String>, share: bool) -> Result<(), UsageError> {
    match count {
        Ok(gpus) if asked <= gpus as u64 || (share && gpus > 0) => Ok(()),
        Ok(gpus) => usage(format!("--gpus {asked}: this machine has {gpus}")),
        Err(problem) => usage(format!("--gpus {asked}: {problem}; or use --device cpu")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::file;
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
        let settings = file::parse(text).unwrap();
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        ranks(&settings, &actions, find).map_err(|error| error.0)
    }

    #[test]
    fn ranks_without_a_launcher_are_this_process_or_started() {
        let alone = |text| ranks_of(text, &[], Actions::default());
        for text in ["", "ranks = 1", "nodes = 1", "nodes = 1\nnode-rank = 0", "watchdog = 7"] {
            assert_eq!(alone(text), Ok(Ranks::One), "{text}");
        }
        let launch = |ranks, nodes, node_rank, address: Option<&str>| {
            let address = address.map(|address| address.parse().unwrap());
            Ok(Ranks::Launch(Launch { ranks, nodes, node_rank, address }))
        };
        assert_eq!(alone("ranks = 4"), launch(4, 1, 0, None));
        let two = "nodes = 2\nnode-rank = 1\nrendezvous = \"a:5\"";
        assert_eq!(alone(two), launch(1, 2, 1, Some("a:5")));
        assert_eq!(alone(&format!("ranks = 3\n{two}")), launch(3, 2, 1, Some("a:5")));
        // A plan for more GPUs than this machine has.
        let plan = ranks_of("gpus = 8", &[], Actions { dry_run: true, ..Actions::default() });
        assert_eq!(plan, launch(8, 1, 0, None));
    }

    #[test]
    fn ranks_of_a_launcher_are_taken_from_its_variables() {
        let found = ranks_of("watchdog = 7\nranks = 2", &TORCHRUN, Actions::default()).unwrap();
        let Ranks::Given(membership) = found else { panic!("{found:?}") };
        assert_eq!(membership.world, World { rank: 1, size: 4, local_rank: 1, local_size: 2 });
        assert_eq!((membership.address, membership.listener), (Address::new("node-a", 29500), None));
        assert_eq!((membership.timeout.as_secs(), membership.watchdog.as_secs()), (120, 7));
        assert!(membership.hard_exit);
        let asked = ranks_of("rendezvous = \"b:6\"", &TORCHRUN, Actions::default()).unwrap();
        assert!(matches!(asked, Ranks::Given(Membership { address, .. }) if address == Address::new("b", 6)));
        let line = ranks_of("node-rank = 0", &TORCHRUN, Actions::default()).unwrap_err();
        assert!(line.contains("--node-rank 0") && line.contains("leave the flag out"), "{line}");
    }

    #[test]
    fn ranks_started_by_this_program_have_the_flags_of_their_launcher() {
        let launched = |more: &[(&'static str, &'static str)]| {
            let variables: Vec<_> =
                TORCHRUN.into_iter().chain([(environment::LAUNCHED, "1")]).chain(more.to_vec()).collect();
            ranks_of(
                "ranks = 2\nnodes = 2\nnode-rank = 0\nrendezvous = \"node-a:29500\"",
                &variables,
                Actions::default(),
            )
        };
        assert!(matches!(launched(&[]), Ok(Ranks::Given(m)) if m.address == Address::new("node-a", 29500)));
        // Only rank 0 uses a listener.
        assert!(launched(&[(LISTENER, "none")]).is_ok());
        let first = [("RANK", "0"), ("WORLD_SIZE", "1"), (environment::LAUNCHED, "1"), (LISTENER, "none")];
        let line = ranks_of("", &first, Actions::default()).unwrap_err();
        assert!(line.contains("EFFNET_RENDEZVOUS_FD=none"), "{line}");
    }

    #[test]
    fn enough_refuses_more_gpus_than_there_are() {
        assert_eq!(enough(2, Ok(2), false), Ok(()));
        assert_eq!(enough(8, Ok(2), false), Err(UsageError("--gpus 8: this machine has 2".into())));
        assert_eq!(enough(8, Ok(2), true), Ok(()));
        assert_eq!(enough(8, Ok(0), true), Err(UsageError("--gpus 8: this machine has 0".into())));
        assert!(enough(1, Err("no driver".into()), true).unwrap_err().0.contains("--gpus 1: no driver"));
    }
}
