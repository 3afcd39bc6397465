//! Variables as the launchers set them, and variables that must be refused.

use std::collections::HashMap;

use super::*;

fn lookup<'a>(pairs: &[(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + use<'a> {
    let map: HashMap<&str, &str> = pairs.iter().copied().collect();
    move |name| map.get(name).map(|value| value.to_string())
}

fn given(pairs: &[(&str, &str)]) -> Given {
    find(lookup(pairs), None).unwrap().expect("a launcher is found")
}

fn world(rank: usize, size: usize, local_rank: usize, local_size: usize) -> World {
    World { rank, size, local_rank, local_size }
}

/// The address that is taken when the user gives this one.
fn asked(pairs: &[(&str, &str)], rendezvous: &str) -> Address {
    find(lookup(pairs), Some(&rendezvous.parse().unwrap())).unwrap().expect("a launcher is found").address
}

/// `base` with some values replaced; an empty value counts as not set.
fn with<'a>(base: &[(&'a str, &'a str)], changes: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let kept = base.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    kept.chain(changes).copied().collect()
}

#[track_caller]
fn refused(pairs: &[(&str, &str)], parts: &[&str]) {
    let text = find(lookup(pairs), None).unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains('\n'), "{text}");
}

const TORCHRUN: [(&str, &str); 7] = [
    ("RANK", "5"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "4"),
    ("MASTER_ADDR", "node-a"),
    ("MASTER_PORT", "29500"),
    ("GROUP_RANK", "1"),
];

