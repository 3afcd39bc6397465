//! Squeeze-excite: the mean over each image, two small dense layers, and their gradients.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::batch_norm::{finish_sums, sums_bytes};
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction::WARP;
use super::sweep::{LANES, Sweep, THREADS};
use crate::ops::{Result, SqueezeBackward, SqueezeForward};

/// Pixels of a thread of the pool, and parts of an image at most.
const RUN: usize = 16;
const MOST_SPLITS: usize = 16;

/// Channels of the reducing layer's input that a block holds at once, at most: 40 KiB of shared memory.
const PIECE: usize = 1280;

// As in the kernels.
/// Images of a block.
const IMAGES: usize = 8;
/// Channels of a block.
const SLICE: usize = 64;
const WARPS: usize = THREADS / WARP;
/// Units of a block that makes weight gradients.
const UNITS: usize = 8;

arguments! {
    /// See `kernels/squeeze_excite.cu`.
    pub struct PoolArguments {
        y: Address,
        coefficients: Address,
        partials: Address,
        pixels: i32,
        channels: i32,
        width: i32,
        rows: i32,
        run: i32,
    }
}

arguments! {
    /// See `kernels/squeeze_excite.cu`.
    pub struct HiddenArguments {
        partials: Address,
        weight: Address,
        bias: Address,
        squeezed: Address,
        hidden: Address,
        images: i32,
        splits: i32,
        channels: i32,
        units: i32,
        piece: i32,
        inverse_pixels: f32,
    }
}

arguments! {
    /// See `kernels/squeeze_excite.cu`.
    pub struct GateArguments {
        hidden: Address,
        weight: Address,
        bias: Address,
        gate: Address,
        images: i32,
        channels: i32,
        units: i32,
    }
}

arguments! {
    /// See `kernels/squeeze_excite.cu`.
    pub struct HiddenGradientArguments {
        gate_gradient: Address,
        gate: Address,
        hidden: Address,
        weight: Address,
        dz: Address,
        active: Address,
        dhidden: Address,
        images: i32,
        channels: i32,
        units: i32,
    }
}

arguments! {
    /// See `kernels/squeeze_excite.cu`.
    pub struct GradientArguments {
        five_sums: Address,
        gate: Address,
        dhidden: Address,
        weight: Address,
        squeeze_gradient: Address,
        partials: Address,
        images: i32,
        channels: i32,
        units: i32,
        inverse_pixels: f32,
    }
}

arguments! {
    /// See `kernels/squeeze_excite.cu`.
    pub struct WeightsArguments {
        dz: Address,
        active: Address,
        squeezed: Address,
        dhidden: Address,
        expand_weight: Address,
        expand_bias: Address,
        reduce_weight: Address,
        reduce_bias: Address,
        block: Address,
        images: i32,
        channels: i32,
        units: i32,
    }
}

const POOL: Kernel<PoolArguments> = Kernel::stored("squeeze_pool");
const HIDDEN: Kernel<HiddenArguments> = Kernel::plain("squeeze_hidden");
const GATE: Kernel<GateArguments> = Kernel::plain("squeeze_gate");
const HIDDEN_GRADIENT: Kernel<HiddenGradientArguments> = Kernel::plain("squeeze_hidden_gradient");
const GRADIENT: Kernel<GradientArguments> = Kernel::plain("squeeze_gradient");
const WEIGHTS: Kernel<WeightsArguments> = Kernel::plain("squeeze_weights");

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
        let pool = PoolArguments {
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

        let (images, units) = (self.images.div_ceil(IMAGES), self.reduce.outputs);
        let piece = self.channels.min(PIECE);
        let hidden = HiddenArguments {
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

        let gate = GateArguments {
            hidden: cx.tensor(self.hidden),
            weight: cx.weight(self.expand.weight),
            bias: cx.weight(self.expand.bias),
            gate: cx.tensor(self.gate),
            images: self.images as i32,
            channels: self.channels as i32,
            units: units as i32,
        };
        let shared = shared_bytes(&[IMAGES * units, SLICE * (units | 1)]);
        cx.launch(&GATE, [images, self.channels.div_ceil(SLICE), 1], THREADS, shared, gate)
    }
}

/// Bytes of dynamic shared memory of these pieces of floats.
fn shared_bytes(pieces: &[usize]) -> usize {
    pieces.iter().map(|floats| (floats * 4).next_multiple_of(16)).sum()
}

/// dz [N, C], active and dhidden [N, S], and the batch norm's partial sums.
fn backward_bytes(p: &SqueezeBackward) -> [usize; 4] {
    let (wide, narrow) = (p.images * p.channels * 4, p.images * p.reduce.outputs * 4);
    [wide, narrow, narrow, sums_bytes(p.images.div_ceil(IMAGES), p.channels)]
}

impl OnCuda for SqueezeBackward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&backward_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [dz, active, dhidden, partials] = cx.workspace(backward_bytes(self));
        let (parts, units) = (self.images.div_ceil(IMAGES), self.reduce.outputs);
        let hidden_gradient = HiddenGradientArguments {
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
        let shared = shared_bytes(&[THREADS * IMAGES, WARPS * IMAGES * WARP]);
        cx.launch(&HIDDEN_GRADIENT, [parts, units.div_ceil(WARP), 1], THREADS, shared, hidden_gradient)?;

        let gradient = GradientArguments {
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
        let shared = shared_bytes(&[IMAGES * units, 2 * THREADS]);
        cx.launch(&GRADIENT, [parts, self.channels.div_ceil(SLICE), 1], THREADS, shared, gradient)?;

        weights(cx, self, dz, active, dhidden)?;
        finish_sums(cx, &self.bn, partials, parts)
    }
}

fn weights<G: Gpu>(
    cx: &mut Context<G>,
    p: &SqueezeBackward,
    dz: Address,
    active: Address,
    dhidden: Address,
) -> Result {
    let arguments = WeightsArguments {
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
    let shared = shared_bytes(&[THREADS * UNITS, WARPS * (UNITS + 1) * (WARP + 1)]);
    cx.launch(&WEIGHTS, grid, THREADS, shared, arguments)
}
