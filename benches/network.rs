//! The whole network on one device: images per second of training steps and of inference, and where a step's time
//! goes, pass by pass.
//!
//! The batch is made once and stays in the host's memory; everything else is what `effnet-train` runs. On a
//! GPU steps are enqueued without waiting, and the time is that of all of them together, after a second of warm-up.
//!
//! `cargo bench --bench network` measures B0 at 32 and 224 (on a GPU at 224, and B4 at 380);
//! `cargo bench --bench network -- --model b4 --resolution 380 --batch 2 --steps 4` one case; `--json` prints an
//! object a case, which `tools/compare_pytorch.py` reads. `--only inference` leaves the other half out and shows where the
//! time of a batch goes; with `--batch 1` the time of an image is its latency.
//!
//! `--freeze conv_head,blocks.5` measures training with frozen layers beside whole training: each round measures all, one after
//! the other, so that their ratios are of the same minutes.
//!
//! `cargo bench --bench peak` prints how many operations a second the CPU could do, of which a pass reaches a share.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use effnet::data::Normalise;
use effnet::model::{Architecture, ParamTable, Variant, initialise};
use effnet::network::{Inference, Network};
use effnet::ops::cuda::Precision;
use effnet::ops::*;
use effnet::train::device::{Hardware, Needs, Selected, Storage, With, select};
use effnet::train::{DeviceChoice, Freeze, Recipe};
use serde_json::json;

/// What to measure. Without a model: the usual cases.
#[derive(Clone, Debug, Parser)]
struct Flags {
    #[arg(long, value_parser = Variant::from_str)]
    model: Option<Variant>,
    #[arg(long, default_value_t = 224)]
    resolution: usize,
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps of a round, and batches of an inference round.
    #[arg(long, default_value_t = 4)]
    steps: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The least steps before the first round.
    #[arg(long, default_value_t = 2)]
    warmup: u64,
    /// The least seconds before the first round: a GPU that has rested raises its clocks meanwhile. [default: 1 on a GPU]
    #[arg(long)]
    warm_seconds: Option<f64>,
    #[arg(long, default_value_t = 1000)]
    classes: usize,
    /// Measure training of the layers after this one too; several, divided by commas.
    #[arg(long, value_parser = Freeze::from_str, value_delimiter = ',')]
    freeze: Vec<Freeze>,
    #[arg(long, default_value = "auto", value_parser = DeviceChoice::from_str)]
    device: DeviceChoice,
    #[arg(long, value_parser = Precision::from_str)]
    precision: Option<Precision>,
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Measure this half only; the memory is then that of this half.
    #[arg(long)]
    only: Option<Half>,
    /// One object a case, without a profile.
    #[arg(long)]
    json: bool,
    /// Cargo passes this to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a network is measured in.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Half {
    Training,
    Inference,
}

impl Flags {
    fn wants(&self, half: Half) -> bool {
        self.only.is_none_or(|only| only == half)
    }
}

/// A network to measure.
#[derive(Clone, Copy)]
struct Case {
    model: Variant,
    resolution: usize,
    batch: usize,
    steps: u64,
}

fn cases(flags: &Flags, on_gpu: bool) -> Vec<Case> {
    let case = |model, resolution, batch, steps| Case { model, resolution, batch, steps };
    match (flags.model, on_gpu) {
        (Some(model), _) => vec![case(model, flags.resolution, flags.batch, flags.steps)],
        (None, false) => vec![case(Variant::B0, 32, 128, 12), case(Variant::B0, 224, 16, 4)],
        (None, true) => {
            let b0 = [128, 512].map(|batch| case(Variant::B0, 224, batch, 100));
            let b4 = [32].map(|batch| case(Variant::B4, 380, batch, 100));
            b0.into_iter().chain(b4).collect()
        }
    }
}

/// The batch that every step takes.
struct Fixed {
    pixels: Vec<u8>,
    labels: Vec<u32>,
    normalise: Normalise,
}

