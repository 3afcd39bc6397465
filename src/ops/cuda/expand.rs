//! The pointwise expansion (and the head's convolution).

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{Parts, inverse_rows, parts_bytes, sums_bytes};
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::pointwise::Cut;
use super::pointwise_backward::{ExpandSplit, ExpandSweep};
use super::precision::Precision;
use super::reduction::{Partials, WeightGradient, finish_gradients};
use super::sources::expand::{
    ExpandBackwardArguments, ExpandBackwardSplitArguments, ExpandForwardArguments, SWEEP_THREADS,
};
use crate::ops::{ExpandBackward, ExpandForward, Result};

const FORWARD: Kernel<ExpandForwardArguments> = Kernel::stored("expand_forward");

fn cut(p: &ExpandForward, precision: Precision) -> Cut {
    Cut::expand(precision, p.rows, p.inputs, p.outputs)
}

impl OnCuda for ExpandForward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&parts_bytes(&self.bn, cut(self, precision).parts))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        forward(cx, self, cx.tensor(self.y))
    }
}

/// The forward pass, with y at an address; null if only its statistics are wanted.
pub fn forward<G: Gpu>(cx: &mut Context<G>, p: &ExpandForward, y: Address) -> Result {
    let cut = cut(p, cx.precision);
    let parts = Parts::of(cx, &p.bn, cut.parts, cut.column_tiles);
    let arguments = ExpandForwardArguments {
        x: cx.tensor(p.x),
        weight: cx.stored_weight(p.weight),
        y,
        counts: parts.counts,
        moments: parts.moments,
        arrivals: parts.finish.arrivals,
        norm_weight: parts.finish.weight,
        norm_bias: parts.finish.bias,
        running_mean: parts.finish.running_mean,
        running_var: parts.finish.running_var,
        norm_coefficients: parts.finish.coefficients,
        momentum: p.bn.momentum,
        eps: p.bn.eps,
        rows: p.rows as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        chunk: cut.chunk as i32,
        row_tiles: cut.row_tiles as i32,
        weight_slots: cut.weight_slots as i32,
    };
    cx.launch(&FORWARD.variant(cut.tile.name), cut.grid(), cut.tile.threads(), cut.shared, arguments)?;
    parts.finish(cx, &p.bn)
}

const BACKWARD: Kernel<ExpandBackwardArguments> = Kernel::stored("expand_backward");
const BACKWARD_RECOMPUTE: Kernel<ExpandBackwardArguments> = Kernel::stored("expand_backward_recompute");
const BACKWARD_SPLIT: Kernel<ExpandBackwardSplitArguments> = Kernel::stored("expand_backward_split");

/// The blocks of the backward pass.
enum BackwardCut {
    /// Each makes both gradients.
    Sweep(ExpandSweep),
    /// Each makes one of them; or there is only that of the weights.
    Split(ExpandSplit),
}

impl BackwardCut {
    fn new(p: &ExpandBackward, precision: Precision) -> BackwardCut {
        let split = || ExpandSplit::new(precision, p.rows, p.inputs, p.outputs);
        if p.narrow.is_none() {
            return BackwardCut::Split(split().weights_alone());
        }
        match ExpandSweep::of(precision, p.inputs, p.outputs) {
            Some(sweep) => BackwardCut::Sweep(sweep),
            None => BackwardCut::Split(split()),
        }
    }

    /// Number of parts of the sums and of the weights' gradient.
    fn parts(&self, p: &ExpandBackward) -> [usize; 2] {
        match self {
            BackwardCut::Sweep(sweep) => [sweep.blocks(p.rows, p.inputs); 2],
            BackwardCut::Split(split) => [split.data_blocks, split.weights.parts],
        }
    }

    fn bytes(&self, p: &ExpandBackward) -> [usize; 2] {
        let [sums, weights] = self.parts(p);
        [sums_bytes(sums, p.inputs), weights * p.inputs * p.outputs * 4]
    }
}

impl OnCuda for ExpandBackward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&BackwardCut::new(self, precision).bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        backward(cx, self, cx.tensor(self.y))
    }
}

