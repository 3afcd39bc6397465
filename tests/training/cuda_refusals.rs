//! `--device cuda` on machines that cannot compute with it, and batches that do not fit: each is refused with one line that
//! contains the remedy, before any file is made. The programs run with the driver without a GPU, `driver/libcuda.cpp`.
#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use crate::common::host_gpu::HostGpu;
use crate::common::programs::{self, Ran, program};
use crate::common::shared_folder::until_exit;
use crate::common::{stand_in, training};
use effnet::ops::cuda::Precision;
use effnet::parallel::World;
use effnet::train::device::Cuda;
use effnet::train::events::{Event, Reporter};
use effnet::train::memory::MemoryError;
use effnet::train::run::train_on;
use effnet::train::{Outcome, Recipe, RunOptions, TrainError, memory_plan};
use effnet_kernel_host::Options;
use tempfile::TempDir;

static DRIVER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    stand_in::build(folder.path(), "libcuda");
    until_exit(folder)
});

/// A machine by the driver's version, its devices, the card's capability, and whether the driver is a stub that toolkits
/// bring to link against.
#[derive(Clone, Copy)]
struct Machine {
    version: u32,
    devices: u32,
    capability: (u32, u32),
    stub: bool,
    memory: u64,
}

const GOOD: Machine =
    Machine { version: 13_020, devices: 1, capability: (8, 0), stub: false, memory: 1 << 30 };

/// Runs `effnet-train` on a machine.
fn run(dir: &Path, machine: Machine, arguments: &[&str]) -> Ran {
    programs::run(on_machine(dir, machine).args(arguments))
}

fn on_machine(dir: &Path, machine: Machine) -> Command {
    let Machine { version, devices, capability: (major, minor), stub, memory } = machine;
    let machine = format!("{version} {devices} {major} {minor} {} {memory}", u8::from(stub));
    let mut command = program("effnet-train");
    command.current_dir(dir).env("LD_LIBRARY_PATH", DRIVER.path()).env("FAKE_MACHINE", machine);
    command
}

/// Expects a refusal in one line, before any file is made.
#[track_caller]
fn refused(machine: Machine, arguments: &[&str], status: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let ran = run(dir.path(), machine, &[&["--device", "cuda", "--data", "synthetic"], arguments].concat());
    ran.refused(status, parts);
    assert_eq!((ran.out.as_str(), dir.path().read_dir().unwrap().count()), ("", 0), "{}", ran.err);
}

#[test]
fn machine_without_a_usable_gpu_says_why_and_what_to_do() {
    let other = "or leave the flag out, or use --device cpu";
    for (machine, parts) in [
        (Machine { stub: true, ..GOOD }, ["the NVIDIA driver that was loaded is a stub", "LD_LIBRARY_PATH"]),
        (Machine { devices: 0, ..GOOD }, ["the NVIDIA driver finds no GPU", "CUDA_VISIBLE_DEVICES"]),
        (
            Machine { version: 11_080, ..GOOD },
            ["too old: it knows CUDA 11.8, needs 12.0", "update it to 525 or later"],
        ),
        (
            Machine { capability: (7, 5), ..GOOD },
            ["Fake GPU has compute capability 7.5, needs 8.0", "use an A100"],
        ),
    ] {
        refused(machine, &[], 2, &["--device cuda: ", parts[0], parts[1], other]);
        refused(machine, &["--dry-run"], 2, &["--device cuda: ", parts[0], parts[1], other]);
    }
}

#[test]
#[cfg_attr(effnet_kernels, ignore = "needs a build without kernels")]
fn build_without_kernels_says_so() {
    let parts =
        ["--device cuda: this program has no CUDA kernels: ", "run tools/install_nvcc.sh", "--device cpu"];
    refused(GOOD, &[], 2, &parts);
}

/// Kernels for 8.0 and later need CUDA 12 or 13, and this driver supports neither.
#[test]
#[cfg_attr(not(effnet_kernels), ignore = "needs a build with kernels")]
fn driver_older_than_the_compiler_of_the_kernels_is_refused() {
    let compiler = effnet::ops::cuda::embedded::EMBEDDED.as_ref().unwrap().compiler;
    let (older, needs) = (12_000, format!("it knows CUDA 12.0, needs {}.", compiler.0));
    if compiler.0 == 12 {
        // Machine code of 12 runs under 12.0; a card for which there is only PTX does not.
        let card = Machine { version: older, capability: (13, 0), ..GOOD };
        return refused(card, &[], 2, &["--device cuda: ", "too old", &needs, "update it"]);
    }
    refused(
        Machine { version: older, ..GOOD },
        &[],
        2,
        &["--device cuda: ", "too old", &needs, "update it to 580"],
    );
}

/// A context takes a large part of a second. The stand-in cannot read the machine code, so the run ends at its first kernel.
#[test]
#[cfg_attr(not(effnet_kernels), ignore = "needs a build with kernels")]
fn start_makes_one_context() {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report");
    let mut command = on_machine(dir.path(), Machine { memory: 16 << 30, ..GOOD });
    command.env("FAKE_REPORT", &report).args([
        "--device",
        "cuda",
        "--data",
        "synthetic",
        "--batch-size",
        "8",
    ]);
    programs::run(&mut command).refused(1, &["step_scale: cuModuleGetFunction: error 500"]);
    let said = std::fs::read_to_string(report).unwrap();
    assert!(said.ends_with(" contexts 1\n"), "{said}");
}

