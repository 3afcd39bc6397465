//! Batches, ready before they are asked for.
//!
//! Each thread claims the next step, makes the whole batch alone and puts it in its place; batches are handed out in
//! the order of the steps. A sample's bytes depend on (seed, epoch, sample) only, so the number of threads changes
//! nothing but the speed.
//!
//! Memory: the set stays in its mapped files. At most `max(ahead, threads)` batches are being made or waiting, besides
//! those that the caller holds; if the device reads the host's memory by itself, the next two are copied to [`HELD`]
//! pieces of such memory by the threads that made them. A batch given back with [`Loader::recycle`] is filled again, so
//! that after the first few steps nothing large is allocated (inside decoders: see [`decode_jpeg`] and [`Scratch`]). Raw
//! batches have a fixed size, [`raw_batch_bytes`], whatever the images' sizes.
//!
//! Reading ahead: before a thread makes a batch, it asks the system for the batch's samples; if the order is by
//! [blocks](super::sampler::blocks), also for the blocks that come next, far ahead of their use.
//!
//! If a thread fails, by an error or a panic, [`Loader::next`] returns the error in that step's turn; nothing hangs.
//! Dropping the loader stops and joins its threads.
//!
//! [`decode_jpeg`]: super::codec::decode_jpeg
//! [`Scratch`]: super::augment::Scratch
//! [`raw_batch_bytes`]: crate::pixels::raw_batch_bytes

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::batch::{Batch, Images, Maker};
use super::request::{Form, LoaderConfig};
use super::sampler::{Place, Sampler, Share, Shuffle};
use super::{DataError, Source};
use crate::host_bytes::{HostAllocator, HostBytes};
use crate::processors::stay_on;

/// Steps of an evaluation over `samples` images, of which this process takes its share.
pub fn evaluation_steps(samples: usize, batch: usize, share: Share) -> u64 {
    let batches = samples.div_ceil(batch.max(1));
    batches.saturating_sub(share.part).div_ceil(share.parts) as u64
}

/// Hands out batches in step order; see the module.
pub struct Loader {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    waited: Duration,
    failed: bool,
}

struct Shared {
    state: Mutex<State>,
    /// A step may be claimed, or the threads must stop.
    work: Condvar,
    /// The next batch is ready.
    ready: Condvar,
    fetch: Fetch,
}

struct State {
    sampler: Sampler,
    /// The next step to be claimed.
    claim: u64,
    /// The next step to be handed out.
    out: u64,
    /// The first step that is not made.
    end: u64,
    window: u64,
    /// Results of the steps from `out` on.
    ready: VecDeque<Option<Result<Batch, DataError>>>,
    free: Vec<Batch>,
    held: Held,
    stop: bool,
}

/// Memory that the device reads by itself.
struct Held {
    allocator: Option<HostAllocator>,
    free: Vec<HostBytes>,
    /// Pieces that were taken.
    taken: usize,
}

/// Batches that may wait in memory that the device reads by itself: the next ones to be handed out.
const HELD_AHEAD: u64 = 2;
/// Pieces of such memory: for those, and for two steps that the caller has under way.
pub const HELD: usize = HELD_AHEAD as usize + 2;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fills a batch with the images at `places`; one for each thread.
type Make = Box<dyn FnMut(&[Place], &mut Batch) -> Result<(), DataError> + Send>;

/// Starts reading neighbours from disk; see [`Sampler::wanted`].
type Fetch = Box<dyn Fn(Range<usize>) + Send + Sync>;

impl Loader {
    /// Starts the threads, which begin with the first batches.
    ///
    /// # Errors
    /// Those of [`LoaderConfig::check`]; threads that cannot be started.
    pub fn start(source: Source, config: LoaderConfig) -> Result<Loader, DataError> {
        config.check()?;
        let LoaderConfig { batch, seed, sampling, split, .. } = config;
        let samples = source.samples(split);
        let sampler = if config.augment.is_some() {
            if sampling.shuffle == Shuffle::Blocks {
                source.advise_blocks(split);
            }
            Some(Sampler::training(seed, &source, batch, sampling))
        } else {
            None
        };
        let images = Images::Set(source.clone());
        let fetch = Box::new(move |block| source.will_need_block(split, block));
        Loader::start_with(images, samples, sampler, fetch, config)
    }

    /// The same for image files: all of them once, in order, as an evaluation sees them. A file that cannot be read does
    /// not end the loader, see [`Batch::broken`]. Of the configuration, `split` and `seed` mean nothing.
    ///
    /// # Errors
    /// Those of [`LoaderConfig::check`]; threads that cannot be started.
    pub fn start_with_files(files: Arc<[PathBuf]>, config: LoaderConfig) -> Result<Loader, DataError> {
        let config = LoaderConfig { augment: None, ..config };
        config.check()?;
        let samples = files.len();
        Loader::start_with(Images::Files(files), samples, None, Box::new(|_| ()), config)
    }

    /// Without a sampler the images come once, in order.
    fn start_with(
        images: Images,
        samples: usize,
        sampler: Option<Sampler>,
        fetch: Fetch,
        config: LoaderConfig,
    ) -> Result<Loader, DataError> {
        let LoaderConfig { batch, first_step, .. } = config;
        let mut end = first_step.saturating_add(config.steps);
        let sampler = sampler.unwrap_or_else(|| {
            end = end.min(evaluation_steps(samples, batch, config.share)).max(first_step);
            Sampler::fixed(samples, batch)
        });
        let sampler = sampler.shared(config.share);
        let threads = config.threads.max(1);
        let window = config.ahead.max(threads) as u64;
        let maker = |_| -> Make {
            let mut maker = Maker::new(images.clone(), config.clone());
            let mut processors = Some(config.processors.clone());
            Box::new(move |places, batch| {
                // Once, inside the thread, before it touches memory that should lie near.
                if let Some(processors) = processors.take() {
                    stay_on(&processors);
                }
                maker.fill(places, batch)
            })
        };
        let makers = (0..threads).map(maker).collect();
        let raw = matches!(config.form, Form::Raw { .. });
        let allocator = config.memory.filter(|_| raw);
        Loader::with_makers(sampler, fetch, first_step..end, window, makers, allocator)
    }