/// The backward pass, with y at an address; null if it is to be computed again, which only a sweep can, and so no pass
/// without a data gradient.
pub fn backward<G: Gpu>(cx: &mut Context<G>, p: &ExpandBackward, y: Address) -> Result {
    let cut = BackwardCut::new(p, cx.precision);
    let [sums, partials] = cx.workspace(cut.bytes(p));
    let parts = cut.parts(p);
    let narrow = Narrow::of(cx, p);
    match cut {
        BackwardCut::Sweep(sweep) => backward_sweep(cx, p, narrow, &sweep, y, [sums, partials])?,
        BackwardCut::Split(split) => backward_split(cx, p, narrow, &split, [sums, partials])?,
    }
    let sums = Partials { at: sums, parts: parts[0] };
    let partials = Partials { at: partials, parts: parts[1] };
    let weight = WeightGradient { weight: p.weight, partials };
    let norm = p.narrow.as_ref().map(|narrow| (&narrow.previous.bn, sums));
    finish_gradients(cx, norm, Some(weight))
}

/// Addresses of what the data gradient alone reads and writes; all null if there is no such gradient.
struct Narrow {
    weight: Address,
    dx: Address,
    shortcut: Address,
    previous_y: Address,
    previous_coefficients: Address,
    keep: Address,
    pixels: i32,
}

impl Narrow {
    fn of<G: Gpu>(cx: &Context<G>, p: &ExpandBackward) -> Narrow {
        let narrow = p.narrow.as_ref();
        Narrow {
            weight: narrow.map_or(Address::NULL, |_| cx.stored_weight(p.weight)),
            dx: cx.optional(narrow.map(|n| n.dx)),
            shortcut: cx.optional(narrow.and_then(|n| n.shortcut)),
            previous_y: cx.optional(narrow.map(|n| n.previous.y)),
            previous_coefficients: cx.optional(narrow.map(|n| n.previous.bn.coefficients)),
            keep: cx.optional(narrow.and_then(|n| n.previous.keep)),
            pixels: narrow.map_or(1, |n| n.previous.pixels as i32),
        }
    }
}

fn backward_sweep<G: Gpu>(
    cx: &mut Context<G>,
    p: &ExpandBackward,
    narrow: Narrow,
    sweep: &ExpandSweep,
    y: Address,
    [sums, partials]: [Address; 2],
) -> Result {
    let arguments = ExpandBackwardArguments {
        du: cx.tensor(p.du),
        y,
        weight: cx.stored_weight(p.weight),
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        shortcut: narrow.shortcut,
        previous_y: narrow.previous_y,
        previous_coefficients: narrow.previous_coefficients,
        keep: narrow.keep,
        dx: narrow.dx,
        partials: sums,
        x: cx.tensor(p.x),
        weight_partials: partials,
        rows: p.rows as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        pixels: narrow.pixels,
        inverse_rows: inverse_rows(&p.bn),
    };
    let grid = [sweep.blocks(p.rows, p.inputs), 1, 1];
    let (kernel, shared) = match y {
        Address::NULL => (&BACKWARD_RECOMPUTE, sweep.shared_to_recompute(cx.precision)),
        _ => (&BACKWARD, sweep.shared(cx.precision)),
    };
    cx.launch(&kernel.variant(sweep.name), grid, SWEEP_THREADS, shared, arguments)
}

fn backward_split<G: Gpu>(
    cx: &mut Context<G>,
    p: &ExpandBackward,
    narrow: Narrow,
    split: &ExpandSplit,
    [sums, partials]: [Address; 2],
) -> Result {
    let arguments = ExpandBackwardSplitArguments {
        du: cx.tensor(p.du),
        y: cx.tensor(p.y),
        weight: narrow.weight,
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        shortcut: narrow.shortcut,
        previous_y: narrow.previous_y,
        previous_coefficients: narrow.previous_coefficients,
        keep: narrow.keep,
        dx: narrow.dx,
        partials: sums,
        x: cx.tensor(p.x),
        weight_partials: partials,
        rows: p.rows as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        pixels: narrow.pixels,
        inverse_rows: inverse_rows(&p.bn),
        data_blocks: split.data_blocks as i32,
        first_data: split.first_data() as i32,
        slice: split.weights.slice as i32,
        pieces: split.weights.pieces as i32,
        parts: split.weights.parts as i32,
    };
    let kernel = BACKWARD_SPLIT.variant(split.name());
    cx.launch(&kernel, [split.blocks(), 1, 1], split.threads(), split.shared(cx.precision), arguments)
}