/// There is no machine code for such a card. A program that is silent for minutes seems to hang.
#[test]
#[cfg_attr(not(effnet_kernels), ignore = "needs a build with kernels")]
fn kernels_that_the_driver_compiles_are_announced_once() {
    let dir = tempfile::tempdir().unwrap();
    let later = Machine { memory: 16 << 30, version: 99_000, capability: (13, 0), ..GOOD };
    let mut command = on_machine(dir.path(), later);
    let ran = programs::run(command.args(["--device", "cuda", "--data", "synthetic", "--batch-size", "8"]));
    assert_eq!(ran.err.matches("the driver compiles the kernels for this card").count(), 1, "{}", ran.err);
}

/// What a plan says where there is no data, before all else.
const NO_DATA: &str = "data: no such directory; planned for 1000 classes, as ImageNet has";

/// Without the flag the run uses the CPU, and its first line says why.
#[test]
fn cpu_is_used_without_the_flag_and_the_reason_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let old = Machine { capability: (6, 1), ..GOOD };
    let ran = run(dir.path(), old, &["--dry-run", "--batch-size", "8"]).good();
    assert_eq!(ran.err, "");
    let (no_data, rest) = ran.out.split_once('\n').unwrap();
    assert_eq!(no_data, NO_DATA);
    let first = rest.lines().next().unwrap();
    assert!(first.starts_with("device: cpu, "), "{first}");
    assert!(first.ends_with("(Fake GPU has compute capability 6.1, needs 8.0)"), "{first}");
}

#[test]
#[cfg_attr(not(effnet_kernels), ignore = "needs a build with kernels")]
fn batch_that_does_not_fit_the_card_is_refused_by_the_program() {
    let batch = ["--batch-size", "512", "--micro-batch", "512"];
    let parts =
        ["--micro-batch 512 needs ", " GiB of memory, 1.00 GiB are available; --micro-batch ", " fits"];
    refused(GOOD, &batch, 1, &parts);
    let dir = tempfile::tempdir().unwrap();
    let arguments = [&batch[..], &["--device", "cuda", "--dry-run"]].concat();
    let Ran { out, err, .. } = run(dir.path(), GOOD, &arguments).good();
    assert_eq!(err, "");
    let line = "device: cuda, Fake GPU (8.0, machine code sm_80), fp16 (as asked)";
    assert!(out.starts_with(&format!("{NO_DATA}\n{line}\n")), "{out}");
    let largest = out.lines().find_map(|line| line.trim().strip_prefix("largest micro-batch that fits"));
    let largest: usize = largest.unwrap().trim().parse().unwrap();
    assert!((1..512).contains(&largest), "{out}");
}

// ---- through the loop, on the harness's card ---------------------------------------------------------------

/// What a run says.
#[derive(Default)]
struct Said {
    notices: Vec<String>,
    steps: usize,
}

impl Reporter for Said {
    fn report(&mut self, event: Event) {
        match event {
            Event::Notice { text } => self.notices.push(text.to_string()),
            Event::Step(_) => self.steps += 1,
            _ => {}
        }
    }
}

fn recipe(micro_batch: usize) -> Recipe {
    Recipe { batch_size: 12, micro_batch, epochs: 2.0, ..training::recipe() }
}

fn card(memory: u64) -> Cuda<HostGpu> {
    Cuda::new(HostGpu::new(Options::default()).with_memory(memory), Precision::Fp16, "as asked")
}

/// A step of twelve images on a card of this memory; `auto` if the micro-batch was not asked for.
fn train(out: &Path, memory: u64, auto: bool, said: &mut Said) -> Result<Outcome, TrainError> {
    let options = RunOptions { auto_micro_batch: auto, max_steps: Some(1), ..training::options(out) };
    let never = AtomicBool::new(false);
    train_on(&recipe(12), &options, training::source(), card(memory), said, &never)
}

/// The exact number of bytes for four of the twelve images.
fn room_for_four() -> u64 {
    memory_plan(&recipe(4), 5, &mut card(1 << 30), World::ALONE, 1).unwrap().total()
}

#[test]
fn batch_that_does_not_fit_the_card_is_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let memory = room_for_four();
    let error = train(&out, memory, false, &mut Said::default()).expect_err("too little memory");
    let TrainError::Memory(MemoryError::Batch { micro_batch, need, have, fits, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!((micro_batch, have, fits), (12, memory, Some(4)));
    assert!(need > memory);
    let line = error.to_string();
    assert!(line.starts_with("--micro-batch 12 needs ") && line.ends_with("--micro-batch 4 fits"), "{line}");
    assert!(!out.exists());
    // If not even one image fits, there is no remedy of this kind.
    let line = train(&out, 1 << 20, true, &mut Said::default()).expect_err("no memory").to_string();
    assert!(line.ends_with("(nvidia-smi lists it), or take a smaller --resolution or --model"), "{line}");
    assert!(!out.exists());
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn micro_batch_by_default_is_one_that_fits_and_the_run_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    let outcome = train(&dir.path().join("run"), room_for_four(), true, &mut said).unwrap();
    assert_eq!((outcome.step, said.steps), (1, 1));
    assert_eq!(said.notices, ["micro-batch: 4 images, the most that fits; 3 passes make a step"]);
}
