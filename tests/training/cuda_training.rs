//! Training runs on the CUDA engine, whose kernels run on the host harness or on a GPU: loss scaling, checkpoints, memory,
//! and images that the GPU prepares.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::common::gpu::{TestGpu, on_cuda};
use crate::common::host_gpu::HostGpu;
use crate::common::training::{self, change_saved, saved};
use effnet::data::augment::{Auto, RandAugment};
use effnet::data::raw::RawBatch;
use effnet::data::{CropMode, Source, Split};
use effnet::model::ParamTable;
use effnet::network::{Network, NetworkConfig};
use effnet::ops::cuda::{CudaDevice, CudaOps, Gpu, Precision};
use effnet::ops::*;
use effnet::parallel::World;
use effnet::pixels::{Editing, raw_batch_bytes};
use effnet::train::classify::Classifying;
use effnet::train::device::{Cpu, Cuda, Hardware, Needs};
use effnet::train::evaluator::Evaluator;
use effnet::train::events::{LogLine, Silent};
use effnet::train::memory::{evaluation_need, memory_plan};
use effnet::train::run::train_on;
use effnet::train::{ClassWeights, Decayed, Outcome, Recipe, RecomputeChoice, RunOptions, TrainError};

fn recipe() -> Recipe {
    // With a low rate, runs that differ only in rounding stay close.
    Recipe {
        resolution: 64,
        batch_size: 4,
        micro_batch: 2,
        epochs: 1.0,
        lr: 1e-5,
        eval_every: 100.0,
        ..training::recipe()
    }
}

/// Five classes, eight steps an epoch, two images to validate. At 32×32 the last maps would be one pixel, and the variance
/// over so few values so small that gradients overflow fp16 at any scale.
fn source() -> Source {
    Source::synthetic(5, 32, 2, 64).unwrap()
}

fn run<H: Hardware>(hardware: H, out: &Path, steps: u64) -> Outcome {
    run_recipe(&recipe(), hardware, out, steps)
}

fn run_recipe<H: Hardware>(recipe: &Recipe, hardware: H, out: &Path, steps: u64) -> Outcome {
    let resume = out.join("checkpoint.bin").exists();
    let options = RunOptions { max_steps: Some(steps), resume, ..training::options(out) };
    let never = AtomicBool::new(false);
    train_on(recipe, &options, source(), hardware, &mut Silent, &never).expect("it trains")
}

fn cuda<G: TestGpu>(precision: Precision) -> Cuda<G> {
    Cuda::new(G::open(G::WAYS[0]), precision, "as asked")
}

/// Replaces the checkpoint's state of loss scaling.
fn set_scale(out: &Path, scale: LossScale) {
    change_saved(out, |checkpoint, _| checkpoint.metadata.loss_scale = Some(scale));
}

fn overflow_skips_the_step_halves_the_scale_and_survives_a_resume<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    run(cuda::<G>(Precision::Fp16), out, 1);
    // With a scale that suits this step, so that the weights change.
    set_scale(out, LossScale { scale: 2.0, good_steps: 0, skipped: 2 });
    run(cuda::<G>(Precision::Fp16), out, 2);
    let before = saved(out);
    assert_eq!(before.metadata.loss_scale, Some(LossScale { scale: 2.0, good_steps: 1, skipped: 2 }));
    // With this scale, every gradient overflows fp16.
    let scale = 2f32.powi(40);
    set_scale(out, LossScale { scale, good_steps: 7, skipped: 2 });
    run(cuda::<G>(Precision::Fp16), out, 3);
    let after = saved(out);
    assert_eq!(after.metadata.step, 3);
    assert_eq!(after.state, before.state, "a skipped step changed something");
    let expected = LossScale { scale: scale / 2.0, good_steps: 0, skipped: 3 };
    assert_eq!(after.metadata.loss_scale, Some(expected));

    // One more good step, and the scale grows.
    set_scale(out, LossScale { scale: 2.0, good_steps: 1999, skipped: 3 });
    run(cuda::<G>(Precision::Fp16), out, 4);
    let grown = saved(out);
    assert_eq!(grown.metadata.loss_scale, Some(LossScale { scale: 4.0, good_steps: 0, skipped: 3 }));
    assert_ne!(grown.state, after.state);
    let log = training::timeless_log(out);
    let skipped = |line: &LogLine| matches!(line, LogLine::Step(record) if record.skipped);
    assert_eq!(log.iter().map(skipped).collect::<Vec<_>>()[1..], [false, true, false]);
}
on_cuda!(overflow_skips_the_step_halves_the_scale_and_survives_a_resume);

