//! Ranks as processes: started by the program, by hand in the manner of other launchers, killed, stopped, resumed.
#![cfg(target_os = "linux")]

mod data_support;
mod train_support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use effnet::parallel::launch::ECHO;
use effnet::train::checkpoint;
use effnet::train::events::LogLine;
use tempfile::TempDir;
use train_support::*;

const RANKS: usize = 4;
/// By which all that is left of a group must have ended; a run takes a few seconds.
const SOON: Duration = Duration::from_secs(60);

/// Packed data, and an undisturbed run of four ranks over it: 12 steps with evaluations after 5, 10 and 12, two images
/// a rank.
static WHOLE: LazyLock<(TempDir, Duration)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    data_support::pack_grey(&dir.path().join("data"), 40, 13, 28, 1 << 20);
    let since = Instant::now();
    succeed(launched(&dir.path().join("data"), &dir.path().join("whole")));
    (dir, since.elapsed())
});

fn place(name: &str) -> PathBuf {
    WHOLE.0.path().join(name)
}

const RECIPE: &str = "--model b0 --resolution 32 --batch-size 8 --epochs 2.4 --warmup-epochs 0.4 --lr 0.002 --ema 0.9 \
                      --seed 11 --checkpoint-every 2 --loader-threads 1 --threads 1 --device cpu";

