//! Sums over the ranks, beside the backward pass.
//!
//! Buckets of gradients are handed to the [`Chain`]'s threads as they become complete, and replaced by their sums while
//! earlier layers are still at work; the update waits for the last. With the last bucket go the running statistics,
//! averaged, so that all ranks keep the same, and the step's figures: so every rank knows what the whole step came to,
//! and decides alike.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::context::State;
use crate::ops::{Bucket, BucketTime, OpsError, Result, StepFigures};
use crate::parallel::chain::{ChainError, Sum, Ticket};
use crate::parallel::{Chain, Group, World};

/// This rank's end of the chain, and the work under way.
pub struct Exchange {
    /// Dropped first: its threads may be using the figures, and the state of whoever owns this.
    chain: Chain,
    group: Arc<Group>,
    /// The step's figures on their way: a place that does not move.
    figures: Box<Figures>,
    under_way: Option<Ticket>,
    /// For what a pass exchanges within itself, and how that failed, if it did: passes return nothing.
    numbers: Mutex<Vec<f64>>,
    failure: Mutex<Option<OpsError>>,
    trace: Option<Trace>,
}

#[derive(Default)]
struct Figures {
    loss: [f64; 1],
    correct: [u64; 1],
}

/// When things happened, while passes are timed.
#[derive(Default)]
struct Trace {
    /// Began, and when its backward pass ended.
    steps: Vec<(Instant, Option<Instant>)>,
    /// Buckets, and the last piece of what goes along with each. Passes have pieces of their own in between.
    buckets: Vec<Traced>,
}

struct Traced {
    step: usize,
    bucket: Ticket,
    last: Ticket,
}

impl Exchange {
    /// Joins the chain; all ranks do.
    ///
    /// # Errors
    /// Where a neighbour cannot be reached, or any rank has failed.
    pub fn new(group: &Arc<Group>) -> Result<Exchange> {
        let gather = |bytes: &[u8]| group.exchange("connecting neighbours", bytes).map_err(OpsError::from);
        let chain = Chain::connect(group.world(), &group.peer_host(), gather)?;
        group.on_stop(Box::new(chain.closer()));
        Ok(Exchange {
            chain,
            group: group.clone(),
            figures: Box::default(),
            under_way: None,
            numbers: Mutex::default(),
            failure: Mutex::default(),
            trace: None,
        })
    }

    /// Starts the sum of a bucket; with the last one, of all else that a step shares.
    ///
    /// # Safety
    /// Until [`Exchange::finish`], nobody touches the bucket's gradients, and after the last bucket none of the running
    /// statistics; the state outlives this.
    pub unsafe fn start(&mut self, state: &State, bucket: &Bucket, figures: &StepFigures) {
        let gradients = &bucket.elements;
        // SAFETY: the caller's promise.
        let own = unsafe {
            let values = state.gradients.floats_mut(4 * gradients.start, gradients.len());
            self.chain.submit(values.as_mut_ptr().cast(), values.len(), Sum::F32)
        };
        let mut ticket = own;
        if bucket.last {
            let statistics = state.total - state.trainable;
            *self.figures = Figures { loss: [figures.loss], correct: [figures.correct] };
            let Figures { loss, correct } = &mut *self.figures;
            // SAFETY: as above; and the figures are this one's own, in a place that does not move.
            ticket = unsafe {
                let values = state.parameters.floats_mut(4 * state.trainable, statistics);
                self.chain.submit(values.as_mut_ptr().cast(), statistics, Sum::MeanF32);
                self.chain.submit(loss.as_mut_ptr().cast(), 1, Sum::F64);
                self.chain.submit(correct.as_mut_ptr().cast(), 1, Sum::U64)
            };
        }
        self.under_way = Some(ticket);
        if let Some(Trace { steps, buckets }) = &mut self.trace
            && let Some(step) = steps.len().checked_sub(1)
        {
            buckets.push(Traced { step, bucket: own, last: ticket });
            if bucket.last {
                steps[step].1 = Some(Instant::now());
            }
        }
    }

    /// Waits for all that was started, and puts the whole step's figures in the place of this rank's.
    ///
    /// # Errors
    /// Where the chain broke off: the gradients are then good for nothing.
    pub fn finish(&mut self, figures: &mut StepFigures) -> Result {
        let Some(ticket) = self.under_way.take() else { return Ok(()) };
        let done = self.waiting(|chain| chain.wait(ticket));
        if done.is_err() {
            self.chain.settle(ticket);
        }
        done?;
        (figures.loss, figures.correct) = (self.figures.loss[0], self.figures.correct[0]);
        Ok(())
    }

    /// Within a pass: every rank's `own` numbers, as `fill` writes them, handed to `take` one rank after another in one
    /// slice, [ranks, own]. A failure leaves what `fill` wrote alone with zeros, and comes out of [`Exchange::check`].
    pub fn gather(&self, own: usize, fill: impl FnOnce(&mut [f64]), take: impl FnOnce(&[f64])) {
        let World { rank, size, .. } = self.group.world();
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        numbers.clear();
        numbers.resize(size * own, 0.0);
        fill(&mut numbers[rank * own..(rank + 1) * own]);
        // Every other rank has zeros there, so that the sum is the number itself.
        if let Err(error) = self.waiting(|chain| chain.sum(&mut numbers, Sum::F64)) {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        take(&numbers);
    }

    /// After a pass: this rank moves, however long its steps are.
    ///
    /// # Errors
    /// Where an exchange within the pass has failed.
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

    /// Begins to note when buckets move.
    pub fn start_trace(&mut self) {
        self.chain.trace(true);
        self.trace = Some(Trace::default());
    }

    pub fn begin_step(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.steps.push((Instant::now(), None));
        }
    }

    /// What was noted since [`Exchange::start_trace`].
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
