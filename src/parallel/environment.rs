//! Finds out from the environment which launcher has started this process.
//!
//! torchrun, Open MPI's mpirun and Slurm's srun start one process for each rank and describe its place in environment
//! variables. If they do, this program starts no ranks itself. The three are looked for in this order, and the first
//! one found is taken: torchrun inside a Slurm step means torchrun's ranks. This program's own launcher
//! ([`super::launch`]) sets torchrun's variables too.
//!
//! Not every launcher says where rank 0 listens:
//!
//! - torchrun does. Its agent often listens at that very port (`TORCHELASTIC_USE_AGENT_STORE`); the next port is taken
//!   then.
//! - Slurm names the machines. The port is computed from the job and the step, so that two jobs on one machine use
//!   different ports.
//! - Open MPI does neither. Ranks of one machine use a port computed from the job; other ranks need an address.
//!
//! `MASTER_ADDR` and `MASTER_PORT` take precedence over what is derived, and `--rendezvous` over everything.

use std::fmt;

use super::{Address, World};

/// Set to 1 for ranks that this program has started.
pub const LAUNCHED: &str = "EFFNET_LAUNCHED";
/// Set if torchrun's agent itself listens at MASTER_PORT.
pub const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// The largest number of ranks that is accepted.
const MOST: usize = 1 << 16;

/// The program that starts the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// This program, for `--gpus`, `--ranks` or `--nodes`.
    Own,
    Torchrun,
    OpenMpi,
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Launcher::Own => "effnet-train",
            Launcher::Torchrun => "torchrun",
            Launcher::OpenMpi => "Open MPI",
            Launcher::Slurm => "Slurm",
        })
    }
}

/// What a launcher has told this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub world: World,
    /// Where rank 0 listens. Port 0 only if rank 0 is alone.
    pub address: Address,
    pub by: Launcher,
}

/// Variables that contradict each other, or from which something is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{there} is set but {missing} is not: a launcher sets both; set {missing}, or unset {there}")]
    Missing { there: &'static str, missing: &'static str },
    #[error("{name}={value}: must be a whole number from {from} to {to}")]
    Number { name: &'static str, value: String, from: usize, to: usize },
    #[error("{name}={value}: must be {relation} {bound_name}, which is {bound}")]
    Bound { name: &'static str, value: usize, relation: &'static str, bound_name: &'static str, bound: usize },
    #[error("{name}={value}: {problem}")]
    Unclear { name: &'static str, value: String, problem: &'static str },
    #[error(
        "{by} does not say where rank 0 listens{why}: give every rank --rendezvous HOST:PORT, or set MASTER_ADDR and \
        MASTER_PORT"
    )]
    NoAddress { by: Launcher, why: &'static str },
}

/// What the variables say; none if no launcher has set any. `rendezvous` is the user's address of rank 0.
///
/// # Errors
/// [`EnvironmentError`], which names the variable.
pub fn find(
    variable: impl Fn(&str) -> Option<String>,
    rendezvous: Option<&Address>,
) -> Result<Option<Given>, EnvironmentError> {
    let variables = Variables(&|name| variable(name).filter(|value| !value.trim().is_empty()));
    for launcher in [torchrun, open_mpi, slurm] {
        if let Some(given) = launcher(&variables, rendezvous)? {
            return Ok(Some(given));
        }
    }
    Ok(None)
}

