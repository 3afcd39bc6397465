//! The engine on NVIDIA's driver, with kernels that do nothing: what it asks of the driver, not what it computes.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use crate::common::training;
use crate::common::trial::{IMAGES, Trial};
use crate::fake::{Fake, IDLE, MEMORY, Report};
use effnet::data::{Share, Split};
use effnet::model::ParamTable;
use effnet::network::Inference;
use effnet::ops::cuda::driver::Driver;
use effnet::ops::cuda::nvidia::device::Library;
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::{BatchInput, Ops, StateSize, Weights};
use effnet::pixels::BatchPixels;
use effnet::train::device::{Cuda, form};
use effnet::train::evaluate::{Images, evaluate};
use effnet::train::events::{Event, Reporter};
use effnet::train::loading::Loading;
use effnet::train::run::train_on;
use effnet::train::team::Team;
use effnet::train::{Recipe, RunOptions};

const PRECISION: Precision = Precision::Fp16;

fn driver() -> Driver {
    Driver::with_kernels(Library::load().unwrap(), 0, &IDLE).unwrap()
}

/// An engine on the first blocks of B0.
fn ops(trial: &Trial) -> CudaOps<Driver> {
    let plan = trial.network.plan(&CudaDevice::new(PRECISION));
    let size = StateSize::new(trial.table.trainable(), trial.table.total());
    let mut ops = CudaOps::new(driver(), size, &[&plan], PRECISION).unwrap();
    trial.start(&mut ops, &plan);
    ops
}

/// What happened in one step.
fn step(fake: &Fake, trial: &Trial, ops: &mut CudaOps<Driver>, number: usize) -> Report {
    let before = (fake.report)();
    trial.submit(ops, number, number..number + 1).unwrap();
    let after = (fake.report)();
    Report { failures: after.failures - before.failures, waits: after.waits - before.waits, ..after }
}

/// The fake driver refuses to load code in a capture, so this also shows that the first steps were not captured.
#[test]
fn steps_make_one_context_and_no_call_fails() {
    let fake = Fake::card(12_000, (8, 6));
    let trial = Trial::small(PRECISION, 1);
    let mut ops = ops(&trial);
    let graphs = (fake.graphs)();
    let made = [0, 1, 2, 3, 4, 5].map(|number| {
        step(&fake, &trial, &mut ops, number);
        ops.take_figures(true).unwrap().expect("a step was made");
        (fake.graphs)() - graphs
    });
    // Slots alternate: each runs uncaptured once.
    assert_eq!(made, [0, 0, 1, 2, 2, 2]);
    let report = (fake.report)();
    assert_eq!((report.failures, report.contexts), (0, 1), "{report:?}");
    drop(ops);
    assert_eq!((fake.live)(), 0);
}

/// Each kernel has its times, but the host waits for the step as a whole.
#[test]
fn profiled_step_waits_once_more_however_many_kernels_it_has() {
    let fake = Fake::card(12_000, (8, 6));
    let trial = Trial::small(PRECISION, 1);
    let waits = |profiled: bool| {
        let mut ops = ops(&trial);
        if profiled {
            ops.start_profile().unwrap();
        }
        let count = |number| {
            let waits = step(&fake, &trial, &mut ops, number).waits;
            ops.take_figures(true).unwrap();
            waits
        };
        let counted: Vec<_> = (0..6).map(count).collect();
        (counted, ops.take_profile().unwrap())
    };
    let (plain, _) = waits(false);
    let (profiled, report) = waits(true);
    let kernels: u64 = report.rows.iter().filter(|row| row.kernel.is_some()).map(|row| row.calls).sum();
    assert!(kernels > 6 * 50, "{kernels} kernels");
    for (plain, profiled) in plain.iter().zip(&profiled) {
        assert!(*profiled <= plain + 1, "{profiled} waits, {plain} without a profile");
    }
    assert_eq!((fake.report)().failures, 0);
    assert_eq!((fake.live)(), 0);
}

/// A larger batch needs other buffers. The old ones, and the graphs that use them, are freed.
#[test]
fn larger_batch_frees_the_smaller_one_s_buffers_and_graphs() {
    let fake = Fake::card(12_000, (8, 6));
    let trial = Trial::small(PRECISION, 1);
    let mut ops = ops(&trial);
    let (bare, graphs) = (ops.gpu().available().unwrap(), (fake.graphs)());
    for number in 0..4 {
        step(&fake, &trial, &mut ops, number);
        ops.take_figures(true).unwrap();
    }
    assert_eq!((fake.graphs)() - graphs, 2);
    let larger = vec![0; 3 << 20];
    let labels = vec![0; IMAGES];
    let pixels = BatchPixels::Squares(&larger);
    ops.send_batch(0, &BatchInput { pixels, labels: (&labels).into(), target: trial.target() }).unwrap();
    assert_eq!((fake.graphs)() - graphs, 0);
    // Two buffers of 3 MiB, in pieces of 2 MiB, and the code that was loaded.
    assert_eq!(bare - ops.gpu().available().unwrap(), 2 * (4 << 20));
    drop(ops);
    assert_eq!((fake.live)(), 0);
}

