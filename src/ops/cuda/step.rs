//! The step's block: everything that differs from step to step, in device memory.
//!
//! Kernels read it, so captured graphs hold no number that changes. The host writes the schedule's part through
//! the arguments of a small kernel, which needs neither a copy nor a wait; the device keeps the loss scale itself.

use super::arguments::{Kernel, arguments};
use super::context::Context;
use super::gpu::{Address, Gpu};
use crate::ops::{Result, StepParams};

/// Bytes of `StepBlock` in `kernels/step.cuh`.
pub const BLOCK_BYTES: usize = 56;

/// The loss scale of fp16 before the first step.
pub const INITIAL_SCALE: f32 = 65_536.0;

arguments! {
    /// Sets the schedule's part of the block.
    pub struct BeginArguments {
        block: Address,
        seed: u64,
        first_position: u64,
        step: u32,
        learning_rate: f32,
        ema_decay: f32,
    }
}

arguments! {
    /// Sets the device's own part of the block.
    pub struct ScaleArguments {
        block: Address,
        scale: f32,
        good_steps: u32,
        skipped: u32,
    }
}

const BEGIN: Kernel<BeginArguments> = Kernel::plain("step_begin");
const SCALE: Kernel<ScaleArguments> = Kernel::plain("step_scale");

/// Readies a fresh block.
pub fn initialise<G: Gpu>(cx: &mut Context<G>) -> Result {
    let scale = if cx.precision == super::Precision::Fp16 { INITIAL_SCALE } else { 1.0 };
    let arguments = ScaleArguments { block: cx.state.block, scale, good_steps: 0, skipped: 0 };
    cx.launch(&SCALE, [1, 1, 1], 32, 0, arguments)
}

/// Sets the parameters of the coming step.
pub fn set<G: Gpu>(cx: &mut Context<G>, step: StepParams) -> Result {
    let arguments = BeginArguments {
        block: cx.state.block,
        seed: step.seed,
        first_position: step.first_position,
        step: step.step as u32,
        learning_rate: step.learning_rate,
        ema_decay: step.ema_decay,
    };
    cx.launch(&BEGIN, [1, 1, 1], 32, 0, arguments)
}