/// The engine takes as much memory as was planned before the run or the evaluation, to a thousandth: the rest is the
/// blocks of the step and the rounding of sizes.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "the host harness runs on x86-64 only")]
fn memory_taken_on_a_gpu_is_what_was_planned() {
    for (device, ema, weight_decay_of, augment) in [
        (CudaDevice::new(Precision::Fp16), 0.999, Decayed::Weights, Auto::AutoAugment),
        (CudaDevice::recomputing(Precision::Bf16), 0.999, Decayed::Weights, Auto::None),
        (CudaDevice::new(Precision::Fp32), 0.0, Decayed::All, Auto::None),
    ] {
        let precision = device.precision;
        let hardware = || match device.recomputes {
            true => cuda::<HostGpu>(precision).with_recompute(RecomputeChoice::On),
            false => cuda(precision),
        };
        let recipe = Recipe { ema, weight_decay_of, augment, ..recipe() };
        let editing = if recipe.edits_images() { Editing::Edits } else { Editing::None };
        let images = (recipe.micro_batch, recipe.resolution);
        let arch = recipe.architecture(5).unwrap();
        let table = ParamTable::new(&arch);
        let plan = |config| Network::new(&arch, &table, config).plan(&device);
        let evaluation = plan(NetworkConfig::inference(images.0));
        let need = evaluation_need(&evaluation, &table, &device, true, images);
        let planned = memory_plan(&recipe, 5, &mut hardware(), World::ALONE, 1).unwrap();
        let planned = planned.total() - planned.reserve;
        let evaluating =
            StateSize { slots: 0, decay_factors: false, ..StateSize::new(table.trainable(), table.total()) };
        let (slots, decay_factors) = (2, weight_decay_of != Decayed::All);
        let training = StateSize { slots, decay_factors, ..evaluating };
        for (what, planned, state, plans, editing) in [
            ("a run", planned, training, vec![&plan(recipe.network_config(1)), &evaluation], editing),
            ("an evaluation", need, evaluating, vec![&evaluation], Editing::None),
        ] {
            let used = taken(hardware(), state, &plans, images, editing);
            let line = format!("{what} with {device:?}: {used} bytes, planned {planned}");
            assert!(used.abs_diff(planned) < planned / 1000, "{line}");
        }
    }
}

/// Bytes of the device's memory that an engine takes until the first batch is sent.
fn taken(
    mut hardware: Cuda<HostGpu>,
    state: StateSize,
    plans: &[&Plan],
    (images, side): (usize, usize),
    editing: Editing,
) -> u64 {
    let before = hardware.available().expect("it knows");
    let needs = Needs { state, plans, group: None };
    let mut ops = hardware.start(&needs).unwrap();
    let mut tensors = Tensors::default();
    let image = tensors.new_tensor("image", images * side * side * 3, Kind::Activation);
    let labels = tensors.new_tensor("labels", images, Kind::Index);
    let target = BatchTarget { image, labels: Some(labels), mean: [0.5; 3], deviation: [0.25; 3] };
    let mut bytes = vec![0; raw_batch_bytes(images, side)];
    RawBatch::new(&mut bytes, images, side);
    let pixels = BatchPixels::Raw { bytes: &bytes, side, editing, held: None };
    ops.send_batch(0, &BatchInput { pixels, labels: (&vec![0; images]).into(), target }).unwrap();
    before - ops.gpu().available().unwrap()
}

/// The loss of mixed images with weights of the classes is the CPU's, to the rounding of fp32.
fn mixed_and_weighted_images_train_alike<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    let [cpu, gpu] = ["cpu", "gpu"].map(|name| dir.path().join(name));
    let weights = (0..5).map(|class| (class.to_string(), f64::from(1 + class))).collect();
    let class_weights = Some(ClassWeights::Given(weights));
    let recipe = Recipe { mixup: 0.4, cutmix: 1.0, class_weights, ..recipe() };
    run_recipe(&recipe, Cpu::new(2, "as asked"), &cpu, 3);
    run_recipe(&recipe, cuda::<G>(Precision::Fp32), &gpu, 3);
    let (cpu, gpu) = (training::figures(&cpu), training::figures(&gpu));
    assert_eq!((cpu.len(), gpu.len()), (3, 3));
    for ((step, loss, _), (_, expected, _)) in gpu.iter().zip(cpu) {
        assert!((loss / expected - 1.0).abs() < 1e-3, "step {step}: {loss} beside {expected}");
    }
}
on_cuda!(mixed_and_weighted_images_train_alike);

fn resumed_run_equals_the_undisturbed_one<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    // The second step of an undisturbed run is captured, and the third launches the same graphs.
    run(cuda::<G>(Precision::Fp16), &whole, 3);
    run(cuda::<G>(Precision::Fp16), &parts, 1);
    run(cuda::<G>(Precision::Fp16), &parts, 3);
    training::assert_same_file(&whole, &parts, "checkpoint.bin");
    assert_eq!(training::timeless_log(&whole), training::timeless_log(&parts));
}
on_cuda!(resumed_run_equals_the_undisturbed_one);

