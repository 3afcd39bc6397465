//! How a run loads its images: shuffled and augmented for steps, unchanged and in order for evaluations.

use std::thread::available_parallelism;

use super::device::{Hardware, host_memory};
use super::error::TrainError;
use super::progressive::Stage;
use super::recipe::Recipe;
use crate::data::loader::evaluation_steps;
use crate::data::{Form, Loader, LoaderConfig, Share, Source, Split};
use crate::host_bytes::HostAllocator;

/// Batches that exist beside the one in use, if no more threads than this prepare them; see [`crate::data::loader`].
pub const AHEAD: usize = 3;
/// Loading threads beside a CPU that computes. It computes on all cores, and two threads keep up with it.
const BESIDE_THE_CPU: usize = 2;
/// The most threads by default: they decode more photographs a second than a GPU trains on.
const MOST: usize = 64;

/// Batches in the host's memory with so many loading threads: the one in use, and those that are being made or wait.
pub fn batches(threads: usize) -> usize {
    1 + AHEAD.max(threads)
}

/// The number of loading threads: as `asked`, or 0 for the default. A GPU leaves the cores to them, apart from one that
/// submits its work; so each of the machine's `ranks` takes its share of the cores, those near its GPU if the machine
/// says so. Each thread makes a whole batch, so there are only as many as a quarter of the host's free memory has
/// batches for.
pub fn threads(asked: usize, hardware: &impl Hardware, ranks: usize, batch_bytes: u64) -> usize {
    if asked > 0 {
        return asked;
    }
    if !hardware.has_own_memory() {
        return BESIDE_THE_CPU;
    }
    let cores = available_parallelism().map_or(1, |cores| cores.get());
    by_machine(cores, hardware.processors().len(), host_memory(), ranks, batch_bytes)
}

/// `near` is 0 if all cores are equally near.
fn by_machine(cores: usize, near: usize, memory: Option<u64>, ranks: usize, batch_bytes: u64) -> usize {
    let ranks = ranks.max(1);
    let near = if near == 0 { cores } else { near };
    let cores = (cores / ranks).min(near).saturating_sub(1);
    let batches = |bytes: u64| bytes / 4 / ranks as u64 / batch_bytes.max(1);
    // Apart from the batch in use.
    let room = memory.map_or(MOST, |bytes| usize::try_from(batches(bytes)).unwrap_or(MOST).saturating_sub(1));
    cores.min(room).clamp(1, MOST)
}

/// What both kinds of loading share: the images, their form, the threads that prepare them.
pub struct Loading<'a> {
    pub source: &'a Source,
    pub recipe: &'a Recipe,
    pub form: Form,
    /// This process's share of every batch, and of the batches of an evaluation.
    pub share: Share,
    pub threads: usize,
    /// Memory that the device reads by itself, see [`LoaderConfig::memory`].
    pub memory: Option<HostAllocator>,
    /// The processors near the device; empty means all.
    pub processors: &'a [usize],
}

impl Loading<'_> {
    /// The batches of the steps from `first_step` to before `end`, all of one stage.
    ///
    /// # Errors
    /// If threads cannot be started.
    pub fn training(&self, stage: Stage, first_step: u64, end: u64) -> Result<Loader, TrainError> {
        let steps = end - first_step;
        let batch = self.recipe.batch_size / self.share.parts;
        let augment = Some(stage.weaken(self.recipe.policy(self.source.normalise())));
        let config = self.config(Split::Train, batch, steps);
        self.start(LoaderConfig { augment, first_step, resolution: stage.resolution, ..config })
    }

    /// A split in the batches of an evaluation of this recipe: its micro-batches.
    ///
    /// # Errors
    /// As [`Loading::training`].
    pub fn evaluation(&self, split: Split) -> Result<Loader, TrainError> {
        let batch = self.recipe.micro_batch;
        let steps = evaluation_steps(self.source.samples(split), batch, self.share);
        self.start(self.config(split, batch, steps))
    }

    fn config(&self, split: Split, batch: usize, steps: u64) -> LoaderConfig {
        LoaderConfig {
            split,
            batch,
            share: self.share,
            resolution: self.recipe.resolution,
            crop: self.recipe.crop,
            form: self.form,
            augment: None,
            sampling: self.recipe.sampling,
            seed: self.recipe.seed,
            first_step: 0,
            steps,
            threads: self.threads,
            ahead: AHEAD,
            memory: self.memory.clone(),
            processors: self.processors.to_vec(),
        }
    }

    fn start(&self, config: LoaderConfig) -> Result<Loader, TrainError> {
        Ok(Loader::start(self.source.clone(), config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::device::Cpu;

    #[test]
    fn threads_follow_the_machine_and_its_memory() {
        let gib = 1 << 30;
        for ((cores, near, memory, ranks, batch), threads) in [
            ((16, 0, None, 1, gib), 15),
            ((16, 0, None, 4, gib), 3),
            ((2, 0, None, 1, gib), 1),
            ((1, 0, None, 8, gib), 1),
            ((256, 0, None, 1, 1), MOST),
            // The cores of one of two sockets, with one rank and with the eight of the machine.
            ((96, 48, None, 1, gib), 47),
            ((96, 48, None, 8, gib), 11),
            // Room for eight batches: the one in use, and seven.
            ((96, 0, Some(32 * gib), 1, gib), 7),
            ((96, 0, Some(32 * gib), 2, gib), 3),
            ((96, 0, Some(gib), 1, gib), 1),
        ] {
            assert_eq!(by_machine(cores, near, memory, ranks, batch), threads, "{cores} {near} {ranks}");
        }
        assert_eq!(threads(0, &Cpu::new(7, ""), 1, gib), BESIDE_THE_CPU);
        assert_eq!(threads(5, &Cpu::new(7, ""), 1, gib), 5);
        assert_eq!([1, 3, 15].map(batches), [4, 4, 16]);
    }
}
