//! Stochastic-depth and dropout factors, drawn on the device as [`crate::random`] draws them.
//!
//! All masks of a micro-batch are drawn by one launch: a mask waits until another pass, or something else that the device
//! is asked for, follows.

use super::OnCuda;
use super::arguments::Kernel;
use super::context::Context;
use super::gpu::{Address, Gpu};
use super::sources::masks::{MASK_THREADS, MOST_MASKS, MasksArguments};
use crate::ops::{DropPathMask, DropoutMask, Pass, Result};

const MASKS: Kernel<MasksArguments> = Kernel::plain("masks");

/// The masks that the next launch draws.
#[derive(Debug)]
pub struct WaitingMasks {
    depth: Vec<DropPathMask>,
    dropout: Option<DropoutMask>,
}

impl Default for WaitingMasks {
    /// With room for all, so that a step allocates nothing.
    fn default() -> WaitingMasks {
        WaitingMasks { depth: Vec::with_capacity(MOST_MASKS), dropout: None }
    }
}

impl WaitingMasks {
    /// Of the masks.
    fn images(&self) -> Option<usize> {
        let of_depth = self.depth.first().map(|mask| mask.images);
        of_depth.or(self.dropout.map(|mask| mask.images))
    }
}

/// Whether a pass leaves its work to [`draw_waiting`].
pub fn waits(pass: &Pass) -> bool {
    matches!(pass, Pass::DropPathMask(_) | Pass::DropoutMask(_))
}

impl OnCuda for DropPathMask {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        if cx.masks.depth.len() == MOST_MASKS || cx.masks.images().is_some_and(|images| images != self.images)
        {
            draw_waiting(cx)?;
        }
        cx.masks.depth.push(*self);
        Ok(())
    }
}

impl OnCuda for DropoutMask {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        if cx.masks.dropout.is_some() || cx.masks.images().is_some_and(|images| images != self.images) {
            draw_waiting(cx)?;
        }
        cx.masks.dropout = Some(*self);
        Ok(())
    }
}

/// Draws the masks that wait.
pub fn draw_waiting<G: Gpu>(cx: &mut Context<G>) -> Result {
    let Some(images) = cx.masks.images() else { return Ok(()) };
    let kept = |rate: f32| 1.0 / (1.0 - rate);
    let mut arguments = MasksArguments {
        block: cx.state.block,
        images: images as i32,
        masks: cx.masks.depth.len() as i32,
        keep: [Address::NULL; MOST_MASKS],
        layer: [0; MOST_MASKS],
        rate: [0.0; MOST_MASKS],
        kept: [0.0; MOST_MASKS],
        dropout: Address::NULL,
        channels: 0,
        dropout_rate: 0.0,
        dropout_kept: 0.0,
    };
    for (number, mask) in cx.masks.depth.iter().enumerate() {
        arguments.keep[number] = cx.tensor(mask.keep);
        arguments.layer[number] = mask.block;
        arguments.rate[number] = mask.rate;
        arguments.kept[number] = kept(mask.rate);
    }
    let mut blocks = cx.masks.depth.len() * images.div_ceil(MASK_THREADS);
    if let Some(mask) = cx.masks.dropout {
        arguments.dropout = cx.tensor(mask.mask);
        arguments.channels = mask.channels as i32;
        arguments.dropout_rate = mask.rate;
        arguments.dropout_kept = kept(mask.rate);
        // One draw makes four factors.
        blocks += (images * mask.channels.div_ceil(4)).div_ceil(MASK_THREADS);
    }
    cx.masks.depth.clear();
    cx.masks.dropout = None;
    cx.launch(&MASKS, [blocks, 1, 1], MASK_THREADS, 0, arguments)
}
