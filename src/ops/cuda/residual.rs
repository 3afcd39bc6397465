//! The end of a network block: batch norm, stochastic depth and the shortcut.

use super::arguments::Kernel;
use super::context::Context;
use super::gpu::Gpu;
use super::sources::residual::ResidualForwardArguments;
use super::sweep::{SWEEP_THREADS, Sweep};
use crate::ops::{ResidualForward, Result};

/// Pixels of a thread: enough for several loads at once.
const PIXELS: usize = 8;

const FORWARD: Kernel<ResidualForwardArguments> = Kernel::stored("residual_forward");

pub fn forward<G: Gpu>(cx: &mut Context<G>, p: &ResidualForward) -> Result {
    let sweep = Sweep::new(p.pixels, p.channels, PIXELS, u16::MAX as usize);
    let arguments = ResidualForwardArguments {
        y: cx.tensor(p.y),
        coefficients: cx.tensor(p.bn.coefficients),
        keep: cx.optional(p.keep),
        shortcut: cx.optional(p.shortcut),
        out: cx.tensor(p.out),
        pixels: p.pixels as i32,
        channels: p.channels as i32,
        width: sweep.width as i32,
        rows: sweep.rows as i32,
        run: sweep.run as i32,
    };
    cx.launch(&FORWARD, sweep.grid(p.images), SWEEP_THREADS, 0, arguments)
}
