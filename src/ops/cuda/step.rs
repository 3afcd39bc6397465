//! The step's block: everything that differs from step to step, in device memory.
//!
//! Kernels read it, so captured graphs hold no number that changes. The host writes the schedule's part through
//! the arguments of a small kernel, which needs neither a copy nor a wait; the device keeps the loss scale itself.

use bytemuck::{Pod, Zeroable};

use super::arguments::{Kernel, arguments};
use super::context::Context;
use super::gpu::{Address, Gpu};
use crate::ops::{Result, StepParams};

/// `StepBlock` of `kernels/step.cuh`.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Block {
    pub seed: u64,
    pub first_position: u64,
    pub step: u32,
    pub learning_rate: f32,
    pub ema_decay: f32,
    pub loss_scale: f32,
    pub not_finite: u32,
    pub good_steps: u32,
    pub skipped: u32,
    pub correct: u32,
    pub loss: f64,
}

pub const BLOCK_BYTES: usize = size_of::<Block>();

/// The loss scale of fp16 before the first step.
pub const INITIAL_SCALE: f32 = 65_536.0;

/// The part of the block that outlives a step: what a checkpoint keeps of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// What the loss, and so every gradient, is multiplied by: a power of two, 1 but for fp16.
    pub scale: f32,
    /// Steps without overflow since the scale last changed.
    pub good_steps: u32,
    /// Steps that were skipped, in all.
    pub skipped: u32,
}

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
    write(cx, Scale { scale, good_steps: 0, skipped: 0 })
}

/// The loss scale as of now, waiting for what is enqueued.
pub fn read<G: Gpu>(cx: &mut Context<G>) -> Result<Scale> {
    let mut block = Block::default();
    cx.gpu.read(cx.state.block, bytemuck::bytes_of_mut(&mut block))?;
    let Block { loss_scale, good_steps, skipped, .. } = block;
    Ok(Scale { scale: loss_scale, good_steps, skipped })
}

/// Sets the loss scale, and clears what the block holds of a step: flag, loss, correct answers.
pub fn write<G: Gpu>(cx: &mut Context<G>, scale: Scale) -> Result {
    let Scale { scale, good_steps, skipped } = scale;
    let arguments = ScaleArguments { block: cx.state.block, scale, good_steps, skipped };
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
