//! The step's block: all numbers that change from step to step, in device memory.
//!
//! Kernels read them there, so captured graphs contain no number that changes. The host sets the schedule's part
//! through the arguments of a small kernel, without a copy or a wait. The device updates the loss scale itself.

use std::mem::offset_of;

use super::arguments::Kernel;
use super::context::Context;
use super::gpu::{Address, Gpu, Piece, Reduce};
use super::sources::step::{StepBeginArguments, StepBlock, StepScaleArguments};
use crate::ops::{LossScale, Result, StepParams};

/// Bytes of the block, which `kernels/step.cuh` declares.
pub const BLOCK_BYTES: usize = size_of::<StepBlock>();

/// The loss scale of fp16 before the first step.
pub const INITIAL_SCALE: f32 = 65_536.0;

const BEGIN: Kernel<StepBeginArguments> = Kernel::plain("step_begin");
const SCALE: Kernel<StepScaleArguments> = Kernel::plain("step_scale");

/// Initialises a new block.
pub fn initialise<G: Gpu>(cx: &mut Context<G>) -> Result {
    let scale = if cx.precision == super::Precision::Fp16 { INITIAL_SCALE } else { 1.0 };
    let arguments = StepScaleArguments { block: cx.state.block, scale, good_steps: 0, skipped: 0 };
    cx.launch(&SCALE, [1, 1, 1], 32, 0, arguments)
}

/// Sets the parameters of the next step.
pub fn set<G: Gpu>(cx: &mut Context<G>, step: StepParams) -> Result {
    let arguments = StepBeginArguments {
        block: cx.state.block,
        seed: step.seed,
        first_position: step.first_position,
        step: step.step as u32,
        learning_rate: step.learning_rate,
        body_rate: step.body_rate,
        body: step.body as u32,
        ema_decay: step.ema_decay,
    };
    cx.launch(&BEGIN, [1, 1, 1], 32, 0, arguments)
}

/// Restores a saved state of loss scaling.
pub fn set_scale<G: Gpu>(cx: &mut Context<G>, state: LossScale) -> Result {
    let LossScale { scale, good_steps, skipped } = state;
    let arguments = StepScaleArguments { block: cx.state.block, scale, good_steps, skipped };
    cx.launch(&SCALE, [1, 1, 1], 32, 0, arguments)
}

/// Sets the figures of the step's micro-batches to zero.
pub fn clear_figures<G: Gpu>(cx: &mut Context<G>) -> Result {
    cx.gpu.fill(cx.state.block.offset(FIGURES), 0, BLOCK_BYTES - FIGURES)
}

/// Waits for everything enqueued and reads the block.
pub fn read<G: Gpu>(cx: &mut Context<G>) -> Result<StepValues> {
    let mut bytes = [0; BLOCK_BYTES];
    cx.gpu.read(cx.state.block, &mut bytes)?;
    Ok(StepValues::parse(&bytes))
}

/// Where the figures begin in the block: `correct`, then `loss`.
const FIGURES: usize = offset_of!(StepBlock, correct);

/// How the ranks combine their blocks: the losses and the numbers of correct images are summed, and the flag is
/// raised on all ranks if it is raised on one.
pub fn shared(block: Address) -> [Piece; 3] {
    let piece = |at: usize, how| Piece { at: block.offset(at), elements: 1, how };
    [
        piece(offset_of!(StepBlock, loss), Reduce::SumF64),
        piece(offset_of!(StepBlock, correct), Reduce::SumU32),
        piece(offset_of!(StepBlock, not_finite), Reduce::MaxU32),
    ]
}

/// The device's own part of the block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepValues {
    pub scale: LossScale,
    /// Whether a gradient of this step is not finite. The update counts this in `scale` and clears it.
    pub not_finite: bool,
    pub correct: u32,
    pub loss: f64,
    /// As in [`StepFigures`](crate::ops::StepFigures).
    pub gradient_norm: Option<f32>,
}

impl StepValues {
    /// From the block's bytes.
    pub fn parse(bytes: &[u8]) -> StepValues {
        let StepBlock { loss_scale, good_steps, skipped, not_finite, gradient_norm, correct, loss, .. } =
            bytemuck::pod_read_unaligned(&bytes[..BLOCK_BYTES]);
        let scale = LossScale { scale: loss_scale, good_steps, skipped };
        // Below 0 or NaN: there is none.
        let gradient_norm = (gradient_norm >= 0.0).then_some(gradient_norm);
        StepValues { scale, not_finite: not_finite != 0, correct, loss, gradient_norm }
    }
}
