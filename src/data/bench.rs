//! How fast this machine prepares the images of a packed set, by stage: what `effnet-pack --bench` prints.
//!
//! The stages are the functions that the loader calls, in its order, on all threads at once: each thread takes its share
//! of a training run's batches and notes the time after every stage of every image. Whole batches are made by the loader
//! itself; they also pay for its bookkeeping. Beside the time that passed stands the processor's time: on a machine that
//! does other work, or waits for its disk, the first is longer.

use std::fmt;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::augment::{Auto, Look, Policy, Scratch, View, choose_geometry, edit_square, render};
use super::codec::{Pixels, scale_down};
use super::pack::PackOptions;
use super::sampler::Sampler;
use super::{CropMode, DataError, Form, Loader, LoaderConfig, Sampling, Share, Source, Split};

/// Images of a batch.
const BATCH: usize = 64;

/// What is measured.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    pub resolution: usize,
    pub augment: Auto,
    pub threads: usize,
    /// Of each of the measurements.
    pub time: Duration,
    /// Also measures how fast packing scales whole images down to this shorter side.
    pub resize_shorter: Option<u32>,
}

/// One stage. Rates are of images, as the table has them.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub stage: String,
    pub images: u64,
    /// Summed over the threads: that passed, and that processors worked.
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub a_core: f64,
    pub in_all: f64,
    /// What the stage gives, on all threads.
    pub gigabytes_per_second: f64,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// Training images of the set, and the mean of their stored bytes.
    pub images: usize,
    pub image_bytes: u64,
    pub resolution: usize,
    pub augment: String,
    pub threads: usize,
    /// The stages, their sum, and whole batches.
    pub rows: Vec<Row>,
}

/// A stage's sums.
#[derive(Clone, Copy, Default)]
struct Sum {
    time: Duration,
    worked: Duration,
    bytes: u64,
}

/// A thread's sums.
#[derive(Default)]
struct Sums {
    images: u64,
    /// Those that packing would scale down.
    scaled: u64,
    stages: [Sum; STAGES.len()],
}

const STAGES: [&str; 5] =
    ["read and check", "decode", "crop and resize", "edits", "scale down, as packing does"];
/// The last stage is packing's.
const OF_TRAINING: usize = STAGES.len() - 1;

/// Measures a set's training images.
///
/// # Errors
/// A damaged sample; threads that cannot be started.
pub fn bench(source: &Source, options: &BenchOptions) -> Result<Bench, DataError> {
    let policy = Policy { auto: options.augment, ..Policy::STANDARD };
    let sums = std::thread::scope(|scope| {
        let part = |part| scope.spawn(move || stages(source, options, policy, part));
        let threads: Vec<_> = (0..options.threads).map(part).collect();
        let sum = |total: Result<Sums, DataError>, thread: std::thread::ScopedJoinHandle<_>| {
            let own: Result<Sums, DataError> =
                thread.join().unwrap_or_else(|_| Err(DataError::Loader("a thread panicked".into())));
            Ok(total?.plus(&own?))
        };
        threads.into_iter().fold(Ok(Sums::default()), sum)
    })?;
    let of_training = &sums.stages[..OF_TRAINING];
    let mut rows: Vec<Row> =
        STAGES.iter().zip(of_training).map(|(stage, sum)| row(stage, sums.images, sum, options)).collect();
    let (time, worked) =
        (of_training.iter().map(|sum| sum.time).sum(), of_training.iter().map(|sum| sum.worked).sum());
    let bytes = of_training[OF_TRAINING - 1].bytes;
    rows.push(row("together", sums.images, &Sum { time, worked, bytes }, options));
    rows.push(batches(source, options, policy, Form::Squares, "whole batches, for a CPU")?);
    rows.push(batches(source, options, policy, Form::Raw { images: BATCH }, "whole batches, for a GPU")?);
    if sums.scaled > 0 {
        rows.push(row(STAGES[OF_TRAINING], sums.scaled, &sums.stages[OF_TRAINING], options));
    }
    let images = source.samples(Split::Train);
    Ok(Bench {
        images,
        image_bytes: source.bytes(Split::Train) / images as u64,
        resolution: options.resolution,
        augment: options.augment.to_string(),
        threads: options.threads,
        rows,
    })
}

impl Sums {
    fn plus(mut self, other: &Sums) -> Sums {
        self.images += other.images;
        self.scaled += other.scaled;
        for (sum, other) in self.stages.iter_mut().zip(&other.stages) {
            sum.time += other.time;
            sum.worked += other.worked;
            sum.bytes += other.bytes;
        }
        self
    }
}

fn row(stage: &str, images: u64, sum: &Sum, options: &BenchOptions) -> Row {
    let seconds = sum.time.as_secs_f64();
    let a_core = images as f64 / seconds.max(1e-9);
    let threads = options.threads as f64;
    let gigabytes_per_second = sum.bytes as f64 / seconds.max(1e-9) * threads / 1e9;
    let cpu_seconds = sum.worked.as_secs_f64();
    Row {
        stage: stage.into(),
        images,
        seconds,
        cpu_seconds,
        a_core,
        in_all: a_core * threads,
        gigabytes_per_second,
    }
}

