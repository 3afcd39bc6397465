//! The step's block: everything that differs from step to step, in device memory.
//!
//! Kernels read it, so captured graphs hold no number that changes. The host writes the schedule's part through
//! the arguments of a small kernel, which needs neither a copy nor a wait; the device keeps the loss scale itself.

use super::arguments::{Kernel, arguments};
use super::context::Context;
use super::gpu::{Address, Gpu, Piece, Reduce};
use crate::ops::{LossScale, Result, StepParams};

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

/// Goes on from a saved state of loss scaling.
pub fn set_scale<G: Gpu>(cx: &mut Context<G>, state: LossScale) -> Result {
    let LossScale { scale, good_steps, skipped } = state;
    let arguments = ScaleArguments { block: cx.state.block, scale, good_steps, skipped };
    cx.launch(&SCALE, [1, 1, 1], 32, 0, arguments)
}

/// Zeroes the figures of the step's micro-batches.
pub fn clear_figures<G: Gpu>(cx: &mut Context<G>) -> Result {
    cx.gpu.fill(cx.state.block.offset(FIGURES), 0, BLOCK_BYTES - FIGURES)
}

/// Reads the block, waiting for what is enqueued.
pub fn read<G: Gpu>(cx: &mut Context<G>) -> Result<Block> {
    let mut bytes = [0; BLOCK_BYTES];
    cx.gpu.read(cx.state.block, &mut bytes)?;
    Ok(Block::parse(&bytes))
}

/// Where the figures begin in the block: `correct`, `loss`.
const FIGURES: usize = 44;
const NOT_FINITE: usize = 32;
const LOSS: usize = 48;

/// What becomes of a block's numbers where ranks share the step: the loss and the right answers add up, and what one
/// found not to be finite is so for all.
pub fn shared(block: Address) -> [Piece; 3] {
    let piece = |at: usize, how| Piece { at: block.offset(at), elements: 1, how };
    [piece(LOSS, Reduce::SumF64), piece(FIGURES, Reduce::SumU32), piece(NOT_FINITE, Reduce::MaxU32)]
}

/// The device's own part of the block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    pub scale: LossScale,
    /// Whether a gradient of this step is not finite, until its update has said so in `scale`.
    pub not_finite: bool,
    pub correct: u32,
    pub loss: f64,
}

impl Block {
    /// From the block's bytes.
    pub fn parse(bytes: &[u8]) -> Block {
        let word = |at: usize| -> [u8; 4] { [0, 1, 2, 3].map(|i: usize| bytes[at + i]) };
        let long = |at: usize| -> [u8; 8] { [0, 1, 2, 3, 4, 5, 6, 7].map(|i: usize| bytes[at + i]) };
        Block {
            scale: LossScale {
                scale: f32::from_le_bytes(word(28)),
                good_steps: u32::from_le_bytes(word(36)),
                skipped: u32::from_le_bytes(word(40)),
            },
            not_finite: u32::from_le_bytes(word(NOT_FINITE)) != 0,
            correct: u32::from_le_bytes(word(FIGURES)),
            loss: f64::from_le_bytes(long(LOSS)),
        }
    }
}
