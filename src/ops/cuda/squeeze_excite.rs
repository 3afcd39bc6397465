//! Squeeze-excite: the mean over each image, two small dense layers, and their gradients.

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{MOST_ARRIVALS, added_sums_bytes, exchange_sums};
use super::context::{Context, shared_floats, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::sources::squeeze_excite::{
    FAN, GATE_CHANNELS, IMAGES, LANES, QUARTERS, SLICE, SqueezeGateArguments, SqueezeGradientsArguments,
    SqueezeHiddenGradientArguments, SqueezePoolArguments, THREADS, UNITS, WEIGHT_CHANNELS, WEIGHT_FLOATS,
};
use super::sweep::Sweep;
use crate::ops::{OpsError, Result, SqueezeBackward, SqueezeForward};

/// Pixels of a thread of the pool, and the maximum number of parts of an image.
const RUN: usize = 16;
const MOST_SPLITS: usize = 16;

/// Weights of the second layer up to which the last block of the pool computes the gates. An H100 takes some four
/// microseconds for so many, about what a launch of its own costs that shares them among many blocks.
const MOST_WEIGHTS: usize = 1 << 15;

const POOL: Kernel<SqueezePoolArguments> = Kernel::stored("squeeze_pool");
const GATE: Kernel<SqueezeGateArguments> = Kernel::plain("squeeze_gate");
const HIDDEN_GRADIENT: Kernel<SqueezeHiddenGradientArguments> = Kernel::plain("squeeze_hidden_gradient");
const GRADIENTS: Kernel<SqueezeGradientsArguments> = Kernel::plain("squeeze_gradients");

/// There is memory for the counts of all batches that a grid can have.
fn arrivals_for(images: usize, counts: usize) -> Result {
    if counts <= MOST_ARRIVALS {
        return Ok(());
    }
    Err(OpsError::Device(format!(
        "squeeze-excite of {images} images in one batch; use a smaller --batch-size"
    )))
}

fn sweep(p: &SqueezeForward) -> Sweep {
    Sweep::new(p.pixels, p.channels, RUN, MOST_SPLITS)
}

/// The pool's sums, and what slices of channels add to the hidden units.
fn forward_bytes(p: &SqueezeForward) -> [usize; 2] {
    let sweep = sweep(p);
    let groups = p.images.div_ceil(IMAGES);
    let hidden = groups * sweep.slices * p.reduce.outputs * IMAGES;
    [p.images * sweep.splits * p.channels * 4, hidden * 4]
}

impl OnCuda for SqueezeForward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&forward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let sweep = sweep(self);
        let [partials, parts] = cx.workspace(forward_bytes(self));
        let groups = self.images.div_ceil(IMAGES);
        let units = self.reduce.outputs;
        let apart = self.channels * units > MOST_WEIGHTS;
        arrivals_for(self.images, groups * (sweep.slices + 1))?;
        let pool = SqueezePoolArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            partials,
            parts,
            arrivals: cx.state.arrivals,
            reduce_weight: cx.weight(self.reduce.weight),
            reduce_bias: cx.weight(self.reduce.bias),
            expand_weight: cx.weight(self.expand.weight),
            expand_bias: cx.weight(self.expand.bias),
            squeezed: cx.tensor(self.squeezed),
            hidden: if apart { Address::NULL } else { cx.tensor(self.hidden) },
            gate: if apart { Address::NULL } else { cx.tensor(self.gate) },
            images: self.images as i32,
            pixels: self.pixels as i32,
            channels: self.channels as i32,
            units: units as i32,
            width: sweep.width as i32,
            rows: sweep.rows as i32,
            run: sweep.run as i32,
            inverse_pixels: 1.0 / self.pixels as f32,
        };
        let shared = (THREADS * LANES).max(IMAGES * units);
        cx.launch(&POOL, sweep.grid(self.images), THREADS, shared * 4, pool)?;
        if apart { gates(cx, self, parts) } else { Ok(()) }
    }
}

