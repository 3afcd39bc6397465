//! How ranks come together: started by hand, by other launchers, on several machines; and how they do not.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output};

use super::*;
use crate::train_support::*;

/// Two machines of two ranks, each started by hand, are four ranks.
#[test]
fn two_machines_are_one_group() {
    let out = place("machines");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // The second comes first: it waits.
    let machines = ["1", "0"].map(|node| {
        let mut command = program(&place("data"), &out);
        command.args(["--ranks", "2", "--nodes", "2", "--node-rank", node]);
        command.arg("--rendezvous").arg(format!("localhost:{port}")).spawn().unwrap()
    });
    for machine in machines {
        let output = machine.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_same_run(&place("whole"), &out);
}

/// Ranks that others start: the variables of a launcher, and the two processes that it would start with them.
fn started_by(variables: impl Fn(usize, u16) -> Vec<(&'static str, String)>, out: &Path) {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ranks: Vec<Child> = (0..2)
        .map(|rank| {
            let mut command = program(&place("data"), out);
            command.envs(variables(rank, port)).spawn().unwrap()
        })
        .collect();
    for rank in ranks {
        let output = rank.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    let two = place("two");
    if !two.exists() {
        let mut command = program(&place("data"), &two);
        command.args(["--ranks", "2"]);
        succeed(command);
    }
    assert_same_run(&two, out);
}

/// One test, since all compare with the same run.
#[test]
fn ranks_of_torchrun_open_mpi_and_slurm_find_each_other() {
    let text = |number: usize| number.to_string();
    let torchrun = |rank: usize, port: u16| {
        vec![
            ("RANK", text(rank)),
            ("WORLD_SIZE", "2".into()),
            ("LOCAL_RANK", text(rank)),
            ("LOCAL_WORLD_SIZE", "2".into()),
            ("MASTER_ADDR", "localhost".into()),
            ("MASTER_PORT", port.to_string()),
        ]
    };
    started_by(torchrun, &place("torchrun"));
    let open_mpi = |rank: usize, port: u16| {
        vec![
            ("OMPI_COMM_WORLD_RANK", text(rank)),
            ("OMPI_COMM_WORLD_SIZE", "2".into()),
            ("OMPI_COMM_WORLD_LOCAL_RANK", text(rank)),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2".into()),
            ("PMIX_NAMESPACE", format!("job-{port}")),
        ]
    };
    started_by(open_mpi, &place("open-mpi"));
    let slurm = |rank: usize, port: u16| {
        vec![
            ("SLURM_PROCID", text(rank)),
            ("SLURM_NTASKS", "2".into()),
            ("SLURM_LOCALID", text(rank)),
            ("SLURM_STEP_ID", "0".into()),
            ("SLURM_STEP_TASKS_PER_NODE", "2".into()),
            ("SLURM_NTASKS_PER_NODE", "2".into()),
            ("SLURM_STEP_NODELIST", "localhost".into()),
            ("SLURM_JOB_ID", port.to_string()),
        ]
    };
    started_by(slurm, &place("slurm"));
}

/// Two ranks by hand, each with its own variables and flags; what they end with.
fn two(data: [&Path; 2], rank: impl Fn(usize, &mut Command)) -> [Output; 2] {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let children = [0, 1].map(|number| {
        let mut command = program(data[number], &dir.path().join("out"));
        command.args(["--rendezvous-timeout", "10"]).envs([
            ("RANK", number.to_string()),
            ("WORLD_SIZE", "2".into()),
            ("LOCAL_RANK", number.to_string()),
            ("LOCAL_WORLD_SIZE", "2".into()),
            ("MASTER_ADDR", "127.0.0.1".into()),
            ("MASTER_PORT", port.to_string()),
        ]);
        rank(number, &mut command);
        command.spawn().unwrap()
    });
    children.map(|child| child.wait_with_output().unwrap())
}

#[test]
fn ranks_that_want_something_else_are_refused_by_name() {
    let (data, other) = (place("data"), place("other-data"));
    data_support::pack_grey(&other, 41, 13, 28, 1 << 20);
    // All know why, and rank 0 tells.
    let rank_0_says = |outputs: &[Output; 2], parts: &[&str]| {
        let [lines, others] = [0, 1].map(|rank| errors(&outputs[rank]));
        let one = lines.len() == 1 && parts.iter().all(|part| lines[0].contains(part));
        assert!(one && others.is_empty(), "{parts:?}: {lines:?} {others:?}");
    };
    let outputs = two([&data, &data], |rank, command| {
        command.args(["--dropout", if rank == 0 { "0.1" } else { "0.3" }]);
    });
    rank_0_says(&outputs, &["rank 1", "dropout", "0.3", "0.1"]);
    let outputs = two([&data, &data], |rank, command| {
        command.args(["--max-steps", if rank == 0 { "3" } else { "4" }]);
    });
    rank_0_says(&outputs, &["rank 1", "max-steps 4", "3"]);
    let outputs = two([&data, &other], |_, _| ());
    rank_0_says(&outputs, &["rank 1", "data set"]);
    let outputs = two([&data, &data], |rank, command| {
        if rank == 1 {
            command.env("RANK", "0");
        }
    });
    // Both are rank 0 now: one of them finds the port taken.
    let lines = outputs.iter().map(errors).collect::<Vec<_>>().concat();
    assert!(lines.iter().any(|line| line.contains("in use") && line.contains("MASTER_PORT")), "{lines:?}");
    let outputs = two([&data, &data], |rank, command| {
        command.env("WORLD_SIZE", "4").env("LOCAL_WORLD_SIZE", "4");
        command.env("RANK", (2 * rank).to_string());
    });
    rank_0_says(&outputs, &["ranks 1 and 3 of 4", "10 s"]);
}

/// What every rank would meet is told once, before there are any.
#[test]
fn what_all_ranks_would_meet_is_told_once() {
    let told = |out: &Path, flags: &[&str]| {
        let output = launched(&place("data"), out).args(flags).output().unwrap();
        let lines = errors(&output);
        assert_eq!(lines.len(), 1, "{}", said(&output));
        (output.status.code().unwrap(), lines[0].clone())
    };
    let (status, line) = told(&place("never"), &["--init-from", "no-such-file"]);
    assert!(status == 1 && line.starts_with("error: no-such-file: "), "{line}");
    let (status, line) = told(&place("never"), &["--precision", "fp16"]);
    assert!(status == 2 && line.starts_with("error: --precision fp16: "), "{line}");
    let (status, line) = told(&place("whole"), &["--resume", "--dropout", "0.4"]);
    assert!(status == 1 && line.starts_with("error: cannot resume ") && line.contains("dropout"), "{line}");
    let (status, line) = told(&place("whole"), &[]);
    assert!(status == 1 && line.contains("already holds a run"), "{line}");
    assert!(!place("never").exists());
}

#[test]
fn addresses_that_lead_nowhere_are_told() {
    let line = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = program(&place("data"), &place("nowhere"));
        let output = command.envs(variables.iter().copied()).args(arguments).output().unwrap();
        let lines = errors(&output);
        assert_eq!(lines.len(), 1, "{}", said(&output));
        lines[0].clone()
    };
    let second = [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
    let at = |host: &'static str, port: &'static str| {
        let mut variables = second.to_vec();
        variables.extend([("MASTER_ADDR", host), ("MASTER_PORT", port)]);
        variables
    };
    let said = line(&at("no-such-host.invalid", "29500"), &[]);
    assert!(said.contains("no-such-host.invalid"), "{said}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{taken}");
    let said = line(&at("127.0.0.1", "1"), &["--rendezvous", &address, "--rendezvous-timeout", "1"]);
    assert!(said.contains("nobody answers") && said.contains(&address), "{said}");
    assert!(!place("nowhere").exists());
}