/// A run may go on with expanded tensors computed again that it stored, and the other way. Evaluations compute them again too.
fn recomputing_run_saves_the_same_bytes<G: TestGpu>() {
    let recipe = Recipe { ema: 0.9, eval_every: 0.25, ..recipe() };
    let dir = tempfile::tempdir().unwrap();
    let [stored, again, mixed] = ["stored", "again", "mixed"].map(|name| dir.path().join(name));
    let on = || cuda::<G>(Precision::Fp16).with_recompute(RecomputeChoice::On);
    run_recipe(&recipe, cuda::<G>(Precision::Fp16).with_recompute(RecomputeChoice::Off), &stored, 3);
    assert!(on().line().contains(", fp16, recomputing (as asked)"), "{}", on().line());
    run_recipe(&recipe, on(), &again, 3);
    run_recipe(&recipe, on(), &mixed, 1);
    run_recipe(&recipe, cuda::<G>(Precision::Fp16).with_recompute(RecomputeChoice::Off), &mixed, 2);
    run_recipe(&recipe, on(), &mixed, 3);
    for other in [again, mixed] {
        training::assert_same_file(&stored, &other, "checkpoint.bin");
        training::assert_same_file(&stored, &other, "best.bin");
        assert_eq!(training::timeless_log(&stored), training::timeless_log(&other));
    }
}
on_cuda!(recomputing_run_saves_the_same_bytes);

/// Each stage has its own plan and graphs: the second step of a stage is captured, and the third launches what was captured.
fn progressive_run_is_resumed_to_the_same_bytes<G: TestGpu>() {
    // An evaluation in the first stage has larger images, and no edits.
    let augment = "rand-m5-n2".parse().unwrap();
    let recipe = Recipe { progressive: vec![48], augment, eval_every: 0.25, ..recipe() };
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    run_recipe(&recipe, cuda::<G>(Precision::Fp16), &whole, 7);
    for steps in [3, 4, 5, 7] {
        run_recipe(&recipe, cuda::<G>(Precision::Fp16), &parts, steps);
    }
    training::assert_same_file(&whole, &parts, "checkpoint.bin");
    assert_eq!(training::timeless_log(&whole), training::timeless_log(&parts));
}
on_cuda!(progressive_run_is_resumed_to_the_same_bytes);

fn checkpoint_moves_between_devices_and_precisions<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    // Eight images at once: of four, the last batch norms see sixteen values, and an untrained network turns the rounding of
    // bf16 into more than the bound.
    let recipe = Recipe { batch_size: 8, micro_batch: 8, epochs: 2.0, ..recipe() };
    run_recipe(&recipe, Cpu::new(2, "as asked"), out, 1);
    assert_eq!(saved(out).metadata.loss_scale, None);
    set_scale(out, LossScale { scale: 2.0, good_steps: 0, skipped: 0 });
    run_recipe(&recipe, cuda::<G>(Precision::Fp16), out, 2);
    let scale = saved(out).metadata.loss_scale;
    assert!(scale.is_some());
    run_recipe(&recipe, cuda::<G>(Precision::Bf16), out, 3);
    run_recipe(&recipe, cuda::<G>(Precision::Fp32), out, 4);
    run_recipe(&recipe, Cpu::new(2, "as asked"), out, 5);
    // The loss scale of fp16 is kept for the next run in fp16.
    assert_eq!(saved(out).metadata.loss_scale, scale);
    let losses = training::figures(out);
    assert_eq!(losses.len(), 5);
    // Each device continues where the previous one stopped: five steps on the CPU alone give nearly the same losses.
    let alone = dir.path().join("alone");
    run_recipe(&recipe, Cpu::new(2, "as asked"), &alone, 5);
    for ((step, loss, _), (_, expected, _)) in losses.iter().zip(training::figures(&alone)) {
        assert!((loss / expected - 1.0).abs() < 0.05, "step {step}: {loss} beside {expected}");
    }
}
on_cuda!(checkpoint_moves_between_devices_and_precisions);

/// The GPU as a device that needs squares.
struct Squares<G: TestGpu>(Cuda<G>);

struct SquaresDevice(CudaDevice);

impl Device for SquaresDevice {
    fn fixed_bytes(&self) -> usize {
        self.0.fixed_bytes()
    }

    fn element_bytes(&self, kind: Kind) -> usize {
        self.0.element_bytes(kind)
    }
    fn workspace(&self, pass: &Pass) -> Workspace {
        self.0.workspace(pass)
    }
    fn threads(&self) -> usize {
        self.0.threads()
    }
}

impl<G: TestGpu> Hardware for Squares<G> {
    type Device = SquaresDevice;
    type Ops = CudaOps<G>;