const OPEN_MPI: [(&str, &str); 5] = [
    ("OMPI_COMM_WORLD_RANK", "3"),
    ("OMPI_COMM_WORLD_SIZE", "4"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "3"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
    ("PMIX_NAMESPACE", "prterun-node-a-4711@1"),
];

const SLURM: [(&str, &str); 9] = [
    ("SLURM_JOB_ID", "200505"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "9"),
    ("SLURM_NTASKS", "11"),
    ("SLURM_STEP_NUM_TASKS", "11"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NODEID", "2"),
    ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
    ("SLURM_STEP_NODELIST", "gnode[08,10,20]"),
];

#[test]
fn environment_without_a_launcher_gives_nothing() {
    assert_eq!(find(|_| None, None), Ok(None));
    let variables = [("LOCAL_RANK", "3"), ("MASTER_ADDR", "x"), ("RANK", "")];
    assert_eq!(find(lookup(&variables), Some(&Address::new("a", 1))), Ok(None));
}

#[test]
fn torchrun_gives_ranks_and_an_address() {
    let address = Address::new("node-a", 29500);
    assert_eq!(given(&TORCHRUN), Given { world: world(5, 8, 1, 4), address, by: Launcher::Torchrun });
    for (changes, address) in [
        (vec![(AGENT_STORE, "False")], "node-a:29500"),
        (vec![(AGENT_STORE, "True")], "node-a:29501"),
        (vec![(AGENT_STORE, "True"), ("MASTER_PORT", "65535")], "node-a:65534"),
        (vec![("MASTER_ADDR", "fe80::1")], "[fe80::1]:29500"),
        (vec![("MASTER_ADDR", "[fe80::1]")], "[fe80::1]:29500"),
    ] {
        assert_eq!(given(&with(&TORCHRUN, &changes)).address.to_string(), address, "{changes:?}");
    }
    let variables = with(&TORCHRUN, &[("MASTER_ADDR", ""), ("MASTER_PORT", "")]);
    assert_eq!(asked(&variables, "b:7"), Address::new("b", 7));
    let alone = given(&[("RANK", "0"), ("WORLD_SIZE", "1")]);
    assert_eq!((alone.world, alone.address), (World::ALONE, Address::new("127.0.0.1", 0)));
}

#[test]
fn own_launcher_s_port_is_used_as_it_is() {
    let own = given(&with(&TORCHRUN, &[(LAUNCHED, "1"), (AGENT_STORE, "True")]));
    assert_eq!((own.by, own.address), (Launcher::Own, Address::new("node-a", 29500)));
    // The launcher has read the flag; its result is in the variables.
    assert_eq!(asked(&with(&TORCHRUN, &[(LAUNCHED, "1")]), "b:7"), Address::new("node-a", 29500));
}

#[test]
fn torchrun_s_wrong_variables_are_named() {
    for (changes, parts) in [
        (("WORLD_SIZE", ""), ["RANK is set but WORLD_SIZE is not", "unset RANK"]),
        (("RANK", ""), ["WORLD_SIZE is set but RANK is not", "unset WORLD_SIZE"]),
        (("LOCAL_RANK", ""), ["LOCAL_RANK is not", "set LOCAL_RANK"]),
        (("LOCAL_WORLD_SIZE", ""), ["LOCAL_WORLD_SIZE is not", "set LOCAL_WORLD_SIZE"]),
        (("MASTER_ADDR", ""), ["MASTER_ADDR is not", "set MASTER_ADDR"]),
        (("MASTER_PORT", ""), ["MASTER_PORT is not", "set MASTER_PORT"]),
        (("RANK", "8"), ["RANK=8", "less than WORLD_SIZE, which is 8"]),
        (("RANK", "-1"), ["RANK=-1", "whole number"]),
        (("RANK", "one"), ["RANK=one", "whole number"]),
        (("WORLD_SIZE", "0"), ["WORLD_SIZE=0", "from 1"]),
        (("WORLD_SIZE", "1e3"), ["WORLD_SIZE=1e3", "whole number"]),
        (("WORLD_SIZE", "99999999999999999999"), ["WORLD_SIZE=99999999999999999999", "to 65536"]),
        (("LOCAL_RANK", "4"), ["LOCAL_RANK=4", "less than LOCAL_WORLD_SIZE, which is 4"]),
        (("LOCAL_WORLD_SIZE", "9"), ["LOCAL_WORLD_SIZE=9", "at most WORLD_SIZE, which is 8"]),
        (("MASTER_PORT", "65536"), ["MASTER_PORT=65536", "from 1 to 65535"]),
        (("MASTER_PORT", "0"), ["MASTER_PORT=0", "from 1"]),
    ] {
        refused(&with(&TORCHRUN, &[changes]), &parts);
    }
}

#[test]
fn open_mpi_on_one_machine_uses_a_port_of_the_job() {
    let first = given(&OPEN_MPI);
    assert_eq!((first.world, first.by), (world(3, 4, 3, 4), Launcher::OpenMpi));
    let Address { host, port } = &first.address;
    assert!(host == "127.0.0.1" && (12_288..28_672).contains(port), "{}", first.address);
    assert_eq!(given(&with(&OPEN_MPI, &[("OMPI_COMM_WORLD_RANK", "0")])).address, first.address);
    let other = given(&with(&OPEN_MPI, &[("PMIX_NAMESPACE", "prterun-node-a-4712@1")]));
    assert_ne!(other.address, first.address);
    let older = given(&with(&OPEN_MPI, &[("PMIX_NAMESPACE", ""), ("OMPI_MCA_orte_ess_jobid", "3236233217")]));
    assert_eq!(older.address.host, "127.0.0.1");
}

#[test]
fn open_mpi_on_several_machines_needs_an_address() {
    let several =
        with(&OPEN_MPI, &[("OMPI_COMM_WORLD_LOCAL_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "1")]);
    refused(&several, &["Open MPI", "several machines", "--rendezvous HOST:PORT", "MASTER_ADDR"]);
    refused(&with(&OPEN_MPI, &[("PMIX_NAMESPACE", "")]), &["names no job", "--rendezvous"]);
    assert_eq!(asked(&several, "a:5"), Address::new("a", 5));
    let several_at = given(&with(&several, &[("MASTER_ADDR", "n"), ("MASTER_PORT", "6")]));
    assert_eq!(several_at.address, Address::new("n", 6));
    refused(&with(&OPEN_MPI, &[("OMPI_COMM_WORLD_SIZE", "")]), &["OMPI_COMM_WORLD_SIZE is not"]);
    refused(&with(&OPEN_MPI, &[("OMPI_COMM_WORLD_LOCAL_RANK", "")]), &["OMPI_COMM_WORLD_LOCAL_RANK is not"]);
    refused(&with(&OPEN_MPI, &[("OMPI_COMM_WORLD_RANK", "4")]), &["OMPI_COMM_WORLD_RANK=4", "less than"]);
}

#[test]
fn slurm_gives_the_first_machine_and_a_port_of_the_step() {
    let step = given(&SLURM);
    assert_eq!((step.world, step.by), (world(9, 11, 1, 3), Launcher::Slurm));
    let Address { host, port } = step.address;
    assert!(host == "gnode08" && (12_288..28_672).contains(&port), "{host}:{port}");
    let port_with = |change| given(&with(&SLURM, &[change])).address.port;
    assert_eq!(port_with(("SLURM_PROCID", "8")), port);
    assert_ne!(port_with(("SLURM_STEP_ID", "1")), port);
    assert_ne!(port_with(("SLURM_JOB_ID", "200506")), port);
    assert_eq!(port_with(("MASTER_PORT", "777")), 777);
    assert_eq!(given(&with(&SLURM, &[("MASTER_ADDR", "h")])).address, Address::new("h", port));
    assert_eq!(asked(&SLURM, "a:5"), Address::new("a", 5));
    let on_one = with(
        &SLURM,
        &[("SLURM_STEP_TASKS_PER_NODE", ""), ("SLURM_NTASKS_PER_NODE", "11"), ("SLURM_NODEID", "0")],
    );
    assert_eq!(given(&on_one).address, Address::new("127.0.0.1", port));
    assert_eq!(given(&on_one).world.local_size, 11);
}

#[test]
fn slurm_s_shell_and_batch_script_are_not_ranks() {
    for changes in [
        vec![("SLURM_STEP_ID", "")],
        vec![("SLURM_STEP_NUM_TASKS", "1")],
        vec![("SLURM_STEP_NUM_TASKS", ""), ("SLURM_NTASKS", "1")],
        vec![("SLURM_STEP_NUM_TASKS", ""), ("SLURM_NTASKS", "")],
    ] {
        assert_eq!(find(lookup(&with(&SLURM, &changes)), None), Ok(None), "{changes:?}");
    }
}

#[test]
fn slurm_s_wrong_variables_are_named() {
    for (changes, parts) in [
        (("SLURM_PROCID", ""), ["SLURM_PROCID is not", "set SLURM_PROCID"]),
        (("SLURM_LOCALID", ""), ["SLURM_LOCALID is not", "set SLURM_LOCALID"]),
        (("SLURM_PROCID", "11"), ["SLURM_PROCID=11", "which is 11"]),
        (("SLURM_LOCALID", "3"), ["SLURM_LOCALID=3", "SLURM_STEP_TASKS_PER_NODE, which is 3"]),
        (("SLURM_STEP_NUM_TASKS", "many"), ["SLURM_STEP_NUM_TASKS=many", "whole number"]),
        (("SLURM_STEP_TASKS_PER_NODE", ""), ["SLURM_STEP_TASKS_PER_NODE is not", "set SLURM_STEP"]),
        (("SLURM_STEP_TASKS_PER_NODE", "4(x2,3"), ["SLURM_STEP_TASKS_PER_NODE=4(x2,3", "4(x2),3"]),
        (("SLURM_STEP_TASKS_PER_NODE", "4,3"), ["fewer nodes", "SLURM_NODEID"]),
        (("SLURM_NODEID", ""), ["SLURM_NODEID is not", "set SLURM_NODEID"]),
        (("SLURM_STEP_NODELIST", "node[01-04"), ["SLURM_STEP_NODELIST=node[01-04", "list of hosts"]),
        (("SLURM_STEP_NODELIST", ""), ["Slurm does not say", "--rendezvous"]),
    ] {
        refused(&with(&SLURM, &[changes]), &parts);
    }
}

#[test]
fn torchrun_precedes_open_mpi_which_precedes_slurm() {
    let all: Vec<_> = TORCHRUN.iter().chain(&OPEN_MPI).chain(&SLURM).copied().collect();
    assert_eq!(given(&all).by, Launcher::Torchrun);
    assert_eq!(given(&all[TORCHRUN.len()..]).by, Launcher::OpenMpi);
}

#[test]
fn first_host_of_a_list_is_found() {
    for (list, host) in [
        ("node7", Some("node7")),
        ("node[01-04,07],other", Some("node01")),
        ("other,node[1-2]", Some("other")),
        ("rack[2-3]node[08,10]", Some("rack2node08")),
        ("a[1-3].example.org", Some("a1.example.org")),
        ("gnode[10,20]", Some("gnode10")),
        ("", None),
        (",a", None),
        ("a[", None),
        ("a]", None),
        ("a[]", None),
        ("a[[1]]", None),
    ] {
        assert_eq!(first_host(list).as_deref(), host, "{list}");
    }
}
