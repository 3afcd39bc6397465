//! Which launcher has started this process, by the variables that it sets.
//!
//! torchrun, Open MPI's mpirun and Slurm's srun start one process a rank and say in the environment which one each
//! is. Where they do, nothing is started here: the ranks are those given. The first of the three that shows itself
//! is taken, in this order: whoever starts torchrun inside a Slurm step means torchrun's ranks. This program's own
//! launcher ([`super::launch`]) speaks torchrun's language too.
//!
//! The launchers do not all say where rank 0 listens. torchrun does, but its agent often listens at that very port
//! itself (`TORCHELASTIC_USE_AGENT_STORE`): then the port after it is taken. Slurm names the machines; the port is
//! made from the job and the step, so that two jobs on one machine do not meet. Open MPI names neither: ranks of one
//! machine meet there at a port made from the job, others need to be told. `MASTER_ADDR` and `MASTER_PORT` go before
//! what is derived, and `--rendezvous` goes before everything.

use std::fmt;

use super::World;

/// Set to 1 for ranks that this program has started.
pub const LAUNCHED: &str = "EFFNET_LAUNCHED";
/// Where torchrun's agent keeps a store of its own at MASTER_PORT.
pub const AGENT_STORE: &str = "TORCHELASTIC_USE_AGENT_STORE";
/// More ranks than anybody has.
const MOST: usize = 1 << 16;

/// Who starts ranks.
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

/// What a launcher has given this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub world: World,
    /// `host:port` of rank 0. Port 0 only where rank 0 is alone.
    pub address: String,
    pub by: Launcher,
}

/// Variables that contradict each other or say too little.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    #[error("{there} is set but {missing} is not: a launcher sets both; set {missing}, or unset {there}")]
    Missing { there: &'static str, missing: &'static str },
    #[error("{name}={value}: must be a whole number from {from} to {to}")]
    Number { name: &'static str, value: String, from: usize, to: usize },
    #[error("{name}={value}: must be less than {bound_name}, which is {bound}")]
    NotLess { name: &'static str, value: usize, bound_name: &'static str, bound: usize },
    #[error("{name}={value}: must be at most {bound_name}, which is {bound}")]
    More { name: &'static str, value: usize, bound_name: &'static str, bound: usize },
    #[error("{name}={value}: {problem}")]
    Unclear { name: &'static str, value: String, problem: &'static str },
    #[error(
        "{by} does not say where rank 0 listens{why}: give every rank --rendezvous HOST:PORT, or set MASTER_ADDR and \
        MASTER_PORT"
    )]
    NoAddress { by: Launcher, why: &'static str },
}

/// What the variables say; none where no launcher shows itself. `rendezvous` is the user's `host:port`.
///
/// # Errors
/// [`EnvironmentError`], which names the variable.
pub fn find(
    variable: impl Fn(&str) -> Option<String>,
    rendezvous: Option<&str>,
) -> Result<Option<Given>, EnvironmentError> {
    let variables = Variables(&|name| variable(name).filter(|value| !value.trim().is_empty()));
    for launcher in [torchrun, open_mpi, slurm] {
        if let Some(given) = launcher(&variables, rendezvous)? {
            return Ok(Some(given));
        }
    }
    Ok(None)
}