/// The environment. A variable without text counts as not set.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    /// The first of these variables that is set, and its value.
    fn first(&self, names: &[&'static str]) -> Option<(&'static str, String)> {
        names.iter().find_map(|name| Some((*name, self.get(name)?)))
    }

    fn number(&self, name: &'static str, from: usize, to: usize) -> Result<Option<usize>, EnvironmentError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) if (from..=to).contains(&number) => Ok(Some(number)),
            _ => Err(EnvironmentError::Number { name, value, from, to }),
        }
    }

    /// A number from 0 that must be set because `there` is.
    fn required(&self, name: &'static str, there: &'static str) -> Result<usize, EnvironmentError> {
        self.number(name, 0, MOST - 1)?.ok_or(EnvironmentError::Missing { there, missing: name })
    }

    fn port(&self) -> Result<Option<u16>, EnvironmentError> {
        Ok(self.number("MASTER_PORT", 1, u16::MAX as usize)?.map(|port| port as u16))
    }

    /// The place of a rank; `names` are the variables of rank, size, local rank and local size.
    fn world(&self, names: [&'static str; 4]) -> Result<Option<World>, EnvironmentError> {
        let [rank, size, local_rank, local_size] = names;
        let size_value = self.number(size, 1, MOST)?;
        let rank_value = self.number(rank, 0, MOST - 1)?;
        let (rank_value, size_value) = match (rank_value, size_value) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(EnvironmentError::Missing { there: rank, missing: size }),
            (None, Some(_)) => return Err(EnvironmentError::Missing { there: size, missing: rank }),
            (Some(rank), Some(size)) => (rank, size),
        };
        // A single rank needs no local numbers.
        let alone = |default: usize| (size_value == 1).then_some(default);
        let missing = |missing| EnvironmentError::Missing { there: rank, missing };
        let world = World {
            rank: rank_value,
            size: size_value,
            local_rank: self.number(local_rank, 0, MOST - 1)?.or(alone(0)).ok_or(missing(local_rank))?,
            local_size: self.number(local_size, 1, MOST)?.or(alone(1)).ok_or(missing(local_size))?,
        };
        consistent(world, names).map(Some)
    }
}