/// The second layer in a launch of its own.
fn gates<G: Gpu>(cx: &mut Context<G>, p: &SqueezeForward, parts: Address) -> Result {
    let units = p.reduce.outputs;
    let arguments = SqueezeGateArguments {
        parts,
        reduce_bias: cx.weight(p.reduce.bias),
        expand_weight: cx.weight(p.expand.weight),
        expand_bias: cx.weight(p.expand.bias),
        hidden: cx.tensor(p.hidden),
        gate: cx.tensor(p.gate),
        images: p.images as i32,
        channels: p.channels as i32,
        units: units as i32,
        slices: sweep(p).slices as i32,
    };
    let grid = [p.images.div_ceil(IMAGES), p.channels.div_ceil(GATE_CHANNELS), 1];
    cx.launch(&GATE, grid, THREADS, IMAGES * units * 4, arguments)
}

/// dz [N, C], active and dhidden, what slices of channels add to dhidden, and the batch norm's partial sums.
fn backward_bytes(p: &SqueezeBackward) -> [usize; 5] {
    let (units, groups, slices) = (p.reduce.outputs, p.images.div_ceil(IMAGES), p.channels.div_ceil(SLICE));
    let narrow = units.next_multiple_of(UNITS) * groups * IMAGES * 4;
    let parts = groups * units.div_ceil(THREADS) * slices * IMAGES * units.min(THREADS) * 4;
    [p.images * p.channels * 4, narrow, narrow, parts, added_sums_bytes(groups, p.channels)]
}

impl OnCuda for SqueezeBackward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&backward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [dz, active, dhidden, parts, partials] = cx.workspace(backward_bytes(self));
        let groups = self.images.div_ceil(IMAGES);
        let units = self.reduce.outputs;
        let grid = [groups, self.channels.div_ceil(SLICE), units.div_ceil(THREADS)];
        arrivals_for(self.images, (grid[0] * grid[2]).max(grid[1] * (groups.div_ceil(FAN) + 1)))?;
        let hidden_gradient = SqueezeHiddenGradientArguments {
            gate_gradient: cx.tensor(self.five_sums),
            gate: cx.tensor(self.gate),
            hidden: cx.tensor(self.hidden),
            weight: cx.raw_weight(self.expand.weight),
            parts,
            arrivals: cx.state.arrivals,
            dz,
            active,
            dhidden,
            images: self.images as i32,
            channels: self.channels as i32,
            units: units as i32,
        };
        let shared = shared_floats([SLICE * IMAGES, THREADS * IMAGES]);
        cx.launch(&HIDDEN_GRADIENT, grid, THREADS, shared, hidden_gradient)?;
        gradients(cx, self, [dz, active, dhidden, partials])?;
        exchange_sums(cx, &self.bn)
    }
}

/// The gradients of both layers and of the pooled features, and the batch norm's sums.
fn gradients<G: Gpu>(
    cx: &mut Context<G>,
    p: &SqueezeBackward,
    [dz, active, dhidden, partials]: [Address; 4],
) -> Result {
    let (units, groups) = (p.reduce.outputs, p.images.div_ceil(IMAGES));
    let weight_blocks = 2 * p.channels.div_ceil(WEIGHT_CHANNELS) * units.div_ceil(UNITS);
    let arguments = SqueezeGradientsArguments {
        five_sums: cx.tensor(p.five_sums),
        gate: cx.tensor(p.gate),
        squeezed: cx.tensor(p.squeezed),
        dz,
        active,
        dhidden,
        weight: cx.raw_weight(p.reduce.weight),
        squeeze_gradient: cx.tensor(p.squeeze_gradient),
        partials,
        arrivals: cx.state.arrivals,
        norm_sums: cx.tensor(p.bn.sums),
        bias_gradient: cx.gradient(p.bn.bias),
        norm_gradient: cx.gradient(p.bn.weight),
        expand_weight: cx.gradient(p.expand.weight),
        expand_bias: cx.gradient(p.expand.bias),
        reduce_weight: cx.gradient(p.reduce.weight),
        reduce_bias: cx.gradient(p.reduce.bias),
        block: cx.state.block,
        images: p.images as i32,
        channels: p.channels as i32,
        units: units as i32,
        weight_blocks: weight_blocks as i32,
        inverse_pixels: 1.0 / p.pixels as f32,
    };
    let grid = [weight_blocks + groups * p.channels.div_ceil(SLICE), 1, 1];
    let shared = (QUARTERS * IMAGES * SLICE + 2 * THREADS + IMAGES * units).max(WEIGHT_FLOATS);
    cx.launch(&GRADIENTS, grid, THREADS, shared * 4, arguments)
}
