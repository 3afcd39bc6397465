//! The optimiser step and the update of the loss scale.

use super::OnCuda;
use super::arguments::Kernel;
use super::sources::optimiser::{
    CHUNK, LANES, OptimiserClipArguments, OptimiserFiniteArguments, OptimiserScaleArguments,
    OptimiserSquaresArguments, OptimiserStoreArguments, OptimiserUpdateArguments, THREADS,
};
use std::collections::{BTreeMap, HashMap};

use super::context::{Context, State, StoredWeights};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use crate::ops::{Frozen, Plan, Result, RmsPropForm, Rule, Update};

/// Good steps after which the loss scale of fp16 doubles.
pub const GROWTH_INTERVAL: u32 = 2000;

const RMSPROP_PYTORCH: Kernel<OptimiserUpdateArguments> = Kernel::plain("optimiser_rmsprop_pytorch");
const RMSPROP_TENSORFLOW: Kernel<OptimiserUpdateArguments> = Kernel::plain("optimiser_rmsprop_tensorflow");
const ADAMW: Kernel<OptimiserUpdateArguments> = Kernel::plain("optimiser_adamw");
const NESTEROV: Kernel<OptimiserUpdateArguments> = Kernel::plain("optimiser_sgd_nesterov");
const SGD: Kernel<OptimiserUpdateArguments> = Kernel::plain("optimiser_sgd");
const SCALE: Kernel<OptimiserScaleArguments> = Kernel::plain("optimiser_scale");
const SQUARES: Kernel<OptimiserSquaresArguments> = Kernel::plain("optimiser_squares");
const CLIP: Kernel<OptimiserClipArguments> = Kernel::plain("optimiser_clip");
const FINITE: Kernel<OptimiserFiniteArguments> = Kernel::plain("optimiser_finite");
const STORE: Kernel<OptimiserStoreArguments> = Kernel::stored("optimiser_store");

impl OnCuda for Update {
    /// Updates parameters, EMA and running statistics, or none of them if a gradient was not finite. Then counts the step
    /// in the step's block and clears its flag.
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        if let Some(most) = self.clip_norm {
            clip(cx, most, self.frozen)?;
        }
        let State { trainable, total, .. } = cx.state;
        let chunks = trainable.div_ceil(CHUNK) - self.frozen.parameters / CHUNK;
        let kernel = match self.rule {
            Rule::RmsProp { form: RmsPropForm::PyTorch, .. } => RMSPROP_PYTORCH,
            Rule::RmsProp { form: RmsPropForm::TensorFlow, .. } => RMSPROP_TENSORFLOW,
            Rule::Sgd { nesterov: false, .. } => SGD,
            Rule::Sgd { nesterov: true, .. } => NESTEROV,
            Rule::AdamW { .. } => ADAMW,
        };
        let [first, second] = cx.state.slots;
        let (alpha, momentum_factor, eps, [mean_square, momentum]) = match self.rule {
            Rule::RmsProp { alpha, momentum, eps, .. } => (alpha, momentum, eps, [first, second]),
            Rule::Sgd { momentum, .. } => (0.0, momentum, 0.0, [Address::NULL, first]),
            Rule::AdamW { eps, .. } => (0.0, 0.0, eps, [first, second]),
        };
        let [beta1, beta2] = match self.rule {
            Rule::AdamW { beta1, beta2, .. } => [beta1, beta2],
            _ => [0.5; 2],
        };
        let arguments = OptimiserUpdateArguments {
            parameters: cx.state.parameters,
            gradients: cx.state.gradients,
            mean_square,
            momentum,
            decay_factors: if self.weight_decay.by_parameter {
                cx.state.decay_factors
            } else {
                Address::NULL
            },
            ema: if self.ema { cx.state.ema } else { Address::NULL },
            running: cx.state.running,
            block: cx.state.block,
            trainable: trainable as i32,
            frozen: self.frozen.parameters as i32,
            statistics: (total - trainable) as i32,
            frozen_statistics: self.frozen.statistics as i32,
            chunks: chunks as i32,
            alpha,
            momentum_factor,
            eps,
            mean_share: (1.0 - beta1) as f32,
            square_share: (1.0 - beta2) as f32,
            mean_log: beta1.ln() as f32,
            square_log: beta2.ln() as f32,
            weight_decay: self.weight_decay.rate,
        };
        let blocks = chunks + (total - trainable - self.frozen.statistics).div_ceil(THREADS);
        cx.launch(&kernel, [blocks, 1, 1], THREADS, 0, arguments)?;
        let arguments = OptimiserScaleArguments {
            block: cx.state.block,
            dynamic: (cx.precision == Precision::Fp16) as u32,
            growth_interval: cx.growth_interval,
        };
        cx.launch(&SCALE, [1, 1, 1], 32, 0, arguments)?;
        store_weights(cx)
    }
}

