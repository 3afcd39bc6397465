//! The pointwise projection.

use super::arguments::{Kernel, arguments};
use super::batch_norm::{finish_statistics, statistics_bytes};
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::pointwise::Cut;
use super::precision::Precision;
use crate::ops::{OpsError, ProjectBackward, ProjectForward, Result, Statistics};

arguments! {
    /// y = (silu(BN(x))·gate)·Wᵀ, see `kernels/pointwise.cuh`.
    pub struct ForwardArguments {
        x: Address,
        weight: Address,
        y: Address,
        counts: Address,
        moments: Address,
        /// Of the batch norm of x.
        coefficients: Address,
        gate: Address,
        rows: i32,
        inputs: i32,
        outputs: i32,
        chunk: i32,
        row_tiles: i32,
        weight_slots: i32,
        pixels: i32,
    }
}

const FORWARD: Kernel<ForwardArguments> = Kernel::stored("project_forward");

fn cut(p: &ProjectForward, precision: Precision) -> Cut {
    Cut::project(precision, p.images * p.pixels, p.inputs, p.outputs)
}

pub fn forward_workspace(p: &ProjectForward, precision: Precision) -> usize {
    workspace_bytes(&statistics_bytes(cut(p, precision).parts, p.outputs))
}

pub fn forward<G: Gpu>(cx: &mut Context<G>, p: &ProjectForward) -> Result {
    let cut = cut(p, cx.precision);
    let batch = p.bn.statistics == Statistics::Batch;
    let [counts, moments] = cx.workspace(statistics_bytes(cut.parts, p.outputs));
    let arguments = ForwardArguments {
        x: cx.tensor(p.x),
        weight: cx.stored_weight(p.weight),
        y: cx.tensor(p.y),
        counts: if batch { counts } else { Address::NULL },
        moments: if batch { moments } else { Address::NULL },
        coefficients: cx.tensor(p.input_bn.coefficients),
        gate: cx.tensor(p.gate),
        rows: (p.images * p.pixels) as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        chunk: cut.chunk as i32,
        row_tiles: cut.row_tiles as i32,
        weight_slots: cut.weight_slots as i32,
        pixels: p.pixels as i32,
    };
    cx.launch(&FORWARD.variant(cut.tile), cut.grid(), cut.tile.threads(), cut.shared, arguments)?;
    if batch {
        finish_statistics(cx, &p.bn, counts, moments, cut.parts)?;
    }
    Ok(())
}

pub fn backward_workspace(_p: &ProjectBackward, _precision: Precision) -> usize {
    0
}

pub fn backward<G: Gpu>(_cx: &mut Context<G>, _p: &ProjectBackward) -> Result {
    Err(OpsError::Device("project backward is not written yet".into()))
}
