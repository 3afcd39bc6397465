//! Sums over the ranks, in parallel with the backward pass.
//!
//! When a bucket of gradients is complete, the threads of the [`Chain`] replace it by its sum over the ranks, while the
//! backward pass continues with earlier layers. The update waits for the last bucket. Together with that one, the ranks
//! average the running statistics, so that all keep the same, and sum the step's figures, so that all take the same
//! decisions.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::memory::State;
use crate::ops::{Bucket, BucketTime, OpsError, Result, StepFigures};
use crate::parallel::chain::{ChainError, Sum, Ticket};
use crate::parallel::{Chain, Group, World};

/// This rank's end of the chain, and the sums in progress.
pub struct Exchange {
    /// Dropped first: its threads may be using the figures, and the state that was given to [`Exchange::start`].
    chain: Chain,
    group: Arc<Group>,
    /// The step's figures while they are summed. They are boxed because they must not move.
    figures: Box<Figures>,
    /// The last sum that was started and not yet waited for.
    in_progress: Option<Ticket>,
    /// Memory of [`Exchange::gather`].
    numbers: Mutex<Vec<f64>>,
    /// The first error of [`Exchange::gather`], kept here because passes return nothing.
    failure: Mutex<Option<OpsError>>,
    trace: Option<Trace>,
}

#[derive(Default)]
struct Figures {
    loss: [f64; 1],
    correct: [u64; 1],
}

/// The times of steps and buckets, while passes are timed.
#[derive(Default)]
struct Trace {
    /// When each step began, and when its backward pass ended.
    steps: Vec<(Instant, Option<Instant>)>,
    buckets: Vec<Traced>,
}

struct Traced {
    step: usize,
    bucket: Ticket,
    /// The last sum that was started together with the bucket. Passes may start other sums in between.
    last: Ticket,
}

impl Exchange {
    /// Joins the chain. All ranks call this.
    ///
    /// # Errors
    /// If a neighbour cannot be reached, or any rank has failed.
    pub fn new(group: &Arc<Group>) -> Result<Exchange> {
        let gather = |bytes: &[u8]| group.exchange("connecting neighbours", bytes).map_err(OpsError::from);
        let chain = Chain::connect(group.world(), &group.peer_host(), gather)?;
        group.on_stop(Box::new(chain.closer()));
        Ok(Exchange {
            chain,
            group: group.clone(),
            figures: Box::default(),
            in_progress: None,
            numbers: Mutex::default(),
            failure: Mutex::default(),
            trace: None,
        })
    }

    /// Starts the sum of a bucket. With the last bucket, it also starts the sums of the running statistics and the
    /// figures.
    ///
    /// # Safety
    /// Until [`Exchange::finish`] returns, nothing else uses the bucket's gradients and, after the last bucket, the
    /// running statistics. The state outlives `self`.
    pub unsafe fn start(&mut self, state: &State, bucket: &Bucket, figures: &StepFigures) {
        let gradients = &bucket.elements;
        // SAFETY: the caller's promise.
        let own = unsafe {
            let values = state.gradients.floats_mut(4 * gradients.start, gradients.len());
            self.chain.submit(values.as_mut_ptr().cast(), values.len(), Sum::F32)
        };
        let mut ticket = own;
        if bucket.is_last() {
            let first = state.trainable + bucket.frozen.statistics;
            let statistics = state.total - first;
            *self.figures = Figures { loss: [figures.loss], correct: [figures.correct] };
            let Figures { loss, correct } = &mut *self.figures;
            // SAFETY: as above. The figures belong to `self`, which reads them after `finish` has waited, and they do
            // not move.
            ticket = unsafe {
                let values = state.parameters.floats_mut(4 * first, statistics);
                self.chain.submit(values.as_mut_ptr().cast(), statistics, Sum::MeanF32);
                self.chain.submit(loss.as_mut_ptr().cast(), 1, Sum::F64);
                self.chain.submit(correct.as_mut_ptr().cast(), 1, Sum::U64)
            };
        }
        self.in_progress = Some(ticket);
        if let Some(Trace { steps, buckets }) = &mut self.trace
            && let Some(step) = steps.len().checked_sub(1)
        {
            buckets.push(Traced { step, bucket: own, last: ticket });
            if bucket.is_last() {
                steps[step].1 = Some(Instant::now());
            }
        }
    }

    /// Waits for all sums that were started, and replaces this rank's figures by those of all ranks.
    ///
    /// # Errors
    /// If the chain broke off: the gradients are then undefined.
    pub fn finish(&mut self, figures: &mut StepFigures) -> Result {
        let Some(ticket) = self.in_progress.take() else { return Ok(()) };
        let done = self.waiting(|chain| chain.wait(ticket));
        if done.is_err() {
            self.chain.settle(ticket);
        }
        done?;
        (figures.loss, figures.correct) = (self.figures.loss[0], self.figures.correct[0]);
        Ok(())
    }

    /// Exchanges numbers within a pass: `fill` writes this rank's `own` numbers, `take` reads those of all ranks,
    /// [ranks, own]. After a failure, `take` sees zeros for the other ranks, and [`Exchange::check`] returns the error.
    pub fn gather(&self, own: usize, fill: impl FnOnce(&mut [f64]), take: impl FnOnce(&[f64])) {
        let World { rank, size, .. } = self.group.world();
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.clear();
        numbers.resize(size * own, 0.0);
        fill(&mut numbers[rank * own..(rank + 1) * own]);
        // The other ranks have zeros in this place, so the sum is the number itself.
        if let Err(error) = self.waiting(|chain| chain.sum(&mut numbers, Sum::F64)) {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        take(&numbers);
    }

    /// Called after each pass. It also tells the watchdog that this rank makes progress, however long its steps are.
    ///
    /// # Errors
    /// If an exchange within the pass has failed.
    pub fn check(&self) -> Result {
        self.group.progress();
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn waiting(&self, wait: impl FnOnce(&Chain) -> std::result::Result<(), ChainError>) -> Result {
        self.group.waiting(true);
        let done = wait(&self.chain);
        self.group.waiting(false);
        Ok(done?)
    }

    /// Begins to record the times of buckets.
    pub fn start_trace(&mut self) {
        self.chain.trace(true);
        self.trace = Some(Trace::default());
    }

    pub fn begin_step(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.steps.push((Instant::now(), None));
        }
    }

    /// The times that were recorded since [`Exchange::start_trace`].
    pub fn take_trace(&mut self) -> Vec<BucketTime> {
        let spans = self.chain.trace(false);
        let Some(Trace { steps, buckets }) = self.trace.take() else { return Vec::new() };
        let span = |ticket| spans.binary_search_by_key(&ticket, |span| span.ticket).ok().map(|at| &spans[at]);
        let time = |&Traced { step, bucket, last }: &Traced| {
            let (began, backward) = steps[step];
            let since = |moment: Instant| moment.saturating_duration_since(began).as_secs_f64() * 1e6;
            let (bucket, last) = (span(bucket)?, span(last)?);
            Some(BucketTime {
                step: step as u64,
                bytes: bucket.bytes as u64,
                ready: since(bucket.submitted),
                start: since(bucket.started.max(bucket.submitted)),
                end: since(last.ended),
                backward_end: since(backward.unwrap_or(began)),
            })
        };
        buckets.iter().filter_map(time).collect()
    }
}

impl From<ChainError> for OpsError {
    fn from(error: ChainError) -> OpsError {
        OpsError::Rank(error.to_string())
    }
}