/// Raw weights and their moving average look at the same batch on the device, and the next one travels meanwhile.
#[test]
fn evaluation_sends_each_batch_once_for_all_sets_of_weights() {
    let fake = Fake::card(12_000, (8, 6));
    let recipe = training::recipe();
    let source = training::source();
    let arch = recipe.architecture(source.classes()).unwrap();
    let table = ParamTable::new(&arch);
    let device = CudaDevice::new(PRECISION);
    let sets = [Weights::Raw, Weights::Ema];
    let inference = Inference::new(&arch, &table, recipe.micro_batch, &device, &sets);
    let plan = inference.plan(&device);
    let size = StateSize::new(table.trainable(), table.total());
    let mut ops = CudaOps::new(driver(), size, &[&plan], PRECISION).unwrap();
    ops.bind(&plan).unwrap();
    let form = form(&device, recipe.micro_batch);
    let (recipe, share) = (&recipe, Share::WHOLE);
    let memory = ops.host_memory();
    let loading = Loading { source: &source, recipe, form, share, threads: 1, memory, processors: &[] };
    let before = (fake.report)().sends;
    let mut loader = loading.evaluation(Split::Val).unwrap();
    let images = Images {
        loader: &mut loader,
        normalise: source.normalise(),
        expected: source.samples(Split::Val) as u64,
    };
    let never = AtomicBool::new(false);
    let figures = evaluate(&mut ops, &inference, images, &never, &Team::default()).unwrap().unwrap();
    assert_eq!((figures.len(), figures[0].images), (2, 13));
    // Thirteen images are two batches.
    assert_eq!((recipe.micro_batch, (fake.report)().sends - before), (8, 2));
    drop((loader, loading, ops));
    assert_eq!((fake.live)(), 0);
}

// ---- through the loop --------------------------------------------------------------------------------------

/// Makes the device fail after so many steps.
struct Failing<'a>(&'a Fake, usize, i32);

impl Reporter for Failing<'_> {
    fn report(&mut self, event: Event) {
        if let Event::Step(_) = event {
            self.1 -= 1;
            if self.1 == 0 {
                (self.0.fault)(self.2);
            }
        }
    }
}

fn train(out: &Path, reporter: &mut dyn Reporter) -> Result<(), String> {
    let recipe = Recipe { epochs: 4.0, eval_every: 1.0, ..training::recipe() };
    let options = RunOptions { resume: out.join("checkpoint.bin").exists(), ..training::options(out) };
    let card = Cuda::new(driver(), PRECISION, "as asked");
    let never = AtomicBool::new(false);
    train_on(&recipe, &options, training::source(), card, reporter, &never)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Under WSL2 little memory can be pinned. The run goes on, and copies its batches.
#[test]
fn run_without_pinned_memory_goes_on() {
    let fake = Fake::card(12_000, (8, 6));
    (fake.machine)(12_000, 1, 8, 6, 0, 64 * MEMORY);
    (fake.pinnable)(0);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    train(&out, &mut Failing(&fake, usize::MAX, 0)).unwrap();
    assert_eq!((training::steps_done(&out), (fake.report)().large), (Some(20), 0));
    assert_eq!((fake.live)(), 0);
}

#[test]
fn card_whose_memory_another_process_has_taken_is_refused_with_the_remedy() {
    let fake = Fake::card(12_000, (8, 6));
    (fake.taken)(MEMORY - (8 << 20));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let error = train(&out, &mut Failing(&fake, usize::MAX, 0)).unwrap_err();
    let starts = "--micro-batch 8 needs ";
    assert!(
        error.starts_with(starts) && error.contains(", 8.00 MiB are available; nothing fits: close"),
        "{error}"
    );
    assert!(error.contains("nvidia-smi lists it") && !error.contains('\n') && !out.exists(), "{error}");
    (fake.taken)((MEMORY - (8 << 20)).wrapping_neg());
    assert_eq!((fake.live)(), 0);
}

/// The loader's threads put batches where the device reads them. Of a batch of 8 images the loop itself copies 8 labels.
#[test]
fn batches_travel_from_the_loader_s_own_memory() {
    let fake = Fake::card(12_000, (8, 6));
    (fake.machine)(12_000, 1, 8, 6, 0, 64 * MEMORY);
    let dir = tempfile::tempdir().unwrap();
    train(&dir.path().join("run"), &mut Failing(&fake, usize::MAX, 0)).unwrap();
    let report = (fake.report)();
    assert_eq!(report.failures, 0);
    // Twenty steps, and four evaluations of two batches.
    assert_eq!(report.large, 28, "{report:?}");
    assert_eq!((fake.live)(), 0);
}

/// A card that disappears (999), memory that fails (214), a kernel that faults (700): one line, and the last checkpoint
/// is as it was.
#[test]
fn card_that_fails_in_a_run_is_one_line_and_the_checkpoint_stays() {
    for (code, hint) in [(999, "See nvidia-smi"), (214, "nvidia-smi -q -d ECC"), (700, "EFFNET_CUDA_SYNC=1")]
    {
        let fake = Fake::card(12_000, (8, 6));
        (fake.machine)(12_000, 1, 8, 6, 0, 64 * MEMORY);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let error = train(&out, &mut Failing(&fake, 8, code)).unwrap_err();
        assert!(error.contains(hint) && !error.contains('\n'), "{error}");
        // The first epoch has five steps; its end was saved.
        assert_eq!(training::steps_done(&out), Some(5), "{code}");
        (fake.machine)(12_000, 1, 8, 6, 0, 64 * MEMORY);
        train(&out, &mut Failing(&fake, usize::MAX, 0)).unwrap();
        assert_eq!(training::steps_done(&out), Some(20), "{code}");
        assert_eq!((fake.live)(), 0);
    }
}
