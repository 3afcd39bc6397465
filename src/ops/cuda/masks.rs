//! Stochastic-depth and dropout factors: the draws of [`crate::random`], on the device.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::context::Context;
use super::gpu::{Address, Gpu};
use crate::ops::{DropPathMask, DropoutMask, Result};

/// Threads of a block.
const THREADS: usize = 128;

arguments! {
    /// One block's stochastic depth.
    pub struct DropPathArguments {
        block: Address,
        keep: Address,
        images: i32,
        layer: u32,
        rate: f32,
        kept: f32,
    }
}

arguments! {
    /// Dropout of the pooled features.
    pub struct DropoutArguments {
        block: Address,
        mask: Address,
        images: i32,
        channels: i32,
        rate: f32,
        kept: f32,
    }
}

const DROP_PATH: Kernel<DropPathArguments> = Kernel::plain("masks_drop_path");
const DROPOUT: Kernel<DropoutArguments> = Kernel::plain("masks_dropout");

impl OnCuda for DropPathMask {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let arguments = DropPathArguments {
            block: cx.state.block,
            keep: cx.tensor(self.keep),
            images: self.images as i32,
            layer: self.block,
            rate: self.rate,
            kept: 1.0 / (1.0 - self.rate),
        };
        cx.launch(&DROP_PATH, [self.images.div_ceil(THREADS), 1, 1], THREADS, 0, arguments)
    }
}

impl OnCuda for DropoutMask {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let arguments = DropoutArguments {
            block: cx.state.block,
            mask: cx.tensor(self.mask),
            images: self.images as i32,
            channels: self.channels as i32,
            rate: self.rate,
            kept: 1.0 / (1.0 - self.rate),
        };
        // A draw gives four factors.
        let draws = self.images * self.channels.div_ceil(4);
        cx.launch(&DROPOUT, [draws.div_ceil(THREADS), 1, 1], THREADS, 0, arguments)
    }
}
