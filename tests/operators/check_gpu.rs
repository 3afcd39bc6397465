//! `tools/check_gpu.sh` without a GPU. It runs this program's tests `on_a_gpu` through the driver's calls, with the stand-in
//! `driver/libcuda.cpp` and kernels that hang, fault or compute something wrong. For what a machine may have or lack there
//! are small scripts.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::common::programs::{Ran, run};
use crate::common::shared_folder::until_exit;
use crate::common::stand_in;
use tempfile::TempDir;

/// Tests of two modules, of which only one launches [`WATCHED`].
const MODULES: [&str; 4] = ["--filter", "masks::dropout", "--filter", "reduction::"];
const WATCHED: &str = "masks";
const ITS_TEST: &str = "masks::dropout_of_the_kernels_equals_the_cpu::on_a_gpu";

/// Prints what NVIDIA's does.
const NVIDIA_SMI: &str =
    r#"[ "$1" = -L ] && echo "GPU 0: Fake GPU" || echo "Fake GPU, 580.65.06, 1024 MiB, 350.00 W, 1980 MHz""#;

static DRIVER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    stand_in::build(folder.path(), "libcuda");
    until_exit(folder)
});

/// A machine with the stand-in as its driver.
struct Machine {
    folder: TempDir,
}

/// What a check left.
struct Checked {
    ran: Ran,
    /// Name, outcome and note.
    rows: Vec<[String; 3]>,
    out: PathBuf,
    _folder: TempDir,
}

impl Machine {
    fn new() -> Machine {
        Machine { folder: tempfile::tempdir().unwrap() }.with("nvidia-smi", NVIDIA_SMI)
    }

    /// With a script as one of its programs.
    fn with(self, name: &str, script: &str) -> Machine {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the script on these programs.
    fn check(self, faults: &str, arguments: &[&str], programs: &[&Path]) -> Checked {
        self.check_with(Path::new(env!("CARGO_MANIFEST_DIR")), faults, arguments, programs)
    }

    /// The same with the script that lies in `tools/` of a folder.
    fn check_with(self, root: &Path, faults: &str, arguments: &[&str], programs: &[&Path]) -> Checked {
        let out = self.path("out");
        let search = format!("{}:{}", self.folder.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(root.join("tools/check_gpu.sh"));
        command.arg("--out").arg(&out).args(arguments).args(programs);
        command.env("PATH", search).env("LD_LIBRARY_PATH", DRIVER.path()).env("FAKE_FAULTS", faults);
        command.env("PYTHON", "no-python").env("COMPUTE_SANITIZER", self.path("compute-sanitizer"));
        let ran = run(command);
        let results = fs::read_to_string(out.join("results.tsv")).unwrap_or_default();
        let row = |line: &str| {
            let cells: Vec<&str> = line.split('\t').collect();
            [1, 2, 4].map(|cell| cells[cell].to_string())
        };
        Checked { rows: results.lines().map(row).collect(), ran, out, _folder: self.folder }
    }
}

impl Checked {
    #[track_caller]
    fn outcome(&self, name: &str) -> (&str, &str) {
        let row = self.rows.iter().find(|row| row[0] == name);
        let [_, outcome, note] = row.unwrap_or_else(|| panic!("no {name} in {}", self.ran.printed()));
        (outcome, note)
    }

    /// The rows of tests.
    fn tests(&self) -> Vec<&[String; 3]> {
        self.rows.iter().filter(|[name, ..]| name.contains("::")).collect()
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.out.join(format!("logs/{name}.log"))).unwrap_or_default()
    }

    fn figures(&self) -> String {
        fs::read_to_string(self.out.join("figures.md")).unwrap()
    }
}

/// Runs the two modules' tests. With a fault in [`WATCHED`] exactly the row of its test fails, for this reason.
#[track_caller]
fn tests_with(fault: Option<(&str, &str)>, arguments: &[&str]) {
    let own = std::env::current_exe().unwrap();
    let faults = fault.map_or(String::new(), |(kind, _)| format!("{kind} {WATCHED}"));
    let arguments = [&["--only", "tests"], &MODULES[..], arguments].concat();
    let checked = Machine::new().check(&faults, &arguments, &[&own]);
    let printed = checked.ran.printed();
    let rows = checked.tests();
    assert_eq!((checked.ran.status, rows.len()), (Some(i32::from(fault.is_some())), 5), "{printed}");
    for [name, outcome, note] in rows {
        let log = checked.log(&name.replace(':', "_"));
        assert!(log.contains("running 1 test"), "{name}: {log}");
        match fault.filter(|_| name == ITS_TEST) {
            None => assert_eq!((outcome.as_str(), note.as_str()), ("ok", ""), "{name}: {log}"),
            Some((_, reason)) => assert!(outcome == "FAILED" && note.contains(reason), "{note}: {log}"),
        }
    }
    let masks = if fault.is_some() { "| masks | FAILED |" } else { "| masks | ok |" };
    for part in [masks, "1 passed |\n", "| reduction | ok |", "4 of 4 passed |\n"] {
        assert!(checked.figures().contains(part), "no {part} in {}", checked.figures());
    }
    // The table comes last.
    let table: Vec<&str> = printed.lines().rev().take_while(|line| !line.is_empty()).collect();
    let [masks, its_test] =
        ["masks ", ITS_TEST].map(|name| table.iter().any(|l| l.trim_start().starts_with(name)));
    assert_eq!((masks, its_test), (true, fault.is_some()), "{printed}");
}

#[test]
fn every_test_passes_without_a_fault() {
    tests_with(None, &[]);
}

#[test]
fn kernel_that_hangs_costs_its_own_row() {
    tests_with(Some(("hang", "did not end in 20 s")), &["--limit", "test=20"]);
}

/// A fault ends the context of the process. The other tests do not see it.
#[test]
fn kernel_that_faults_costs_its_own_row() {
    tests_with(Some(("fault", "CUDA_ERROR_ILLEGAL_ADDRESS")), &[]);
}

#[test]
fn wrong_result_costs_its_own_row() {
    tests_with(Some(("wrong", "assertion")), &[]);
}

/// Prints what ncu does of two launches.
const NCU: &str = r#"cat <<'END'
==PROF== Profiling
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","stem_forward_f16(const Arguments)","gpu__time_duration.sum","ns","1,500,000"
"0","stem_forward_f16(const Arguments)","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","71.4"
"0","stem_forward_f16(const Arguments)","sm__inst_issued.avg.pct_of_peak_sustained_active","%","30"
"1","head_forward(const Arguments)","gpu__time_duration.sum","ns","2,000"
END"#;

/// Says that a test passed, and lists one.
fn program_with(test: &str) -> String {
    format!(
        r#"case "$*" in
*--list*) echo "{test}: test" ;;
*nccl_is_found*) echo "NCCL 2.28.9" ;;
*) echo "test result: ok. 1 passed; 0 failed" ;;
esac"#
    )
}