/// `host:port`, with the brackets that an IPv6 address needs.
pub fn join(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Host and port of `host:port`; the brackets of an IPv6 address fall away. None for anything else.
pub fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = !host.contains([':', '[', ']', '/', ' ']);
    let host = bare.or(plain.then_some(host)).filter(|host| !host.is_empty())?;
    let port = port.parse().ok().filter(|&port| port > 0)?;
    Some((host, port))
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name)
    }

    fn number(&self, name: &'static str, from: usize, to: usize) -> Result<Option<usize>, EnvironmentError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) if (from..=to).contains(&number) => Ok(Some(number)),
            _ => Err(EnvironmentError::Number { name, value, from, to }),
        }
    }

    fn port(&self) -> Result<Option<u16>, EnvironmentError> {
        Ok(self.number("MASTER_PORT", 1, u16::MAX as usize)?.map(|port| port as u16))
    }

    /// A rank among `size`, and its place among those of its machine. The names are those of rank, size, local rank
    /// and local size.
    fn world(&self, names: [&'static str; 4]) -> Result<Option<World>, EnvironmentError> {
        let [rank, size, local_rank, local_size] = names;
        let (size_value, rank_value) = (self.number(size, 1, MOST)?, self.number(rank, 0, MOST - 1)?);
        let world_size = match (rank_value, size_value) {
            (None, None) => return Ok(None),
            (Some(_), None) => return Err(EnvironmentError::Missing { there: rank, missing: size }),
            (None, Some(_)) => return Err(EnvironmentError::Missing { there: size, missing: rank }),
            (Some(_), Some(size)) => size,
        };
        // A rank by itself has no neighbour to be told from.
        let alone = |default: usize| (world_size == 1).then_some(default);
        let missing = |missing| EnvironmentError::Missing { there: rank, missing };
        let world = World {
            rank: rank_value.unwrap_or(0),
            size: world_size,
            local_rank: self.number(local_rank, 0, MOST - 1)?.or(alone(0)).ok_or(missing(local_rank))?,
            local_size: self.number(local_size, 1, MOST)?.or(alone(1)).ok_or(missing(local_size))?,
        };
        consistent(world, names).map(Some)
    }
}

