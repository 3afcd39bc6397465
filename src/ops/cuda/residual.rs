//! The end of a network block: batch norm, stochastic depth and the shortcut.

use super::OnCuda;
use super::arguments::Kernel;
use super::context::Context;
use super::gpu::Gpu;
use super::sources::residual::ResidualForwardArguments;
use super::sweep::{SWEEP_THREADS, Sweep};
use crate::ops::{ResidualForward, Result};

/// Pixels of a thread: enough for several loads at once.
const PIXELS: usize = 8;

const FORWARD: Kernel<ResidualForwardArguments> = Kernel::stored("residual_forward");

impl OnCuda for ResidualForward {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let sweep = Sweep::new(self.pixels, self.channels, PIXELS, u16::MAX as usize);
        let arguments = ResidualForwardArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            keep: cx.optional(self.keep),
            shortcut: cx.optional(self.shortcut),
            out: cx.tensor(self.out),
            pixels: self.pixels as i32,
            channels: self.channels as i32,
            width: sweep.width as i32,
            rows: sweep.rows as i32,
            run: sweep.run as i32,
        };
        cx.launch(&FORWARD, sweep.grid(self.images), SWEEP_THREADS, 0, arguments)
    }
}