/// NCCL is too old for two ranks on a card, and racecheck does not know the card. A run is stopped and resumed.
#[test]
fn other_parts_pass_or_are_skipped_with_the_reason() {
    let machine = Machine::new()
        .with("ranks-1", &program_with("gpu_ranks::two_on_a_gpu"))
        .with("network-1", &program_with("cuda_ranks::one_on_a_gpu"))
        .with(
            "bench-network",
            "echo 'b0 at 224, batch 128: 12345 images/s in training, 6789 in inference, 2.10 GiB'",
        )
        .with("ncu", NCU)
        .with(
            "compute-sanitizer",
            r#"case "$*" in
*memcheck*"--report-api-errors no"*) echo "test result: ok. 1 passed; 0 failed" ;;
*) echo "========= Error: Device not supported" && exit 1 ;;
esac"#,
        );
    let train = assert_cmd::cargo::cargo_bin("effnet-train");
    let programs = ["ranks-1", "network-1", "bench-network"].map(|name| machine.path(name));
    let programs = [&programs[0], &programs[1], &programs[2], &train].map(PathBuf::as_path);
    let checked = machine.check("", &["--device", "cpu", "--limit", "train=300"], &programs);
    assert_eq!(checked.ran.status, Some(0), "{}", checked.ran.printed());
    for (name, outcome, note) in [
        ("nvidia-smi", "ok", "Fake GPU, 580.65.06"),
        ("versions", "ok", "driver 580.65.06"),
        ("versions", "ok", "NCCL 2.28.9"),
        ("dry_run", "ok", "largest micro-batch "),
        ("cuda_ranks::one_on_a_gpu", "ok", ""),
        ("gpu_ranks::two_on_a_gpu", "skipped", "NCCL 2.28.9 < 2.30, which cannot put two ranks on one card"),
        ("memcheck", "ok", "a step in fp16"),
        ("racecheck", "skipped", "not available here: Error: Device not supported"),
        ("bench b0 32 8", "ok", "12345 images/s in training"),
        ("pytorch", "skipped", "no no-python here"),
        ("train", "ok", " steps, then SIGTERM"),
        ("resume", "ok", " images/s"),
        ("ncu", "ok", "longest: stem_forward_f16"),
    ] {
        let (got, why) = checked.outcome(name);
        assert!(got == outcome && why.contains(note), "{name}: {got} {why}\n{}", checked.log(name));
    }
    for line in [
        "# Fake GPU, 1024 MiB: figures of tools/check_gpu.sh\n",
        "| b0 | 32 | 8 | 12345 | 6789 | 2.10 |\n",
        "| stem_forward_f16 | 1 | 1500 | 71 | 30 |\n",
        "| gpu_ranks | skipped | 0 | 0 of 1 passed |\n",
        "| tests | 1 passed, 0 failed, 1 skipped |\n",
    ] {
        assert!(checked.figures().contains(line), "no {line} in {}", checked.figures());
    }
}