fn consistent(world: World, names: [&'static str; 4]) -> Result<World, EnvironmentError> {
    let [rank, size, local_rank, local_size] = names;
    let check = |good: bool, name, value, relation, bound_name, bound| {
        good.then_some(()).ok_or(EnvironmentError::Bound { name, value, relation, bound_name, bound })
    };
    let World { size: all, local_size: here, .. } = world;
    check(world.rank < all, rank, world.rank, "less than", size, all)?;
    check(here <= all, local_size, here, "at most", size, all)?;
    check(world.local_rank < here, local_rank, world.local_rank, "less than", local_size, here)?;
    Ok(world)
}

/// The address of a rank that is alone: any free port.
fn unused() -> Address {
    Address::new("127.0.0.1", 0)
}

fn torchrun(v: &Variables, rendezvous: Option<&Address>) -> Result<Option<Given>, EnvironmentError> {
    let Some(world) = v.world(["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])? else {
        return Ok(None);
    };
    let by = if v.get(LAUNCHED).is_some() { Launcher::Own } else { Launcher::Torchrun };
    let given = |address| Ok(Some(Given { world, address, by }));
    // The own launcher has read the flag; its result is in the variables.
    if let Some(address) = rendezvous.filter(|_| by != Launcher::Own) {
        return given(address.clone());
    }
    let missing = |missing| EnvironmentError::Missing { there: "RANK", missing };
    let (host, port) = match (v.get("MASTER_ADDR"), v.port()?) {
        (Some(host), Some(port)) => (host, port),
        (None, None) if world.size == 1 => return given(unused()),
        (None, _) => return Err(missing("MASTER_ADDR")),
        (_, None) => return Err(missing("MASTER_PORT")),
    };
    // "True" is Python's spelling.
    let is_taken = by == Launcher::Torchrun && v.get(AGENT_STORE).is_some_and(|value| value == "True");
    let port = match port {
        port if !is_taken => port,
        u16::MAX => u16::MAX - 1,
        port => port + 1,
    };
    given(Address::new(&host, port))
}

fn open_mpi(v: &Variables, rendezvous: Option<&Address>) -> Result<Option<Given>, EnvironmentError> {
    let names = [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ];
    let Some(world) = v.world(names)? else { return Ok(None) };
    let by = Launcher::OpenMpi;
    let given = |address| Ok(Some(Given { world, address, by }));
    if let Some(address) = rendezvous {
        return given(address.clone());
    }
    let host = v.get("MASTER_ADDR");
    let port = v.port()?;
    if world.size == 1 && host.is_none() && port.is_none() {
        return given(unused());
    }
    let local = (world.size == world.local_size).then(|| "127.0.0.1".into());
    let no_address = |why| EnvironmentError::NoAddress { by, why };
    let host = host.or(local).ok_or(no_address(", and its ranks are on several machines"))?;
    // The job's name: the first variable since version 5 and in most of version 4.
    let job = v.first(&["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"]);
    let port = port.or_else(|| job.map(|(_, job)| port_of(&job)));
    given(Address::new(&host, port.ok_or(no_address(", and names no job"))?))
}

fn slurm(v: &Variables, rendezvous: Option<&Address>) -> Result<Option<Given>, EnvironmentError> {
    // Only srun starts ranks. A batch script and a shell in an allocation see the allocation's number of tasks too, but
    // they have no step, or one with a single task.
    let Some((_, job)) = v.first(&["SLURM_JOB_ID", "SLURM_JOBID"]) else { return Ok(None) };
    let Some(step) = v.get("SLURM_STEP_ID") else { return Ok(None) };
    let sizes = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];
    let size_name = v.first(&sizes).map_or(sizes[1], |(name, _)| name);
    let size = v.number(size_name, 1, MOST)?.unwrap_or(1);
    if size == 1 {
        return Ok(None);
    }
    let rank = v.required("SLURM_PROCID", size_name)?;
    let local_rank = v.required("SLURM_LOCALID", size_name)?;
    let (tasks_name, local_size) = local_tasks(v, size)?;
    let world = World { rank, size, local_rank, local_size };
    let world = consistent(world, ["SLURM_PROCID", size_name, "SLURM_LOCALID", tasks_name])?;
    let by = Launcher::Slurm;
    let given = |address| Ok(Some(Given { world, address, by }));
    if let Some(address) = rendezvous {
        return given(address.clone());
    }
    let host = match v.get("MASTER_ADDR") {
        Some(host) => host,
        None if local_size == size => "127.0.0.1".into(),
        None => {
            let list = v.first(&["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"]);
            let (name, value) = list.ok_or(EnvironmentError::NoAddress { by, why: "" })?;
            let problem = "is not a list of hosts, such as node[01-04,07],other";
            first_host(&value).ok_or(EnvironmentError::Unclear { name, value, problem })?
        }
    };
    let port = v.port()?.unwrap_or_else(|| port_of(&format!("{job}.{step}")));
    given(Address::new(&host, port))
}

/// The number of tasks on this machine, and the variable that says it: "4(x2),3" means 4 on each of two machines and 3
/// on the third.
fn local_tasks(v: &Variables, size: usize) -> Result<(&'static str, usize), EnvironmentError> {
    let names = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"];
    let Some((name, value)) = v.first(&names) else {
        return Err(EnvironmentError::Missing { there: "SLURM_STEP_ID", missing: names[0] });
    };
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..=MOST).contains(n));
    let run = |part: &str| {
        let part = part.trim();
        let (tasks, times) = part.split_once("(x").unwrap_or((part, "1)"));
        Some((number(tasks)?, number(times.strip_suffix(')')?)?))
    };
    let unclear = |problem| EnvironmentError::Unclear { name, value: value.clone(), problem };
    let runs: Option<Vec<(usize, usize)>> = value.split(',').map(run).collect();
    let runs = runs.ok_or_else(|| unclear("is not a list of tasks per node, such as 4(x2),3"))?;
    if let [(tasks, _)] = runs[..] {
        // The same number on all machines. It may be the requested one, which can be more than the step has.
        return Ok((name, tasks.min(size)));
    }
    let mut node = v.required("SLURM_NODEID", name)?;
    for (tasks, times) in runs {
        if node < times {
            return Ok((name, tasks));
        }
        node -= times;
    }
    Err(unclear("has fewer nodes than SLURM_NODEID says"))
}

/// The first host in Slurm's list of hosts: `node01` for `node[01-04,07],other`.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    while let Some(at) = rest.find(['[', ']', ',']) {
        host.push_str(&rest[..at]);
        match rest.as_bytes()[at] {
            b'[' => {
                let (inside, after) = rest[at + 1..].split_once(']')?;
                let first = inside.split([',', '-']).next()?;
                if first.is_empty() || inside.contains('[') {
                    return None;
                }
                host.push_str(first);
                rest = after;
            }
            b',' => return Some(host).filter(|host| !host.is_empty()),
            _ => return None,
        }
    }
    host.push_str(rest);
    Some(host).filter(|host| !host.is_empty() && !host.contains(char::is_whitespace))
}

/// The port of a job, the same on all machines. It lies below the ports that systems assign by themselves.
fn port_of(job: &str) -> u16 {
    // FNV-1a.
    let hash = job
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ byte as u64).wrapping_mul(0x0100_0000_01b3));
    12_288 + ((hash ^ (hash >> 32)) % 16_384) as u16
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
