//! Stochastic-depth and dropout factors, drawn on the device as [`crate::random`] draws them.

use super::OnCuda;
use super::arguments::Kernel;
use super::context::Context;
use super::gpu::Gpu;
use super::sources::masks::{DropPathArguments, DropoutArguments, MASK_THREADS};
use crate::ops::{DropPathMask, DropoutMask, Result};

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
        cx.launch(&DROP_PATH, [self.images.div_ceil(MASK_THREADS), 1, 1], MASK_THREADS, 0, arguments)
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
        // One draw makes four factors.
        let draws = self.images * self.channels.div_ceil(4);
        cx.launch(&DROPOUT, [draws.div_ceil(MASK_THREADS), 1, 1], MASK_THREADS, 0, arguments)
    }
}
