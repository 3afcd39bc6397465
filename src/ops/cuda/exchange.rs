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

use super::context::{Context, Exchange, State};
use super::gpu::{Gpu, Piece, Reduce};
use super::{optimiser, step};
use crate::ops::{Bucket, Frozen, OpsError, Result};
use crate::parallel::Group;

/// Joins the ranks of a group. A group of one is allowed: it exchanges with itself.
pub fn connect<G: Gpu>(cx: &mut Context<G>, group: &Arc<Group>) -> Result {
    cx.gpu.connect(group)?;
    cx.exchange = Some(Exchange { left: cx.state.trainable });
    Ok(())
}

/// Records the start of a step.
pub fn step_begins<G: Gpu>(cx: &mut Context<G>) -> Result {
    if let (Some(timing), Some(_)) = (&mut cx.profile, cx.exchange) {
        timing.exchange.step_begins(&mut cx.gpu)?;
    }
    Ok(())
}

/// Begins the sum of a bucket; see [`crate::ops::Ops::reduce`].
pub fn reduce<G: Gpu>(cx: &mut Context<G>, bucket: &Bucket) -> Result {
    let Some(exchange) = &mut cx.exchange else { return Ok(()) };
    let State { gradients, running, block, trainable, total, .. } = cx.state;
    let std::ops::Range { start, end } = bucket.elements;
    if end != exchange.left || start < bucket.frozen.parameters {
        let left = exchange.left;
        return Err(OpsError::Device(format!(
            "cannot sum the gradients from {start} to {end} now, {left} are left"
        )));
    }
    exchange.left = start;
    let sum = Piece { at: gradients.offset(4 * start), elements: end - start, how: Reduce::SumF32 };
    let mut pieces = vec![sum];
    if bucket.is_last() {
        pieces.extend(step::shared(block));
        let frozen = bucket.frozen.statistics;
        let elements = total - trainable - frozen;
        if elements > 0 {
            pieces.push(Piece { at: running.offset(4 * frozen), elements, how: Reduce::AverageF32 });
        }
    }
    let gpu = &mut cx.gpu;
    gpu.collective_begin()?;
    let Some(timing) = &mut cx.profile else { return gpu.all_reduce(&pieces) };
    let times = &mut timing.exchange;
    let ready = gpu.mark()?;
    if bucket.is_last() {
        times.backward_ends(gpu)?;
    }
    let began = gpu.collective_mark()?;
    gpu.all_reduce(&pieces)?;
    times.add(4 * (end - start) as u64, [ready, began, gpu.collective_mark()?]);
    Ok(())
}

/// Waits for the step's sums, of all gradients but the frozen ones.
///
/// # Errors
/// Not all gradients were summed.
pub fn join<G: Gpu>(cx: &mut Context<G>, frozen: Frozen) -> Result {
    let Some(exchange) = &mut cx.exchange else { return Ok(()) };
    let left = std::mem::replace(&mut exchange.left, cx.state.trainable);
    if let Some(left) = left.checked_sub(frozen.parameters).filter(|left| *left > 0) {
        return Err(OpsError::Device(format!("update before {left} gradients were summed over the ranks")));
    }
    cx.gpu.collective_end()?;
    if let Some(timing) = &mut cx.profile {
        timing.end_exchange(&mut cx.gpu);
    }
    optimiser::look_at_gradients(cx, frozen)
}
