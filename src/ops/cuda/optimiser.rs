//! The optimiser step, and the loss scale that follows from it.

use super::arguments::{Kernel, arguments};
use super::context::{Context, State};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::sweep::{LANES, THREADS};
use crate::ops::{Result, RmsPropForm, Rule, Update};

/// Good steps after which the loss scale of fp16 doubles.
pub const GROWTH_INTERVAL: u32 = 2000;

/// Elements of a block: `CHUNK` of the kernels.
const CHUNK: usize = THREADS * LANES;

arguments! {
    /// See `kernels/optimiser.cu`.
    pub struct UpdateArguments {
        parameters: Address,
        gradients: Address,
        mean_square: Address,
        momentum: Address,
        ema: Address,
        running: Address,
        storage: Address,
        block: Address,
        trainable: i32,
        statistics: i32,
        chunks: i32,
        alpha: f32,
        momentum_factor: f32,
        eps: f32,
        weight_decay: f32,
    }
}

arguments! {
    /// See `kernels/optimiser.cu`.
    pub struct ScaleArguments {
        block: Address,
        dynamic: u32,
        growth_interval: u32,
    }
}

arguments! {
    /// See `kernels/optimiser.cu`.
    pub struct StoreArguments {
        weights: Address,
        storage: Address,
        elements: i32,
    }
}

const RMSPROP_PYTORCH: Kernel<UpdateArguments> = Kernel::stored("optimiser_rmsprop_pytorch");
const RMSPROP_TENSORFLOW: Kernel<UpdateArguments> = Kernel::stored("optimiser_rmsprop_tensorflow");
const SGD: Kernel<UpdateArguments> = Kernel::stored("optimiser_sgd");
const SCALE: Kernel<ScaleArguments> = Kernel::plain("optimiser_scale");
const STORE: Kernel<StoreArguments> = Kernel::stored("store_weights");

/// Moves parameters, EMA and running statistics, or nothing at all where a gradient was not finite; then counts the
/// step in the step's block and lowers its flag.
pub fn update<G: Gpu>(cx: &mut Context<G>, p: &Update) -> Result {
    let State { trainable, total, .. } = cx.state;
    let chunks = trainable.div_ceil(CHUNK);
    let (kernel, alpha, momentum_factor, eps) = match p.rule {
        Rule::RmsProp { form, alpha, momentum, eps } => match form {
            RmsPropForm::PyTorch => (&RMSPROP_PYTORCH, alpha, momentum, eps),
            RmsPropForm::TensorFlow => (&RMSPROP_TENSORFLOW, alpha, momentum, eps),
        },
        Rule::Sgd { momentum } => (&SGD, 0.0, momentum, 0.0),
    };
    let arguments = UpdateArguments {
        parameters: cx.state.parameters,
        gradients: cx.state.gradients,
        mean_square: cx.state.mean_square,
        momentum: cx.state.momentum,
        ema: if p.ema { cx.state.ema } else { Address::NULL },
        running: cx.state.running,
        // Null in fp32, as the state's; where the copy is of the EMA it is made anew below.
        storage: if cx.ema_weights { Address::NULL } else { cx.state.storage },
        block: cx.state.block,
        trainable: trainable as i32,
        statistics: (total - trainable) as i32,
        chunks: chunks as i32,
        alpha,
        momentum_factor,
        eps,
        weight_decay: p.weight_decay,
    };
    let blocks = chunks + (total - trainable).div_ceil(THREADS);
    cx.launch(kernel, [blocks, 1, 1], THREADS, 0, arguments)?;
    let arguments = ScaleArguments {
        block: cx.state.block,
        dynamic: (cx.precision == Precision::Fp16) as u32,
        growth_interval: cx.growth_interval,
    };
    cx.launch(&SCALE, [1, 1, 1], 32, 0, arguments)?;
    if cx.ema_weights { store_weights(cx) } else { Ok(()) }
}

/// Makes the storage copy of the forward weights anew. Nothing to do in fp32.
pub fn store_weights<G: Gpu>(cx: &mut Context<G>) -> Result {
    let State { parameters, ema, storage, trainable, .. } = cx.state;
    if storage == Address::NULL || trainable == 0 {
        return Ok(());
    }
    let weights = if cx.ema_weights { ema } else { parameters };
    let arguments = StoreArguments { weights, storage, elements: trainable as i32 };
    cx.launch(&STORE, [trainable.div_ceil(CHUNK), 1, 1], THREADS, 0, arguments)
}