/// What a machine lacks is no failure; what a program does wrong is one, and its first error is the row's.
#[test]
fn first_error_is_in_the_row_of_what_fails() {
    let failing = r#"case "$*" in
*--list*) echo "gpu_ranks::two_on_a_gpu: test" ;;
*) printf 'thread main panicked at a.rs:1:2:\nno NCCL here; install one\nnote: more\n' && exit 101 ;;
esac"#;
    let machine = Machine::new()
        .with("ranks-1", failing)
        .with(
            "operators-1",
            r#"case "$*" in
*--list*) printf 'stem::on_a_gpu: test\nhead::on_a_gpu: test\n' ;;
*stem*) kill -ABRT $$ ;;
*) trap '' TERM && sleep 60 ;;
esac"#,
        )
        .with(
            "training-1",
            "case \"$*\" in *--list*) echo 'resume::on_a_gpu: test' ;; *) echo 'running 0 tests' ;; esac",
        )
        .with("effnet-train", "echo 'error: no kernels; build with nvcc' >&2; exit 2");
    let programs = ["ranks-1", "operators-1", "training-1", "effnet-train"].map(|name| machine.path(name));
    let programs = programs.each_ref().map(|path| path.as_path());
    let checked = machine.check("", &["--skip", "ncu,train", "--limit", "test=5"], &programs);
    assert_eq!(checked.ran.status, Some(1), "{}", checked.ran.printed());
    for (name, outcome, note) in [
        ("dry_run", "FAILED", "error: no kernels; build with nvcc (status 2)"),
        ("stem::on_a_gpu", "FAILED", "(status 134)"),
        ("head::on_a_gpu", "FAILED", "did not end in 5 s, nor when told to"),
        ("resume::on_a_gpu", "FAILED", "no test was run"),
        ("gpu_ranks::two_on_a_gpu", "skipped", "no NCCL: no NCCL here; install one"),
        ("memcheck", "skipped", "no compute-sanitizer here"),
        ("bench-network", "skipped", "the program bench-network is not among those given"),
    ] {
        let (got, why) = checked.outcome(name);
        assert!(got == outcome && why.contains(note), "{name}: {got} {why}");
    }
}

#[test]
fn what_has_no_time_left_has_failed() {
    let own = std::env::current_exe().unwrap();
    let checked =
        Machine::new().check("", &[&["--only", "tests", "--budget", "0"], &MODULES[..]].concat(), &[&own]);
    assert_eq!(checked.ran.status, Some(1));
    assert_eq!(checked.outcome(ITS_TEST), ("FAILED", "no time left of 0 s"));
}

/// Status 2, and one line.
#[test]
fn script_that_cannot_run_says_why() {
    for (arguments, why) in [
        (&["--only", "speed"][..], "speed: no such part"),
        (&["--limit", "test"], "--limit test: use one of"),
        (&["--out"], "--out: unknown, or without its value"),
        (&["--only", "ncu", "no-program"], "no-program: not a program"),
    ] {
        let ran = Machine::new().check("", arguments, &[]).ran;
        assert_eq!((ran.status, ran.err.lines().count()), (Some(2), 1), "{}", ran.printed());
        assert!(ran.err.contains(why), "{}", ran.err);
    }
}

/// What a pack holds finds itself, and its files, anywhere.
#[test]
fn pack_runs_where_it_is_unpacked() {
    let own = std::env::current_exe().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pack = folder.path().join("pack.tar.gz");
    let packed = run(Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/pack_gpu.sh"))
        .arg("--out")
        .arg(&pack)
        .arg(&own))
    .good();
    assert!(
        packed.out.contains(" MiB. There: tar -xf pack.tar.gz && effnet-gpu/tools/check_gpu.sh"),
        "{}",
        packed.out
    );
    run(Command::new("tar").arg("-xf").arg(&pack).current_dir(folder.path())).good();
    let there = folder.path().join("effnet-gpu");
    for file in [
        "bin/operators",
        "tools/compare_pytorch.py",
        "tools/rivals/worker.py",
        "tests/golden/efficientnet_b0_64.json",
        "VERSION",
    ] {
        assert!(there.join(file).is_file(), "{file}");
    }
    let checked = Machine::new().check_with(&there, "", &[&["--only", "tests"], &MODULES[..]].concat(), &[]);
    assert_eq!((checked.ran.status, checked.tests().len()), (Some(0), 5), "{}", checked.ran.printed());
}
