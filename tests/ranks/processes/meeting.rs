//! How ranks form a group: started by hand, by other launchers, on several machines. And how they fail to.

use std::path::Path;
use std::process::Command;

use super::*;

#[test]
fn two_machines_with_two_ranks_each_are_four_ranks() {
    let out = place("machines");
    let port = free_port();
    // The second machine starts first and waits.
    let machines = ["1", "0"].map(|node| {
        let mut command = program(&place("data"), &out);
        command.args(["--ranks", "2", "--nodes", "2", "--node-rank", node]);
        command.arg("--rendezvous").arg(format!("localhost:{port}")).spawn().unwrap()
    });
    for machine in machines {
        ended(machine).good();
    }
    assert_same_run(&place("whole"), &out);
}

/// Starts two processes with the variables of a launcher, and compares their run with that of `--ranks 2`.
fn started_by(variables: impl Fn(usize, u16) -> Vec<(&'static str, String)>, out: &Path) {
    let port = free_port();
    let ranks = [0, 1].map(|rank| {
        let mut command = program(&place("data"), out);
        command.envs(variables(rank, port)).spawn().unwrap()
    });
    for rank in ranks {
        ended(rank).good();
    }
    let two = place("two");
    if !two.exists() {
        let mut command = program(&place("data"), &two);
        command.args(["--ranks", "2"]);
        succeed(command);
    }
    assert_same_run(&two, out);
}

/// One test, since all launchers are compared with the same run.
#[test]
fn ranks_of_torchrun_open_mpi_and_slurm_find_each_other() {
    let text = |number: usize| number.to_string();
    started_by(|rank, port| torchrun(rank, 2, port), &place("torchrun"));
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

/// Runs two ranks; `change` sets what differs.
fn two(data: [&Path; 2], change: impl Fn(usize, &mut Command)) -> [Ran; 2] {
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let children = [0, 1].map(|rank| {
        let mut command = given(data[rank], &dir.path().join("out"), rank, 2, port);
        change(rank, command.args(["--rendezvous-timeout", "10"]));
        command.spawn().unwrap()
    });
    children.map(ended)
}

#[test]
fn rank_that_differs_is_refused_by_name() {
    let whole = place("data");
    let other = place("other-data");
    data::pack_grey(&other, 41, 13, 28, 1 << 20);
    // Only rank 0 prints the reason.
    let rank_0_says = |outputs: &[Ran; 2], parts: &[&str]| {
        let [lines, others] = [0, 1].map(|rank| outputs[rank].errors());
        let one = lines.len() == 1 && parts.iter().all(|part| lines[0].contains(part));
        assert!(one && others.is_empty(), "{parts:?}: {lines:?} {others:?}");
    };
    let outputs = two([&whole, &whole], |rank, command| {
        command.args(["--dropout", if rank == 0 { "0.1" } else { "0.3" }]);
    });
    rank_0_says(&outputs, &["rank 1", "dropout", "0.3", "0.1"]);
    let outputs = two([&whole, &whole], |rank, command| {
        command.args(["--max-steps", if rank == 0 { "3" } else { "4" }]);
    });
    rank_0_says(&outputs, &["rank 1", "max-steps 4", "3"]);
    let outputs = two([&whole, &whole], |rank, command| {
        if rank == 1 {
            command.args(["--profile", "2"]);
        }
    });
    rank_0_says(&outputs, &["rank 1", "profile 2", "none"]);
    let outputs = two([&whole, &other], |_, _| ());
    rank_0_says(&outputs, &["rank 1", "data set"]);
    let outputs = two([&whole, &whole], |rank, command| {
        if rank == 1 {
            command.env("RANK", "0");
        }
    });
    // Both are rank 0 now, and one of them finds the port in use.
    let lines = outputs.iter().flat_map(Ran::errors).collect::<Vec<_>>();
    assert!(lines.iter().any(|line| line.contains("in use") && line.contains("MASTER_PORT")), "{lines:?}");
    let outputs = two([&whole, &whole], |rank, command| {
        command.env("WORLD_SIZE", "4").env("LOCAL_WORLD_SIZE", "4");
        command.env("RANK", (2 * rank).to_string());
    });
    rank_0_says(&outputs, &["ranks 1 and 3 of 4", "10 s"]);
}

#[test]
fn error_of_all_ranks_is_printed_once_before_they_start() {
    let error = |out: &str, flags: &[&str]| {
        let ran = run(launched(&place("data"), &place(out)).args(flags));
        let lines = ran.errors();
        assert_eq!(lines.len(), 1, "{}", ran.printed());
        (ran.status.unwrap(), lines[0].to_string())
    };
    let (status, line) = error("never", &["--init-from", "no-such-file"]);
    assert!(status == 1 && line.starts_with("error: no-such-file: "), "{line}");
    let (status, line) = error("never", &["--precision", "fp16"]);
    assert!(status == 2 && line.starts_with("error: --precision fp16: "), "{line}");
    let (status, line) = error("whole", &["--resume", "--dropout", "0.4"]);
    assert!(status == 1 && line.starts_with("error: cannot resume ") && line.contains("dropout"), "{line}");
    let (status, line) = error("whole", &[]);
    assert!(status == 1 && line.contains("already holds a run"), "{line}");
    assert!(!place("never").exists());
}

#[test]
fn address_without_rank_0_is_named() {
    let error = |change: &dyn Fn(&mut Command)| {
        let mut command = given(&place("data"), &place("nowhere"), 1, 2, 1);
        change(&mut command);
        let ran = run(command);
        let lines = ran.errors();
        assert_eq!(lines.len(), 1, "{}", ran.printed());
        lines[0].to_string()
    };
    let line = error(&|command| {
        command.env("MASTER_ADDR", "no-such-host.invalid");
    });
    assert!(line.contains("no-such-host.invalid"), "{line}");
    let address = format!("127.0.0.1:{}", free_port());
    let line = error(&|command| {
        command.args(["--rendezvous", &address, "--rendezvous-timeout", "1"]);
    });
    assert!(line.contains("no answer") && line.contains(&address), "{line}");
    assert!(!place("nowhere").exists());
}

/// torchrun sets its variables for a single process too, with or without an address.
#[test]
fn single_rank_of_torchrun_trains() {
    for address in [true, false] {
        let out = place(&format!("single-{address}"));
        let mut command = given(&place("data"), &out, 0, 1, free_port());
        if !address {
            command.env_remove("MASTER_ADDR").env_remove("MASTER_PORT");
        }
        let output = succeed(command.args(["--max-steps", "1"]));
        assert!(output.contains("step 1"), "{output}");
    }
}