fn consistent(world: World, names: [&'static str; 4]) -> Result<World, EnvironmentError> {
    let [rank, size, local_rank, local_size] = names;
    let not_less =
        |name, value, bound_name, bound| EnvironmentError::NotLess { name, value, bound_name, bound };
    if world.rank >= world.size {
        return Err(not_less(rank, world.rank, size, world.size));
    }
    if world.local_size > world.size {
        let (name, value, bound) = (local_size, world.local_size, world.size);
        return Err(EnvironmentError::More { name, value, bound_name: size, bound });
    }
    if world.local_rank >= world.local_size {
        return Err(not_less(local_rank, world.local_rank, local_size, world.local_size));
    }
    Ok(world)
}

fn torchrun(v: &Variables, rendezvous: Option<&str>) -> Result<Option<Given>, EnvironmentError> {
    let Some(world) = v.world(["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])? else {
        return Ok(None);
    };
    let by = if v.get(LAUNCHED).is_some() { Launcher::Own } else { Launcher::Torchrun };
    let given = |address| Ok(Some(Given { world, address, by }));
    if let Some(address) = rendezvous.filter(|_| by != Launcher::Own) {
        return given(address.into());
    }
    let missing = |missing| EnvironmentError::Missing { there: "RANK", missing };
    let (host, port) = match (v.get("MASTER_ADDR"), v.port()?) {
        (Some(host), Some(port)) => (host, port),
        (None, None) if world.size == 1 => return given(join("127.0.0.1", 0)),
        (None, _) => return Err(missing("MASTER_ADDR")),
        (_, None) => return Err(missing("MASTER_PORT")),
    };
    // Python spells it so.
    let is_taken = by == Launcher::Torchrun && v.get(AGENT_STORE).is_some_and(|value| value == "True");
    let port = match (is_taken, port) {
        (false, port) => port,
        (true, u16::MAX) => port - 1,
        (true, port) => port + 1,
    };
    given(join(&host, port))
}

fn open_mpi(v: &Variables, rendezvous: Option<&str>) -> Result<Option<Given>, EnvironmentError> {
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
        return given(address.into());
    }
    let (host, port) = (v.get("MASTER_ADDR"), v.port()?);
    if world.size == 1 && host.is_none() && port.is_none() {
        return given(join("127.0.0.1", 0));
    }
    let is_local = world.size == world.local_size;
    let host = match host {
        Some(host) => host,
        None if is_local => "127.0.0.1".into(),
        None => {
            return Err(EnvironmentError::NoAddress { by, why: ", and its ranks are on several machines" });
        }
    };
    // Equal in all ranks of a job and in no other job: the first since version 5, and in most of version 4.
    let job = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"];
    let job = || job.into_iter().find_map(|name| v.get(name));
    match port.or_else(|| job().map(|job| port_of(&job))) {
        Some(port) => given(join(&host, port)),
        None => Err(EnvironmentError::NoAddress { by, why: ", and names no job" }),
    }
}

fn slurm(v: &Variables, rendezvous: Option<&str>) -> Result<Option<Given>, EnvironmentError> {
    // A batch script and a shell in an allocation have the allocation's number of tasks too, but no step, or one of
    // a single task. Only srun starts ranks.
    let (Some(job), Some(step)) =
        (v.get("SLURM_JOB_ID").or_else(|| v.get("SLURM_JOBID")), v.get("SLURM_STEP_ID"))
    else {
        return Ok(None);
    };
    let size_name = match v.get("SLURM_STEP_NUM_TASKS") {
        Some(_) => "SLURM_STEP_NUM_TASKS",
        None => "SLURM_NTASKS",
    };
    let size = v.number(size_name, 1, MOST)?.unwrap_or(1);
    if size == 1 {
        return Ok(None);
    }
    let there = size_name;
    let number =
        |name| v.number(name, 0, MOST - 1)?.ok_or(EnvironmentError::Missing { there, missing: name });
    let (rank, local_rank) = (number("SLURM_PROCID")?, number("SLURM_LOCALID")?);
    let (tasks_name, local_size) = local_tasks(v, size)?;
    let world = World { rank, size, local_rank, local_size };
    let world = consistent(world, ["SLURM_PROCID", size_name, "SLURM_LOCALID", tasks_name])?;
    let by = Launcher::Slurm;
    let given = |address| Ok(Some(Given { world, address, by }));
    if let Some(address) = rendezvous {
        return given(address.into());
    }
    let host = match v.get("MASTER_ADDR") {
        Some(host) => host,
        None if local_size == size => "127.0.0.1".into(),
        None => {
            let names = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
            let list = names.into_iter().find_map(|name| Some((name, v.get(name)?)));
            let (name, value) = list.ok_or(EnvironmentError::NoAddress { by, why: "" })?;
            let problem = "is no list of hosts, such as node[01-04,07],other";
            first_host(&value).ok_or(EnvironmentError::Unclear { name, value, problem })?
        }
    };
    let port = v.port()?.unwrap_or_else(|| port_of(&format!("{job}.{step}")));
    given(join(&host, port))
}

/// This machine's tasks, and the variable that says so: "4(x2),3" has 4 on each of two machines and 3 on the third.
fn local_tasks(v: &Variables, size: usize) -> Result<(&'static str, usize), EnvironmentError> {
    let names = ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"];
    let Some((name, value)) = names.into_iter().find_map(|name| Some((name, v.get(name)?))) else {
        return Err(EnvironmentError::Missing { there: "SLURM_STEP_ID", missing: names[0] });
    };
    let problem = "is no list of tasks per node, such as 4(x2),3";
    let unclear = |problem| EnvironmentError::Unclear { name, value: value.clone(), problem };
    let mut runs = Vec::new();
    for part in value.split(',') {
        let (tasks, times) = match part.trim().split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')').ok_or(unclear(problem))?),
            None => (part.trim(), "1"),
        };
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| (1..=MOST).contains(n));
        runs.push((number(tasks).ok_or(unclear(problem))?, number(times).ok_or(unclear(problem))?));
    }
    if let [(tasks, _)] = runs[..] {
        // The same everywhere. What was asked for each machine may be more than the step has.
        return Ok((name, tasks.min(size)));
    }
    let node = v.number("SLURM_NODEID", 0, MOST - 1)?;
    let mut node = node.ok_or(EnvironmentError::Missing { there: name, missing: "SLURM_NODEID" })?;
    for (tasks, times) in runs {
        if node < times {
            return Ok((name, tasks));
        }
        node -= times;
    }
    Err(unclear("has fewer nodes than SLURM_NODEID says"))
}

/// The first of Slurm's list of hosts: `node01` of `node[01-04,07],other`.
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

/// A port for a job: below those that systems hand out by themselves, and the same wherever it is computed.
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