/// Bytes of the sums of squares of so many gradients.
pub fn squares_bytes(trainable: usize) -> usize {
    (trainable.div_ceil(CHUNK) * size_of::<f64>()).max(16)
}

/// Takes the norm of all gradients, and from it the factor that the update multiplies them by.
fn clip<G: Gpu>(cx: &mut Context<G>, most: f32, frozen: Frozen) -> Result {
    let State { squares, block, .. } = cx.state;
    let (gradients, trainable) = trained_gradients(cx, frozen);
    let chunks = trainable.div_ceil(CHUNK);
    let arguments = OptimiserSquaresArguments { gradients, squares, trainable: trainable as i32 };
    cx.launch(&SQUARES, [chunks, 1, 1], THREADS, THREADS * size_of::<f64>(), arguments)?;
    let arguments = OptimiserClipArguments { squares, block, chunks: chunks as i32, most };
    cx.launch(&CLIP, [1, 1, 1], THREADS, THREADS * size_of::<f64>(), arguments)
}

/// Where the gradients begin that are not frozen, and their number. Before them, up to a chunk's border, are zeros.
fn trained_gradients<G: Gpu>(cx: &Context<G>, frozen: Frozen) -> (Address, usize) {
    let State { trainable, gradients, .. } = cx.state;
    let left_out = frozen.parameters / CHUNK * CHUNK;
    (gradients.offset(4 * left_out), trainable - left_out)
}

/// Raises the step's flag if a gradient is not finite.
pub fn look_at_gradients<G: Gpu>(cx: &mut Context<G>, frozen: Frozen) -> Result {
    let block = cx.state.block;
    let (gradients, trainable) = trained_gradients(cx, frozen);
    let arguments = OptimiserFiniteArguments { gradients, block, trainable: trainable as i32 };
    cx.launch(&FINITE, [trainable.div_ceil(CHUNK), 1, 1], THREADS, 0, arguments)
}

/// Allocates the storage copy of the plans' pointwise weights and its table.
pub fn stored_weights<G: Gpu>(gpu: &mut G, plans: &[&Plan], precision: Precision) -> Result<StoredWeights> {
    let products = plans.iter().flat_map(|plan| &plan.products);
    let products: BTreeMap<usize, usize> = products.map(|p| (p.offset, p.elements)).collect();
    let (mut places, mut table, mut end) = (HashMap::new(), Vec::new(), 0);
    for (&offset, &elements) in &products {
        places.insert(offset, end);
        for first in (0..elements).step_by(CHUNK) {
            let chunk = [offset + first, end + first, CHUNK.min(elements - first)];
            table.extend(chunk.map(|number| number as u32));
        }
        end += elements.next_multiple_of(LANES);
    }
    let values = gpu.allocate((end * precision.bytes()).max(16))?;
    let bytes: &[u8] = bytemuck::cast_slice(&table);
    let stored =
        StoredWeights { values, table: gpu.allocate(bytes.len().max(16))?, chunks: table.len() / 3, places };
    gpu.write(stored.table, bytes)?;
    Ok(stored)
}

/// Updates the storage copy of the forward weights.
pub fn store_weights<G: Gpu>(cx: &mut Context<G>) -> Result {
    let StoredWeights { values, table, chunks, .. } = cx.stored;
    if chunks == 0 {
        return Ok(());
    }
    let weights = if cx.ema_weights { cx.state.ema } else { cx.state.parameters };
    let arguments = OptimiserStoreArguments { weights, storage: values, table };
    cx.launch(&STORE, [chunks, 1, 1], THREADS, 0, arguments)
}
