//! The pointwise expansion (and the head's convolution).

use super::arguments::{Kernel, arguments};
use super::batch_norm::{finish_statistics, finish_sums, statistics_bytes, sums_bytes};
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::pointwise::Cut;
use super::pointwise_backward::{ExpandData, WeightPieces};
use super::precision::Precision;
use super::reduction::add_gradient;
use crate::ops::{ExpandBackward, ExpandForward, Result, Statistics};

arguments! {
    /// y = x·Wᵀ, see `kernels/pointwise.cuh`.
    pub struct ForwardArguments {
        x: Address,
        weight: Address,
        y: Address,
        counts: Address,
        moments: Address,
        rows: i32,
        inputs: i32,
        outputs: i32,
        chunk: i32,
        row_tiles: i32,
        weight_slots: i32,
    }
}

const FORWARD: Kernel<ForwardArguments> = Kernel::stored("expand_forward");

fn cut(p: &ExpandForward, precision: Precision) -> Cut {
    Cut::expand(precision, p.rows, p.inputs, p.outputs)
}

pub fn forward_workspace(p: &ExpandForward, precision: Precision) -> usize {
    workspace_bytes(&statistics_bytes(cut(p, precision).parts, p.outputs))
}

pub fn forward<G: Gpu>(cx: &mut Context<G>, p: &ExpandForward) -> Result {
    let cut = cut(p, cx.precision);
    let batch = p.bn.statistics == Statistics::Batch;
    let [counts, moments] = cx.workspace(statistics_bytes(cut.parts, p.outputs));
    let arguments = ForwardArguments {
        x: cx.tensor(p.x),
        weight: cx.stored_weight(p.weight),
        y: cx.tensor(p.y),
        counts: if batch { counts } else { Address::NULL },
        moments: if batch { moments } else { Address::NULL },
        rows: p.rows as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        chunk: cut.chunk as i32,
        row_tiles: cut.row_tiles as i32,
        weight_slots: cut.weight_slots as i32,
    };
    cx.launch(&FORWARD.variant(cut.tile), cut.grid(), cut.tile.threads(), cut.shared, arguments)?;
    if batch {
        finish_statistics(cx, &p.bn, counts, moments, cut.parts)?;
    }
    Ok(())
}

arguments! {
    /// dx and the sums of the batch norm before, see `kernels/expand_backward.cuh`.
    pub struct BackwardDataArguments {
        du: Address,
        y: Address,
        weight: Address,
        coefficients: Address,
        sums: Address,
        shortcut: Address,
        previous_y: Address,
        previous_coefficients: Address,
        keep: Address,
        dx: Address,
        partials: Address,
        rows: i32,
        inputs: i32,
        outputs: i32,
        pixels: i32,
        inverse_rows: f32,
    }
}

arguments! {
    /// The weights' gradient, see `kernels/expand_backward.cuh`.
    pub struct BackwardWeightsArguments {
        du: Address,
        y: Address,
        x: Address,
        coefficients: Address,
        sums: Address,
        partials: Address,
        rows: i32,
        inputs: i32,
        outputs: i32,
        slice: i32,
        inverse_rows: f32,
    }
}

const BACKWARD_DATA: Kernel<BackwardDataArguments> = Kernel::stored("expand_backward_data");
const BACKWARD_WEIGHTS: Kernel<BackwardWeightsArguments> = Kernel::stored("expand_backward_weights");

/// How the backward pass is cut, and the bytes of the sums and of the weights' partial gradients.
fn backward_cut(p: &ExpandBackward, precision: Precision) -> (ExpandData, WeightPieces, [usize; 2]) {
    let data = ExpandData::of(precision, p.inputs);
    let weights = WeightPieces::expand(precision, p.rows, p.inputs, p.outputs);
    let bytes = [sums_bytes(data.blocks(p.rows), p.inputs), weights.parts * p.inputs * p.outputs * 4];
    (data, weights, bytes)
}

pub fn backward_workspace(p: &ExpandBackward, precision: Precision) -> usize {
    workspace_bytes(&backward_cut(p, precision).2)
}

pub fn backward<G: Gpu>(cx: &mut Context<G>, p: &ExpandBackward) -> Result {
    let (data, weights, bytes) = backward_cut(p, cx.precision);
    let [sums, partials] = cx.workspace(bytes);
    let blocks = data.blocks(p.rows);
    let arguments = BackwardDataArguments {
        du: cx.tensor(p.du),
        y: cx.tensor(p.y),
        weight: cx.stored_weight(p.weight),
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        shortcut: cx.optional(p.shortcut),
        previous_y: cx.tensor(p.previous.y),
        previous_coefficients: cx.tensor(p.previous.bn.coefficients),
        keep: cx.optional(p.previous.keep),
        dx: cx.tensor(p.dx),
        partials: sums,
        rows: p.rows as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        pixels: p.previous.pixels as i32,
        inverse_rows: 1.0 / p.rows as f32,
    };
    let kernel = BACKWARD_DATA.variant(data.columns);
    cx.launch(&kernel, [blocks, 1, 1], data.threads, data.shared(cx.precision), arguments)?;
    finish_sums(cx, &p.previous.bn, sums, blocks)?;
    let arguments = BackwardWeightsArguments {
        du: cx.tensor(p.du),
        y: cx.tensor(p.y),
        x: cx.tensor(p.x),
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        partials,
        rows: p.rows as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        slice: weights.slice as i32,
        inverse_rows: 1.0 / p.rows as f32,
    };
    let (kernel, shared) = (BACKWARD_WEIGHTS.variant(weights.variant()), weights.shared(cx.precision, 0));
    cx.launch(&kernel, weights.grid(), WeightPieces::THREADS, shared, arguments)?;
    add_gradient(cx, partials, weights.parts, p.weight)
}