    fn device(&self) -> SquaresDevice {
        SquaresDevice(self.0.device())
    }
    fn line(&self) -> String {
        self.0.line()
    }
    fn available(&mut self) -> Option<u64> {
        self.0.available()
    }
    fn has_own_memory(&self) -> bool {
        true
    }
    fn start(self, needs: &Needs) -> Result<CudaOps<G>> {
        self.0.start(needs)
    }
}

/// Two steps and an evaluation at their end, whose last batch is partial, of images that are cropped and resized: the
/// checkpoint and the log have the same bytes either way. Returns the run on images that the GPU prepared.
fn train_both_ways<G: TestGpu>(recipe: &Recipe, source: &Source, dir: &Path) -> (PathBuf, Outcome) {
    fn train<H: Hardware>(recipe: &Recipe, source: &Source, hardware: H, out: &Path) -> Outcome {
        let never = AtomicBool::new(false);
        let options = training::options(out);
        train_on(recipe, &options, source.clone(), hardware, &mut Silent, &never).expect("it trains")
    }
    let (squares, raw) = (dir.join("squares"), dir.join("raw"));
    let recipe = Recipe { crop: CropMode::Resized, epochs: 0.25, warmup_epochs: 0.0, ..recipe.clone() };
    train(&recipe, source, Squares(cuda::<G>(Precision::Bf16)), &squares);
    let outcome = train(&recipe, source, cuda::<G>(Precision::Bf16), &raw);
    training::assert_same_run(&squares, &raw);
    (raw, outcome)
}

fn run_on_images_prepared_by_the_gpu_equals_that_on_squares<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::synthetic(5, 32, 3, 80).unwrap();
    let (raw, outcome) = train_both_ways::<G>(&recipe(), &source, dir.path());
    let logged = outcome.last.expect("an evaluation at the end");

    // The checkpoint gives the same figures again. The image of a file is classified before and after.
    let [file, broken] = ["image.png", "broken.png"].map(|name| dir.path().join(name));
    let photograph =
        image::RgbImage::from_fn(70, 90, |x, y| image::Rgb([x as u8 * 3, y as u8, (x ^ y) as u8]));
    photograph.save(&file).unwrap();
    std::fs::write(&broken, "no image").unwrap();
    let checkpoint = saved(&raw);
    let bias = ParamTable::new(&checkpoint.architecture).get("classifier.bias").unwrap().offset;
    let bias = &checkpoint.state.parameters[bias..];
    let mut evaluator = Evaluator::new(&checkpoint, 2, cuda::<G>(Precision::Bf16)).unwrap();
    let classify = |evaluator: &mut Evaluator<_>| {
        let stop = AtomicBool::new(false);
        let how = Classifying { weights: Weights::Raw, threads: 1, maps: true, stop: &stop };
        let mut logits = Vec::new();
        let files = [&file, &broken, &file, &file].map(Clone::clone).to_vec().into();
        let done = evaluator.classify(&files, &how, &mut |number, seen| {
            let Ok(seen) = seen else {
                assert_eq!(number, 1);
                return Ok(());
            };
            for (class, &logit) in seen.logits.iter().enumerate() {
                let map = seen.map(class).unwrap();
                let mean = map.iter().sum::<f64>() / map.len() as f64 + f64::from(bias[class]);
                assert!((mean - f64::from(logit)).abs() < 1e-5 * (1.0 + mean.abs()), "{mean} and {logit}");
            }
            logits.push(seen.logits.to_vec());
            Ok::<(), TrainError>(())
        });
        assert_eq!((done.unwrap(), logits.len()), (4, 3));
        logits
    };
    let before = classify(&mut evaluator);
    // The same image beside a broken one, which is black, and beside itself.
    assert!(before[1] == before[0] && before[2] == before[0]);
    let figures = evaluator.split(&source, Split::Val, 2).unwrap();
    assert_eq!((figures[0].images, figures[0].top1, figures[0].loss), (3, logged.top1, logged.loss));
    assert_eq!(classify(&mut evaluator), before);
}
on_cuda!(run_on_images_prepared_by_the_gpu_equals_that_on_squares);

/// Nearly every image of this policy has edits, some have many.
fn run_on_images_edited_by_the_gpu_equals_that_on_squares<G: TestGpu>() {
    let dir = tempfile::tempdir().unwrap();
    let source = Source::synthetic(5, 32, 3, 80).unwrap();
    let augment = Auto::Rand(RandAugment { operations: 3, level: 8.0, deviation: 0.5, increasing: true });
    let recipe = Recipe { augment, color_jitter: 0.4, random_erasing: 0.7, vertical_flip: 0.5, ..recipe() };
    train_both_ways::<G>(&recipe, &source, dir.path());
}
on_cuda!(run_on_images_edited_by_the_gpu_equals_that_on_squares);