/// One thread: the stages of its images until the time is over, at least of one batch.
fn stages(source: &Source, options: &BenchOptions, policy: Policy, part: usize) -> Result<Sums, DataError> {
    let BenchOptions { resolution, threads, time, resize_shorter, .. } = *options;
    let crop = CropMode::Auto.resolve(source.largest(Split::Train), resolution);
    let share = Share { part, parts: threads };
    let mut sampler = Sampler::training(0, source, BATCH, Sampling::PLAIN).shared(share);
    let (mut places, mut decoded, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
    let mut square = vec![0; resolution * resolution * 3];
    let packing = PackOptions { resize_shorter, ..PackOptions::default() };
    let mut sums = Sums::default();
    let end = Instant::now() + time;
    for step in 0.. {
        sampler.fill(step, &mut places);
        places.iter().for_each(|place| source.will_need(Split::Train, place.index as usize));
        for place in &places {
            let mut clock = Clock { since: now(), sums: &mut sums, stage: 0 };
            let index = place.index as usize;
            let stored = source.read(Split::Train, index)?;
            clock.note(stored.bytes());
            let image = stored.decode(&mut decoded)?;
            clock.note(image.view.bytes.len());
            let look = Look { policy, seed: 0, epoch: place.epoch, id: image.id };
            let made = image.view.whole().and_then(|view| {
                let geometry = choose_geometry(view.size(), resolution, crop, Some(look))?;
                render(view, &geometry, resolution, &mut scratch, &mut square)
            });
            made.map_err(|problem| source.damaged(Split::Train, index, problem))?;
            clock.note(square.len());
            edit_square(look, resolution, &mut scratch, &mut square);
            clock.note(square.len());
            if let Some(longest) = packing.reduced(image.view.width, image.view.height) {
                let View { width, height, channels, bytes } = image.view;
                let pixels = Pixels { width, height, channels, bytes: bytes.to_vec() };
                clock.since = now();
                let small = scale_down(&pixels, longest).map_err(DataError::Invalid)?;
                clock.note(small.bytes.len());
                sums.scaled += 1;
            }
            sums.images += 1;
        }
        if Instant::now() >= end {
            break;
        }
    }
    Ok(sums)
}

/// The time, and the time that this thread has worked.
fn now() -> (Instant, Duration) {
    (Instant::now(), worked(ClockId::ThreadCPUTime))
}

fn worked(clock: ClockId) -> Duration {
    clock_gettime(clock).try_into().unwrap_or_default()
}

/// Adds the time since the last note to the stages, in turn.
struct Clock<'a> {
    since: (Instant, Duration),
    sums: &'a mut Sums,
    stage: usize,
}

impl Clock<'_> {
    fn note(&mut self, bytes: usize) {
        let now = now();
        let sum = &mut self.sums.stages[self.stage];
        sum.time += now.0 - self.since.0;
        sum.worked += now.1 - self.since.1;
        sum.bytes += bytes as u64;
        (self.since, self.stage) = (now, self.stage + 1);
    }
}

/// Batches as the loader makes them, without those that it has ready at the start.
fn batches(
    source: &Source,
    options: &BenchOptions,
    policy: Policy,
    form: Form,
    stage: &str,
) -> Result<Row, DataError> {
    let BenchOptions { resolution, threads, time, .. } = *options;
    let config = LoaderConfig {
        split: Split::Train,
        batch: BATCH,
        share: Share::WHOLE,
        resolution,
        crop: CropMode::Auto.resolve(source.largest(Split::Train), resolution),
        form,
        augment: Some(policy),
        sampling: Sampling::PLAIN,
        seed: 0,
        first_step: 0,
        steps: u64::MAX,
        threads,
        ahead: threads,
        memory: None,
        processors: Vec::new(),
    };
    let mut loader = Loader::start(source.clone(), config)?;
    for _ in 0..threads {
        next(&mut loader)?;
    }
    let of_process = ClockId::ProcessCPUTime;
    let (since, before, mut images, mut bytes) = (Instant::now(), worked(of_process), 0, 0);
    while images == 0 || since.elapsed() < time {
        let (more, of_them) = next(&mut loader)?;
        images += more;
        bytes += of_them;
    }
    let time = since.elapsed() * threads as u32;
    Ok(row(stage, images, &Sum { time, worked: worked(of_process) - before, bytes }, options))
}

/// Takes a batch and gives it back: its images and the bytes of them.
fn next(loader: &mut Loader) -> Result<(u64, u64), DataError> {
    let batch = loader.next()?.ok_or(DataError::Loader("training has no end".into()))?;
    let bytes = if batch.used.is_empty() { batch.pixels.len() } else { batch.used.iter().sum() };
    let images = batch.images as u64;
    loader.recycle(batch);
    Ok((images, bytes as u64))
}

impl fmt::Display for Bench {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Bench { images, image_bytes, resolution, augment, threads, .. } = self;
        let kilobytes = *image_bytes as f64 / 1e3;
        let plural = if *threads == 1 { "" } else { "s" };
        writeln!(
            f,
            "{images} training images of {kilobytes:.1} kB, to {resolution}×{resolution}, augment {augment}, {threads} \
             thread{plural}\n"
        )?;
        writeln!(
            f,
            "| stage | ms an image | processor's ms | images/s a core | images/s in all | GB/s in all |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|")?;
        for row in &self.rows {
            let Row { stage, images, seconds, cpu_seconds, a_core, in_all, gigabytes_per_second } = row;
            let [time, worked] =
                [seconds, cpu_seconds].map(|seconds| seconds * 1e3 / (*images).max(1) as f64);
            writeln!(
                f,
                "| {stage} | {time:.3} | {worked:.3} | {a_core:.0} | {in_all:.0} | {gigabytes_per_second:.2} |"
            )?;
        }
        Ok(())
    }
}
