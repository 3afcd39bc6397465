//! The end of a block.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::context::Context;
use super::gpu::{Address, Gpu};
use super::sweep::{Sweep, THREADS};
use crate::ops::{ResidualForward, Result};

/// Pixels of a thread: enough to have several loads under way.
const PIXELS: usize = 8;

arguments! {
    /// See `kernels/residual.cu`.
    pub struct ForwardArguments {
        y: Address,
        coefficients: Address,
        keep: Address,
        shortcut: Address,
        out: Address,
        pixels: i32,
        channels: i32,
        width: i32,
        rows: i32,
        run: i32,
    }
}

const FORWARD: Kernel<ForwardArguments> = Kernel::stored("residual_forward");

impl OnCuda for ResidualForward {
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let sweep = Sweep::new(self.pixels, self.channels, PIXELS, u16::MAX as usize);
        let arguments = ForwardArguments {
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
        cx.launch(&FORWARD, sweep.grid(self.images), THREADS, 0, arguments)
    }
}
