//! What ranks exchange in a step: buckets of gradients as they become complete, and with the last one the running
//! statistics and the step's figures.
//!
//! A bucket's sum runs on the GPU's stream for collectives beside the passes that follow; the update waits for all. The
//! passes work on the gradients of other layers meanwhile, so nothing is copied: sums are taken in place.
//!
//! Gradients carry the loss scale. It is the same on all ranks, since it follows from a flag that is shared before it is
//! looked at; so sums are unscaled by the update as the gradients of one rank are.

use std::sync::Arc;

use super::context::{Context, State};
use super::gpu::{Gpu, Mark, Piece, Reduce};
use super::{optimiser, step};
use crate::ops::{Bucket, BucketTime, OpsError, Result};
use crate::parallel::Group;

/// Where ranks share the work.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The gradients of the step before this place are not yet on their way.
    left: usize,
}

/// When buckets were on their way, while passes are timed.
#[derive(Debug, Default)]
pub struct Times {
    steps: u64,
    began: Option<Mark>,
    backward_end: Option<Mark>,
    /// The step's buckets: bytes; when each was complete, and when its sum began and ended.
    buckets: Vec<(u64, [Mark; 3])>,
    list: Vec<BucketTime>,
}

/// Joins the ranks of a group; of one, too, which then exchanges with itself.
pub fn connect<G: Gpu>(cx: &mut Context<G>, group: &Arc<Group>) -> Result {
    cx.gpu.connect(group)?;
    cx.exchange = Some(Exchange { left: cx.state.trainable });
    Ok(())
}

/// Notes when a step begins.
pub fn step_begins<G: Gpu>(cx: &mut Context<G>) -> Result {
    if let (Some(timing), Some(_)) = (&mut cx.profile, cx.exchange) {
        let mark = cx.gpu.mark()?;
        if let Some(older) = timing.exchange.began.replace(mark) {
            cx.gpu.forget(older);
        }
    }
    Ok(())
}

/// Begins the sum of a bucket; see [`crate::ops::Ops::reduce`].
pub fn reduce<G: Gpu>(cx: &mut Context<G>, bucket: &Bucket) -> Result {
    let Some(exchange) = &mut cx.exchange else { return Ok(()) };
    let State { gradients, running, block, trainable, total, .. } = cx.state;
    let std::ops::Range { start, end } = bucket.elements;
    if end != exchange.left || bucket.last != (start == 0) {
        let left = exchange.left;
        return Err(OpsError::Device(format!(
            "the gradients from {start} to {end} of {left} cannot be summed now"
        )));
    }
    exchange.left = start;
    let sum = Piece { at: gradients.offset(4 * start), elements: end - start, how: Reduce::SumF32 };
    let mut pieces = vec![sum];
    if bucket.last {
        pieces.extend(step::shared(block));
        if total > trainable {
            pieces.push(Piece { at: running, elements: total - trainable, how: Reduce::AverageF32 });
        }
    }
    let gpu = &mut cx.gpu;
    gpu.collective_begin()?;
    let Some(timing) = &mut cx.profile else { return gpu.all_reduce(&pieces) };
    let times = &mut timing.exchange;
    let ready = gpu.mark()?;
    if bucket.last {
        times.backward_end = Some(gpu.mark()?);
    }
    let began = gpu.collective_mark()?;
    gpu.all_reduce(&pieces)?;
    times.buckets.push((4 * (end - start) as u64, [ready, began, gpu.collective_mark()?]));
    Ok(())
}

/// Waits for the step's sums.
///
/// # Errors
/// Where not all gradients were summed.
pub fn join<G: Gpu>(cx: &mut Context<G>) -> Result {
    let Some(exchange) = &mut cx.exchange else { return Ok(()) };
    let left = std::mem::replace(&mut exchange.left, cx.state.trainable);
    if left > 0 {
        return Err(OpsError::Device(format!(
            "an update while {left} gradients are not summed over the ranks"
        )));
    }
    cx.gpu.collective_end()?;
    if let Some(timing) = &mut cx.profile {
        timing.exchange.end_step(&mut cx.gpu)?;
    }
    optimiser::look_at_gradients(cx)
}

impl Times {
    /// Reads the step's moments.
    fn end_step<G: Gpu>(&mut self, gpu: &mut G) -> Result {
        let step = self.steps;
        let began = self.began.take();
        let ended = self.backward_end.take();
        // Not where timing began within the step.
        if let (Some(began), Some(ended)) = (began, ended) {
            let backward_end = gpu.between(began, ended)?;
            for (bytes, marks) in &self.buckets {
                let mut times = [0.0; 3];
                for (time, mark) in times.iter_mut().zip(marks) {
                    *time = gpu.between(began, *mark)?;
                }
                let [ready, start, end] = times;
                self.list.push(BucketTime { step, bytes: *bytes, ready, start, end, backward_end });
            }
            self.steps += 1;
        }
        self.forget(gpu, [began, ended]);
        Ok(())
    }

    fn forget<G: Gpu>(&mut self, gpu: &mut G, ends: [Option<Mark>; 2]) {
        let buckets = self.buckets.drain(..).flat_map(|(_, marks)| marks);
        ends.into_iter().flatten().chain(buckets).for_each(|mark| gpu.forget(mark));
    }

    /// All times.
    pub fn finish<G: Gpu>(mut self, gpu: &mut G) -> Vec<BucketTime> {
        let ends = [self.began.take(), self.backward_end.take()];
        self.forget(gpu, ends);
        self.list
    }
}