    fn with_makers(
        sampler: Sampler,
        fetch: Fetch,
        steps: Range<u64>,
        window: u64,
        makers: Vec<Make>,
        allocator: Option<HostAllocator>,
    ) -> Result<Loader, DataError> {
        let ready = VecDeque::with_capacity(window as usize);
        let state = State {
            sampler,
            claim: steps.start,
            out: steps.start,
            end: steps.end,
            window,
            ready,
            free: vec![],
            held: Held { allocator, free: vec![], taken: 0 },
            stop: false,
        };
        let state = Mutex::new(state);
        let shared = Arc::new(Shared { state, work: Condvar::new(), ready: Condvar::new(), fetch });
        let mut loader = Loader { shared, threads: vec![], waited: Duration::ZERO, failed: false };
        for (number, make) in makers.into_iter().enumerate() {
            let shared = loader.shared.clone();
            let thread = std::thread::Builder::new()
                .name(format!("loader-{number}"))
                .spawn(move || work(&shared, make))
                .map_err(|e| DataError::Loader(format!("cannot start a thread: {e}")))?;
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// The next step's batch, or none after the last.
    ///
    /// # Errors
    /// A damaged sample, in the turn of its step. After an error the loader gives nothing more.
    #[allow(clippy::should_implement_trait)] // an iterator could not take batches back
    pub fn next(&mut self) -> Result<Option<Batch>, DataError> {
        if self.failed {
            return Err(DataError::Loader("it has stopped after an error".into()));
        }
        let mut state = self.shared.lock();
        if state.out == state.end {
            return Ok(None);
        }
        if !matches!(state.ready.front(), Some(Some(_))) {
            let since = Instant::now();
            while !matches!(state.ready.front(), Some(Some(_))) {
                state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            self.waited += since.elapsed();
        }
        let result = state.ready.pop_front().flatten();
        state.out += 1;
        self.failed = !matches!(result, Some(Ok(_)));
        state.stop |= self.failed;
        drop(state);
        self.shared.work.notify_all();
        result.transpose()
    }

    /// Gives a batch back to be filled again.
    pub fn recycle(&mut self, mut batch: Batch) {
        let mut state = self.shared.lock();
        if let Some(memory) = batch.held.take() {
            state.held.free.push(memory);
            self.shared.work.notify_all();
        }
        if state.free.len() < state.window as usize + 1 {
            state.free.push(batch);
        }
    }

    /// Total time that [`Loader::next`] has waited for a batch.
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // panics were caught inside
        }
    }
}

/// A loader thread: it claims a step, makes its batch and puts it in its place.
fn work(shared: &Shared, mut make: Make) {
    let (mut places, mut wanted) = (Vec::new(), Vec::new());
    loop {
        let (step, mut batch) = {
            let mut state = shared.lock();
            while !state.stop && state.claim < state.end && state.claim - state.out >= state.window {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop || state.claim >= state.end {
                return;
            }
            let step = state.claim;
            state.claim += 1;
            state.sampler.fill(step, &mut places);
            state.sampler.wanted(&mut wanted);
            let mut batch = state.free.pop().unwrap_or_default();
            batch.step = step;
            batch.first_position = state.sampler.positions(step).start;
            (step, batch)
        };
        wanted.drain(..).for_each(|block| (shared.fetch)(block));
        let result = catch_unwind(AssertUnwindSafe(|| make(&places, &mut batch)));
        let result = match result {
            Ok(made) => made.map(|()| held(shared, step, batch)),
            Err(_) => Err(DataError::Loader(format!("a thread panicked while making step {step}"))),
        };
        let mut state = shared.lock();
        let place = (step - state.out) as usize;
        while state.ready.len() <= place {
            state.ready.push_back(None);
        }
        state.ready[place] = Some(result);
        if place == 0 {
            shared.ready.notify_all();
        }
    }
}

/// The batch in memory that the device reads by itself, if the loader was given such. So the caller copies nothing.
fn held(shared: &Shared, step: u64, mut batch: Batch) -> Batch {
    if let Some(memory) = memory_for(shared, step, batch.pixels.len())
        && !batch.hold_in(memory)
    {
        // The piece is given up: somebody else still holds it.
        shared.lock().held.taken -= 1;
    }
    batch
}

/// A piece of memory for a step's batch, as soon as its turn is near and one is free.
fn memory_for(shared: &Shared, step: u64, bytes: usize) -> Option<HostBytes> {
    let mut state = shared.lock();
    while !state.stop {
        let allocator = state.held.allocator.clone()?;
        if step - state.out < HELD_AHEAD {
            if let Some(memory) = state.held.free.pop() {
                return Some(memory);
            }
            if state.held.taken < HELD {
                state.held.taken += 1;
                drop(state);
                let memory = allocator.take(bytes);
                if memory.is_none() {
                    // There is no more of it. Batches stay where they are made; nobody may wait for a piece.
                    shared.lock().held.allocator = None;
                    shared.work.notify_all();
                }
                return memory;
            }
        }
        state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    None
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
