//! Squeeze-excite: the mean over each image, two small dense layers, and their gradients.

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::sums_bytes;
use super::context::{Context, shared_floats, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction::{Partials, finish_gradients};
use super::sources::squeeze_excite::{
    BATCH, IMAGES, LANES, ROW, SLICE, SqueezeGateArguments, SqueezeGradientArguments, SqueezeHiddenArguments,
    SqueezeHiddenGradientArguments, SqueezePoolArguments, SqueezeWeightsArguments, THREADS, UNITS, WARP,
    WARPS,
};
use super::sweep::Sweep;
use crate::ops::{Result, SqueezeBackward, SqueezeForward};

/// Pixels of a thread of the pool, and the maximum number of parts of an image.
const RUN: usize = 16;
const MOST_SPLITS: usize = 16;

/// Maximum number of input channels of the first layer that a block holds at once: 40 KiB of shared memory.
const PIECE: usize = 1280;

const POOL: Kernel<SqueezePoolArguments> = Kernel::stored("squeeze_pool");
const HIDDEN: Kernel<SqueezeHiddenArguments> = Kernel::plain("squeeze_hidden");
const GATE: Kernel<SqueezeGateArguments> = Kernel::plain("squeeze_gate");
const HIDDEN_GRADIENT: Kernel<SqueezeHiddenGradientArguments> = Kernel::plain("squeeze_hidden_gradient");
const GRADIENT: Kernel<SqueezeGradientArguments> = Kernel::plain("squeeze_gradient");
const WEIGHTS: Kernel<SqueezeWeightsArguments> = Kernel::plain("squeeze_weights");

fn sweep(p: &SqueezeForward) -> Sweep {
    Sweep::new(p.pixels, p.channels, RUN, MOST_SPLITS)
}

fn forward_bytes(p: &SqueezeForward) -> [usize; 1] {
    [p.images * sweep(p).splits * p.channels * 4]
}

impl OnCuda for SqueezeForward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&forward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let sweep = sweep(self);
        let [partials] = cx.workspace(forward_bytes(self));
        let pool = SqueezePoolArguments {
            y: cx.tensor(self.y),
            coefficients: cx.tensor(self.bn.coefficients),
            partials,
            pixels: self.pixels as i32,
            channels: self.channels as i32,
            width: sweep.width as i32,
            rows: sweep.rows as i32,
            run: sweep.run as i32,
        };
        cx.launch(&POOL, sweep.grid(self.images), THREADS, THREADS * LANES * 4, pool)?;

        let images = self.images.div_ceil(IMAGES);
        let units = self.reduce.outputs;
        let piece = self.channels.min(PIECE);
        let hidden = SqueezeHiddenArguments {
            partials,
            weight: cx.weight(self.reduce.weight),
            bias: cx.weight(self.reduce.bias),
            squeezed: cx.tensor(self.squeezed),
            hidden: cx.tensor(self.hidden),
            images: self.images as i32,
            splits: sweep.splits as i32,
            channels: self.channels as i32,
            units: units as i32,
            piece: piece as i32,
            inverse_pixels: 1.0 / self.pixels as f32,
        };
        cx.launch(&HIDDEN, [images, units.div_ceil(WARPS), 1], THREADS, IMAGES * piece * 4, hidden)?;

        let gate = SqueezeGateArguments {
            hidden: cx.tensor(self.hidden),
            weight: cx.weight(self.expand.weight),
            bias: cx.weight(self.expand.bias),
            gate: cx.tensor(self.gate),
            images: self.images as i32,
            channels: self.channels as i32,
            units: units as i32,
        };
        let shared = shared_floats([IMAGES * units, SLICE * (units | 1)]);
        cx.launch(&GATE, [images, self.channels.div_ceil(SLICE), 1], THREADS, shared, gate)
    }
}

/// dz [N, C], active and dhidden [N, S], and the batch norm's partial sums.
fn backward_bytes(p: &SqueezeBackward) -> [usize; 4] {
    let wide = p.images * p.channels * 4;
    let narrow = p.images * p.reduce.outputs * 4;
    [wide, narrow, narrow, sums_bytes(p.images.div_ceil(IMAGES), p.channels)]
}

impl OnCuda for SqueezeBackward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&backward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [dz, active, dhidden, partials] = cx.workspace(backward_bytes(self));
        let parts = self.images.div_ceil(IMAGES);
        let units = self.reduce.outputs;
        let hidden_gradient = SqueezeHiddenGradientArguments {
            gate_gradient: cx.tensor(self.five_sums),
            gate: cx.tensor(self.gate),
            hidden: cx.tensor(self.hidden),
            weight: cx.raw_weight(self.expand.weight),
            dz,
            active,
            dhidden,
            images: self.images as i32,
            channels: self.channels as i32,
            units: units as i32,
        };
        let shared = shared_floats([THREADS * IMAGES, WARPS * IMAGES * WARP]);
        cx.launch(&HIDDEN_GRADIENT, [parts, units.div_ceil(WARP), 1], THREADS, shared, hidden_gradient)?;

        let gradient = SqueezeGradientArguments {
            five_sums: cx.tensor(self.five_sums),
            gate: cx.tensor(self.gate),
            dhidden,
            weight: cx.raw_weight(self.reduce.weight),
            squeeze_gradient: cx.tensor(self.squeeze_gradient),
            partials,
            images: self.images as i32,
            channels: self.channels as i32,
            units: units as i32,
            inverse_pixels: 1.0 / self.pixels as f32,
        };
        let shared = shared_floats([IMAGES * units, 2 * THREADS]);
        cx.launch(&GRADIENT, [parts, self.channels.div_ceil(SLICE), 1], THREADS, shared, gradient)?;

        weights(cx, self, dz, active, dhidden)?;
        finish_gradients(cx, Some((&self.bn, Partials { at: partials, parts })), None)
    }
}

fn weights<G: Gpu>(
    cx: &mut Context<G>,
    p: &SqueezeBackward,
    dz: Address,
    active: Address,
    dhidden: Address,
) -> Result {
    let arguments = SqueezeWeightsArguments {
        dz,
        active,
        squeezed: cx.tensor(p.squeezed),
        dhidden,
        expand_weight: cx.gradient(p.expand.weight),
        expand_bias: cx.gradient(p.expand.bias),
        reduce_weight: cx.gradient(p.reduce.weight),
        reduce_bias: cx.gradient(p.reduce.bias),
        block: cx.state.block,
        images: p.images as i32,
        channels: p.channels as i32,
        units: p.reduce.outputs as i32,
    };
    let grid = [p.channels.div_ceil(WARP), p.reduce.outputs.div_ceil(UNITS), 2];
    let shared = shared_floats([BATCH * UNITS, WARPS * (UNITS + 1) * ROW]);
    cx.launch(&WEIGHTS, grid, THREADS, shared, arguments)
}