impl Fixed {
    fn new(case: Case, classes: usize) -> Fixed {
        let bytes = case.batch * case.resolution * case.resolution * 3;
        Fixed {
            pixels: (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
            labels: (0..case.batch).map(|i| (i * 37 % classes) as u32).collect(),
            normalise: Normalise { mean: [0.5; 3], deviation: [0.25; 3] },
        }
    }

    fn target(&self, network: &Network) -> BatchTarget {
        let Normalise { mean, deviation } = self.normalise;
        let training = network.config.trained_from.is_some();
        BatchTarget { image: network.image, labels: training.then_some(network.labels), mean, deviation }
    }
}

/// One step, as the engine makes it; the update is the last of the passes.
fn train<O: Ops>(ops: &mut O, network: &Network, passes: &[Pass], fixed: &Fixed, step: u64) -> Result {
    let (slot, target) = ((step % 2) as usize, fixed.target(network));
    ops.set_step(StepParams { step, learning_rate: 1e-4, ..StepParams::default() })?;
    ops.send_batch(
        slot,
        &BatchInput { pixels: BatchPixels::Squares(&fixed.pixels), labels: (&fixed.labels).into(), target },
    )?;
    ops.replay(Sequence::Training { slot, first: true, last: true }, |ops| {
        ops.begin_step()?;
        ops.unpack_batch(slot, &target)?;
        passes.iter().try_for_each(|pass| ops.run(pass))
    })?;
    ops.end_step()?;
    ops.take_figures(false).map(|_| ())
}

fn infer<O: Ops>(ops: &mut O, inference: &Inference, fixed: &Fixed, step: u64) -> Result {
    let (slot, target) = ((step % 2) as usize, fixed.target(&inference.network));
    ops.send_batch(
        slot,
        &BatchInput { pixels: BatchPixels::Squares(&fixed.pixels), labels: Labels::default(), target },
    )?;
    ops.replay(Sequence::Inference { slot }, |ops| {
        ops.unpack_batch(slot, &target)?;
        inference.forward(ops, Weights::Raw)
    })
}

/// Runs pairs of steps, at least so many steps and seconds.
fn warm_up(steps: u64, seconds: f64, mut pair: impl FnMut() -> Result) -> Result {
    let start = Instant::now();
    let mut done = 0;
    while done < steps || start.elapsed().as_secs_f64() < seconds {
        pair()?;
        done += 2;
    }
    Ok(())
}

/// Images per second of each round. A half that was left out has none.
#[derive(Default)]
struct Rates {
    training: Vec<f64>,
    inference: Vec<f64>,
    /// Bytes of the state and the plan: that of training unless it was left out.
    memory: u64,
    /// Where a step's time goes, unless one line of JSON is all that is printed.
    report: Option<ProfileReport>,
    /// Of training with frozen layers: which, images per second, bytes.
    frozen: Vec<(Freeze, Vec<f64>, u64)>,
}

struct Measure<'a>(&'a Flags, Case);

impl Measure<'_> {
    /// Images per second of each round, for each of so many kinds of work: in a round they take turns. `run` makes so many
    /// steps of a kind.
    fn rates(
        &self,
        warm: f64,
        kinds: usize,
        mut run: impl FnMut(usize, u64) -> Result,
    ) -> Result<Vec<Vec<f64>>> {
        let Measure(flags, case) = self;
        for kind in 0..kinds {
            warm_up(flags.warmup, warm, || run(kind, 2))?;
        }
        let mut rates = vec![Vec::new(); kinds];
        for _ in 0..flags.rounds {
            for (kind, rates) in rates.iter_mut().enumerate() {
                let start = Instant::now();
                run(kind, case.steps)?;
                rates.push((case.steps * case.batch as u64) as f64 / start.elapsed().as_secs_f64());
            }
        }
        Ok(rates)
    }
}

/// Training of a whole network, or of its last layers.
struct Training {
    freeze: Option<Freeze>,
    network: Network,
    plan: Plan,
    /// Those of a step; the update is the last.
    passes: Vec<Pass>,
}

impl Training {
    fn new(recipe: &Recipe, arch: &Architecture, device: &impl Device) -> Training {
        let table = ParamTable::new(arch);
        let network = Network::new(arch, &table, recipe.network_config(1));
        let mut passes = network.itinerary(device).passes();
        let frozen = Frozen::of(&passes, table.trainable(), table.total());
        passes.push(Update { frozen, ..recipe.update() }.into());
        Training { freeze: recipe.freeze, plan: network.plan(device), network, passes }
    }
}

