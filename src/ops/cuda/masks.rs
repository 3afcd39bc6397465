//! Stochastic-depth and dropout factors, drawn on the device as [`crate::random`] draws them.

use super::arguments::Kernel;
use super::context::Context;
use super::gpu::Gpu;
use super::sources::masks::{DropPathArguments, DropoutArguments, MASK_THREADS};
use crate::ops::{DropPathMask, DropoutMask, Result};

const DROP_PATH: Kernel<DropPathArguments> = Kernel::plain("masks_drop_path");
const DROPOUT: Kernel<DropoutArguments> = Kernel::plain("masks_dropout");

pub fn drop_path<G: Gpu>(cx: &mut Context<G>, p: &DropPathMask) -> Result {
    let arguments = DropPathArguments {
        block: cx.state.block,
        keep: cx.tensor(p.keep),
        images: p.images as i32,
        layer: p.block,
        rate: p.rate,
        kept: 1.0 / (1.0 - p.rate),
    };
    cx.launch(&DROP_PATH, [p.images.div_ceil(MASK_THREADS), 1, 1], MASK_THREADS, 0, arguments)
}

pub fn dropout<G: Gpu>(cx: &mut Context<G>, p: &DropoutMask) -> Result {
    let arguments = DropoutArguments {
        block: cx.state.block,
        mask: cx.tensor(p.mask),
        images: p.images as i32,
        channels: p.channels as i32,
        rate: p.rate,
        kept: 1.0 / (1.0 - p.rate),
    };
    // One draw makes four factors.
    let draws = p.images * p.channels.div_ceil(4);
    cx.launch(&DROPOUT, [draws.div_ceil(MASK_THREADS), 1, 1], MASK_THREADS, 0, arguments)
}
