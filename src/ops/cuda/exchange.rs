//! What ranks exchange in a step: buckets of gradients as soon as they are complete, and with the last bucket the
//! running statistics and the step's figures.
//!
//! A bucket is summed on the GPU's stream for collectives while later passes run; the update waits for all sums. Later
//! passes write the gradients of other layers, so buckets are summed in place without a copy.
//!
//! Gradients are multiplied by the loss scale. The scale is the same on all ranks, because it depends only on a flag
//! that the ranks combine before any of them reads it. So the update unscales sums exactly like the gradients of one
//! rank.

use std::sync::Arc;

use super::context::{Context, State};
use super::gpu::{Gpu, Mark, Piece, Reduce};
use super::{optimiser, step};
use crate::ops::{Bucket, BucketTime, OpsError, Result};
use crate::parallel::Group;

/// The state of a step's exchange.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// Gradients before this offset are not yet being summed.
    left: usize,
}

/// Times of the buckets, while passes are timed.
#[derive(Debug, Default)]
pub struct Times {
    steps: u64,
    began: Option<Mark>,
    backward_end: Option<Mark>,
    /// The step's buckets: bytes, and the moments when it was complete and when its sum began and ended.
    buckets: Vec<(u64, [Mark; 3])>,
    list: Vec<BucketTime>,
}

/// Joins the ranks of a group. A group of one is allowed: it exchanges with itself.
pub fn connect<G: Gpu>(cx: &mut Context<G>, group: &Arc<Group>) -> Result {
    cx.gpu.connect(group)?;
    cx.exchange = Some(Exchange { left: cx.state.trainable });
    Ok(())
}

/// Records the start of a step.
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
            "cannot sum the gradients from {start} to {end} now, {left} are left"
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
/// Not all gradients were summed.
pub fn join<G: Gpu>(cx: &mut Context<G>) -> Result {
    let Some(exchange) = &mut cx.exchange else { return Ok(()) };
    let left = std::mem::replace(&mut exchange.left, cx.state.trainable);
    if left > 0 {
        return Err(OpsError::Device(format!("update before {left} gradients were summed over the ranks")));
    }
    cx.gpu.collective_end()?;
    if let Some(timing) = &mut cx.profile {
        timing.exchange.end_step(&mut cx.gpu)?;
    }
    optimiser::look_at_gradients(cx)
}

impl Times {
    /// Reads the times of the step's moments.
    fn end_step<G: Gpu>(&mut self, gpu: &mut G) -> Result {
        let step = self.steps;
        let began = self.began.take();
        let ended = self.backward_end.take();
        // Timing may have begun in the middle of this step; then it is left out.
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

    /// The times of all steps.
    pub fn finish<G: Gpu>(mut self, gpu: &mut G) -> Vec<BucketTime> {
        let ends = [self.began.take(), self.backward_end.take()];
        self.forget(gpu, ends);
        self.list
    }
}