fn program(data: &Path, out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_effnet-train"));
    command.args(RECIPE.split_whitespace()).arg("--data").arg(data).arg("--out").arg(out);
    command.env_remove("EFFNET_DATA").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Four ranks, started by the program.
fn launched(data: &Path, out: &Path) -> Command {
    let mut command = program(data, out);
    command.args(["--ranks", "4"]);
    command
}

fn said(output: &Output) -> String {
    let [out, errors] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    out + &errors
}

fn succeed(mut command: impl std::borrow::BorrowMut<Command>) -> String {
    let output = command.borrow_mut().output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

/// The lines of a run that fails, which say what is wrong.
fn errors(output: &Output) -> Vec<String> {
    assert!(matches!(output.status.code(), Some(1 | 2)), "{:?}: {}", output.status, said(output));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    errors.lines().filter(|line| line.contains("error: ")).map(String::from).collect()
}

/// The processes that a launcher has started, by rank.
fn ranks_of(launcher: u32) -> Vec<(usize, i32)> {
    let children =
        fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
    let rank = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut variables = environment.split(|&byte| byte == 0);
        let value = variables.find_map(|variable| variable.strip_prefix(b"RANK="))?;
        Some((std::str::from_utf8(value).ok()?.parse().ok()?, pid))
    };
    children.split_whitespace().filter_map(|pid| rank(pid.parse().ok()?)).collect()
}

/// All ranks of a launcher, once they are there; none if it ended before.
fn wait_for_ranks(child: &mut Child) -> Option<Vec<(usize, i32)>> {
    let since = Instant::now();
    loop {
        let ranks = ranks_of(child.id());
        if ranks.len() == RANKS {
            return Some(ranks);
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        assert!(since.elapsed() < SOON, "ranks do not start");
        sleep(Duration::from_millis(1));
    }
}

/// Waits until `ready` says so; false if the process ends before.
fn wait_for(child: &mut Child, ready: impl Fn() -> bool) -> bool {
    let since = Instant::now();
    while !ready() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(since.elapsed() < SOON, "nothing happens");
        sleep(Duration::from_millis(1));
    }
    true
}

fn signal(pid: i32, signal: i32) {
    // SAFETY: a signal to a process that this test has started.
    unsafe { libc::kill(pid, signal) };
}

fn alive(pid: i32) -> bool {
    // One that has ended and was not waited for is a zombie, and no process any more.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    state.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn wait_until_gone(ranks: &[(usize, i32)]) {
    let since = Instant::now();
    while ranks.iter().any(|(_, pid)| alive(*pid)) {
        assert!(since.elapsed() < SOON, "orphans: {ranks:?}");
        sleep(Duration::from_millis(5));
    }
}

fn begun(out: &Path) -> bool {
    out.join("recipe.toml").exists() || out.join("checkpoint.bin").exists()
}

fn resumed(out: &Path) -> Command {
    let mut command = launched(&place("data"), out);
    if begun(out) {
        command.arg("--resume");
    }
    command
}

fn log_lines(out: &Path) -> usize {
    fs::read_to_string(out.join("log.jsonl")).map_or(0, |text| text.lines().count())
}

fn steps_done(out: &Path) -> Option<u64> {
    checkpoint::read(&out.join("checkpoint.bin")).ok().map(|c| c.metadata.step)
}

/// A small generator with a fixed seed: whom to kill, and when.
struct Moments(u64);

impl Moments {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

#[test]
fn two_runs_are_one_byte_for_byte() {
    let out = place("again");
    let told = succeed(launched(&place("data"), &out));
    assert_same_run(&place("whole"), &out);
    assert_same_file(&place("whole"), &out, "recipe.toml");
    // One display: what the ranks share is said once.
    for line in ["model: ", "device: ", "checkpoint: "] {
        assert_eq!(told.lines().filter(|l| l.starts_with(line)).count(), 1, "{told}");
    }
    assert!(told.contains("2 for each of 4 ranks") && !told.contains("rank 1:"), "{told}");
}

/// What four ranks counted together is what one process counts.
#[test]
fn an_evaluation_by_four_is_one_by_one_exactly() {
    let logged = timeless_log(&place("whole"));
    let Some(LogLine::Evaluation(logged)) = logged.last() else { panic!("the run ends with an evaluation") };
    let mut command = Command::new(env!("CARGO_BIN_EXE_effnet-eval"));
    command.arg(place("whole").join("checkpoint.bin")).args(["--json", "--device", "cpu"]);
    let line = succeed(command.env_remove("EFFNET_DATA").arg("--data").arg(place("data")));
    let found: serde_json::Value = serde_json::from_str(&line).unwrap();
    let figures = |of: &serde_json::Value| ["top1", "top5", "loss"].map(|key| of[key].as_f64());
    assert_eq!(figures(&found), [Some(logged.top1), Some(logged.top5), Some(logged.loss)]);
    assert_eq!(figures(&found["ema"]), [logged.ema_top1, logged.ema_top5, logged.ema_loss]);
    assert_eq!((found["images"].as_u64(), logged.images), (Some(13), 13));
}

/// Whoever is killed, and whenever: all end, somebody says who it was, and the run goes on as if nothing had been.
#[test]
fn twenty_ranks_killed_change_nothing() {
    let out = place("killed");
    let mut moments = Moments(7);
    let (mut hits, mut whom, mut named) = (0, [0; RANKS], 0);
    for number in 0..20 {
        let mut child = resumed(&out).spawn().unwrap();
        let Some(ranks) = wait_for_ranks(&mut child) else {
            let output = child.wait_with_output().unwrap();
            panic!("kill {number}: it ended by itself: {}", said(&output));
        };
        sleep(WHOLE.1.mul_f64(0.7 * moments.next()));
        let (rank, pid) = ranks[(moments.next() * RANKS as f64) as usize % RANKS];
        let hit = alive(pid) && child.try_wait().unwrap().is_none();
        signal(pid, libc::SIGKILL);
        let since = Instant::now();
        let output = child.wait_with_output().unwrap();
        wait_until_gone(&ranks);
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "kill {number} of rank {rank}: {:?}",
            since.elapsed()
        );
        if hit && !output.status.success() {
            (hits, whom[rank]) = (hits + 1, whom[rank] + 1);
            let lines = errors(&output);
            named += usize::from(lines.iter().any(|line| line.contains(&format!("rank {rank} "))));
            assert_eq!(lines.len(), 1, "kill {number} of rank {rank}: {}", said(&output));
        }
        for name in ["checkpoint.bin", "best.bin"] {
            if out.join(name).exists() {
                checkpoint::read(&out.join(name)).unwrap_or_else(|e| panic!("after kill {number}: {e}"));
            }
        }
        if steps_done(&out) == Some(12) && output.status.success() {
            assert_same_run(&place("whole"), &out);
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(
        hits >= 12 && whom.iter().filter(|&&kills| kills > 0).count() >= 3,
        "{hits} of 20 kills met {whom:?}"
    );
    assert_eq!(named, hits, "every kill is told with the rank's number");
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn ranks_end_with_their_launcher() {
    let out = place("launcher-killed");
    let mut child = launched(&place("data"), &out).spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until_gone(&ranks);
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

#[test]
fn a_signal_to_any_one_stops_all_and_saves() {
    for to_launcher in [true, false] {
        let out = place(&format!("signal-{to_launcher}"));
        let mut child = launched(&place("data"), &out).spawn().unwrap();
        let ranks = wait_for_ranks(&mut child).unwrap();
        assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
        let third = ranks.iter().find(|(rank, _)| *rank == 2).unwrap().1;
        signal(if to_launcher { child.id() as i32 } else { third }, libc::SIGTERM);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        assert!(
            said(&output).contains("--resume") && said(&output).contains("--ranks 4"),
            "{}",
            said(&output)
        );
        let step = steps_done(&out).unwrap();
        assert!((2..12).contains(&step), "stopped after step {step}");
        assert_eq!(timeless_log(&out).last().unwrap().step(), step, "every step that was logged is saved");
        wait_until_gone(&ranks);
        succeed(resumed(&out));
        assert_same_run(&place("whole"), &out);
    }
}

/// A service manager signals all processes of a job at once, and so the launcher's signal is a second one.
#[test]
fn a_signal_that_comes_twice_is_one() {
    let out = place("twice");
    let mut child = launched(&place("data"), &out).spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    ranks.iter().for_each(|(_, pid)| signal(*pid, libc::SIGTERM));
    signal(child.id() as i32, libc::SIGTERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert!(said(&output).contains("interrupted after step"), "{}", said(&output));
    assert!(steps_done(&out).unwrap() >= 2);
    wait_until_gone(&ranks);
}

/// Whoever asks again, later, does not want to wait.
#[test]
fn a_second_signal_ends_a_rank_at_once() {
    let out = place("again-and-again");
    let mut child = launched(&place("data"), &out).spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    let pid = |wanted: usize| ranks.iter().find(|(rank, _)| *rank == wanted).unwrap().1;
    // So that rank 0 cannot end its step.
    signal(pid(2), libc::SIGSTOP);
    signal(pid(0), libc::SIGTERM);
    sleep(ECHO + Duration::from_millis(500));
    assert!(alive(pid(0)), "it has not waited for the others");
    signal(pid(0), libc::SIGTERM);
    assert!(wait_for(&mut child, || !alive(pid(0))));
    signal(pid(2), libc::SIGKILL);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    wait_until_gone(&ranks);
}

#[test]
fn a_rank_that_stands_still_is_named_and_ends_all() {
    let out = place("still");
    let mut command = launched(&place("data"), &out);
    command.args(["--watchdog", "3"]);
    let mut child = command.spawn().unwrap();
    let ranks = wait_for_ranks(&mut child).unwrap();
    assert!(wait_for(&mut child, || log_lines(&out) >= 2), "it ended by itself");
    let since = Instant::now();
    signal(ranks.iter().find(|(rank, _)| *rank == 2).unwrap().1, libc::SIGSTOP);
    let output = child.wait_with_output().unwrap();
    wait_until_gone(&ranks);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    let lines = errors(&output);
    let named = lines.len() == 1 && lines[0].contains("rank 2 ") && lines[0].contains("3 s");
    assert!(named && lines[0].contains("step"), "{}", said(&output));
    succeed(resumed(&out));
    assert_same_run(&place("whole"), &out);
}

/// Another number of ranks takes the batch as the run has it, by accumulation where they are fewer.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let out = place("numbers");
    let with = |ranks: &str, steps: &str| {
        let mut command = program(&place("data"), &out);
        command.args(["--ranks", ranks, "--max-steps", steps]);
        if begun(&out) {
            command.arg("--resume");
        }
        succeed(command)
    };
    with("4", "3");
    let told = with("2", "6");
    assert!(told.contains("batch: 8, 4 for each of 2 ranks, in micro-batches of 2"), "{told}");
    let told = with("8", "8");
    assert!(told.contains("micro-batch: 1 images instead of 2"), "{told}");
    let told = with("1", "9");
    assert!(told.contains("batch: 8, in micro-batches of 1"), "{told}");
    let steps: Vec<u64> = timeless_log(&out)
        .iter()
        .filter(|line| matches!(line, LogLine::Step(_)))
        .map(|line| line.step())
        .collect();
    assert_eq!(steps, (1..=9).collect::<Vec<u64>>());
}

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

/// A plan of ranks that go on is that of their share.
#[test]
fn a_plan_of_ranks_that_go_on_is_of_their_share() {
    let mut command = program(&place("data"), &place("whole"));
    let told = succeed(command.args(["--ranks", "8", "--resume", "--dry-run"]));
    assert!(told.contains("memory plan, 1 images a pass (batch 1)"), "{told}");
}

/// Nothing has begun before all are there, so one signal to any of them ends all that wait.
#[test]
fn a_signal_ends_ranks_that_wait_for_others() {
    let out = place("waiting");
    for (there, asked) in [(&[0][..], 0), (&[1], 1), (&[0, 1], 1), (&[0, 1], 0)] {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut ranks: Vec<(usize, Child)> = Vec::new();
        for &rank in there {
            let mut command = program(&place("data"), &out);
            command.envs([
                ("RANK", rank.to_string()),
                ("WORLD_SIZE", "4".into()),
                ("LOCAL_RANK", rank.to_string()),
                ("LOCAL_WORLD_SIZE", "4".into()),
                ("MASTER_ADDR", "127.0.0.1".into()),
                ("MASTER_PORT", port.to_string()),
            ]);
            let mut child = command.spawn().unwrap();
            let pid = child.id() as i32;
            assert!(wait_for(&mut child, || handles_sigterm(pid)), "rank {rank} ended by itself");
            ranks.push((rank, child));
        }
        // So that they have met.
        sleep(Duration::from_millis(500));
        let since = Instant::now();
        let pid = ranks.iter().find(|(rank, _)| *rank == asked).unwrap().1.id();
        signal(pid as i32, libc::SIGTERM);
        for (rank, child) in ranks {
            let output = child.wait_with_output().unwrap();
            let text = said(&output);
            assert_eq!(output.status.code(), Some(130), "{there:?}, rank {rank}: {text}");
            assert_eq!(text.contains("interrupted"), rank == 0, "{there:?}, rank {rank}: {text}");
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{there:?}: {:?}", since.elapsed());
        assert!(!out.exists());
    }
}

/// Whether a process has its own way with the signal.
fn handles_sigterm(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> 14 & 1 == 1)
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