impl With for Measure<'_> {
    type Output = Result<Rates>;

    fn with<H: Hardware>(self, hardware: H) -> Result<Rates> {
        let Measure(flags, case) = self;
        let recipe = Recipe { resolution: case.resolution, ..Recipe::reference(case.model, case.batch) };
        let arch = recipe.architecture(flags.classes).map_err(|error| OpsError::Device(error.to_string()))?;
        let table = ParamTable::new(&arch);
        let device = hardware.device();
        let warm = flags.warm_seconds.unwrap_or(if hardware.has_own_memory() { 1.0 } else { 0.0 });
        let mut trainings = Vec::new();
        if flags.wants(Half::Training) {
            let freezes = [None].into_iter().chain(flags.freeze.iter().copied().map(Some));
            let training = |freeze| Training::new(&Recipe { freeze, ..recipe.clone() }, &arch, &device);
            trainings.extend(freezes.map(training));
        }
        let inference = Inference::new(&arch, &table, case.batch, &device, &[Weights::Raw]);
        let inference_plan = flags.wants(Half::Inference).then(|| inference.plan(&device));
        let plans: Vec<&Plan> = trainings.iter().map(|t| &t.plan).chain(&inference_plan).collect();
        let (trainable, total) = (table.trainable(), table.total());
        let state = 4 * (2 * total + 3 * trainable);
        let memory = |plan: &Plan| (plan.tensor_bytes + plan.workspace_bytes() + state) as u64;
        let mut found = Rates { memory: memory(plans[0]), ..Rates::default() };
        let mut ops =
            hardware.start(&Needs { state: StateSize::new(trainable, total), plans: &plans, group: None })?;
        ops.write_state(Buffer::Parameters, &initialise::initialise(&table, 1))?;
        let fixed = Fixed::new(case, flags.classes);

        if flags.wants(Half::Training) {
            let (mut number, mut bound) = (0, None);
            let mut steps = |ops: &mut H::Ops, kind: usize, count: u64| -> Result {
                let Training { network, plan, passes, .. } = &trainings[kind];
                if bound.replace(kind) != Some(kind) {
                    ops.bind(plan)?;
                }
                (0..count).try_for_each(|_| {
                    number += 1;
                    train(ops, network, passes, &fixed, number)
                })?;
                ops.take_figures(true).map(|_| ())
            };
            let rates = self.rates(warm, trainings.len(), |kind, count| steps(&mut ops, kind, count))?;
            for (training, rates) in trainings.iter().zip(rates) {
                match training.freeze {
                    None => found.training = rates,
                    Some(freeze) => found.frozen.push((freeze, rates, memory(&training.plan))),
                }
            }
            if !flags.json {
                // Bound and warm before the profile begins.
                steps(&mut ops, 0, 2)?;
                ops.start_profile()?;
                steps(&mut ops, 0, case.steps)?;
                found.report = Some(ops.take_profile()?);
            }
        }
        if let Some(plan) = &inference_plan {
            ops.bind(plan)?;
            inference.fold(&mut ops)?;
            let mut logits = vec![0.0; inference.network.logits.elements];
            let rates = self.rates(warm, 1, |_, count| {
                (0..count).try_for_each(|number| infer(&mut ops, &inference, &fixed, number))?;
                ops.download(inference.network.logits, &mut logits)
            })?;
            found.inference = rates.concat();
            if !flags.json && !flags.wants(Half::Training) {
                ops.start_profile()?;
                (0..case.steps).try_for_each(|number| infer(&mut ops, &inference, &fixed, number))?;
                found.report = Some(ops.take_profile()?);
            }
        }
        Ok(found)
    }
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn tell(flags: &Flags, case: Case, line: &str, rates: &Rates) {
    let Case { model, resolution, batch, steps } = case;
    if flags.json {
        let object = json!({
            "model": model.name(), "resolution": resolution, "batch": batch, "device": line,
            "training": rates.training, "inference": rates.inference, "memory": rates.memory,
        });
        return println!("{object}");
    }
    let speed = match flags.only {
        None => {
            let [training, inference] = [&rates.training, &rates.inference].map(|rates| median(rates));
            format!("{training:.0} images/s in training, {inference:.0} in inference")
        }
        Some(Half::Training) => format!("{:.0} images/s in training", median(&rates.training)),
        Some(Half::Inference) => format!("{:.0} images/s in inference", median(&rates.inference)),
    };
    let gib = rates.memory as f64 / (1 << 30) as f64;
    println!("\n{line}\n{model} at {resolution}, batch {batch}: {speed}, {gib:.2} GiB");
    for (freeze, training, memory) in &rates.frozen {
        let ratios: Vec<f64> = training.iter().zip(&rates.training).map(|(own, whole)| own / whole).collect();
        let (speed, ratio, gib) = (median(training), median(&ratios), *memory as f64 / (1 << 30) as f64);
        println!(
            "  --freeze {freeze}: {speed:.1} images/s in training, {ratio:.2} times those of the whole, {gib:.2} GiB"
        );
    }
    let report = rates.report.iter().flat_map(|report| effnet::train::profile::lines(report, steps));
    report.for_each(|line| println!("  {line}"));
}

fn main() {
    let flags = Arc::new(Flags::parse());
    let storage = Storage { precision: flags.precision, ..Storage::default() };
    let open = || select(flags.device, flags.threads, storage);
    let fail = |error: &dyn std::fmt::Display| -> ! {
        eprintln!("error: {error}");
        std::process::exit(1)
    };
    let (line, on_gpu) = match open() {
        Ok(Selected::Cpu(cpu)) => (cpu.line(), false),
        Ok(Selected::Cuda(cuda)) => (cuda.line(), true),
        Err(error) => fail(&error),
    };
    for case in cases(&flags, on_gpu) {
        let rates = open()
            .map_err(|e| e.to_string())
            .and_then(|selected| selected.with(Measure(&flags, case)).map_err(|error| error.to_string()));
        match rates {
            Ok(rates) => tell(&flags, case, &line, &rates),
            Err(error) => fail(&error),
        }
    }
}
