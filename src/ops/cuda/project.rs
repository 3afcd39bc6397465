//! The pointwise projection.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::batch_norm::{finish_statistics, inverse_rows, statistics_bytes};
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::pointwise::Cut;
use super::pointwise_backward::{Sweep, SweepCut, WeightPieces};
use super::precision::Precision;
use super::reduction::add_gradient;
use crate::ops::{ProjectBackward, ProjectForward, Result, Statistics};

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

impl OnCuda for ProjectForward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&statistics_bytes(&self.bn, cut(self, precision).parts))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = cut(self, cx.precision);
        let batch = self.bn.statistics == Statistics::Batch;
        let [counts, moments] = cx.workspace(statistics_bytes(&self.bn, cut.parts));
        let arguments = ForwardArguments {
            x: cx.tensor(self.x),
            weight: cx.stored_weight(self.weight),
            y: cx.tensor(self.y),
            counts: if batch { counts } else { Address::NULL },
            moments: if batch { moments } else { Address::NULL },
            coefficients: cx.tensor(self.input_bn.coefficients),
            gate: cx.tensor(self.gate),
            rows: (self.images * self.pixels) as i32,
            inputs: self.inputs as i32,
            outputs: self.outputs as i32,
            chunk: cut.chunk as i32,
            row_tiles: cut.row_tiles as i32,
            weight_slots: cut.weight_slots as i32,
            pixels: self.pixels as i32,
        };
        cx.launch(&FORWARD.variant(cut.tile), cut.grid(), cut.tile.threads(), cut.shared, arguments)?;
        if batch {
            finish_statistics(cx, &self.bn, counts, moments, cut.parts)?;
        }
        Ok(())
    }
}

arguments! {
    /// da, the five sums and perhaps the weights' gradient, see `kernels/project_backward.cuh`.
    pub struct BackwardArguments {
        dout: Address,
        y: Address,
        weight: Address,
        coefficients: Address,
        sums: Address,
        keep: Address,
        x: Address,
        input_coefficients: Address,
        gate: Address,
        da: Address,
        five_sums: Address,
        partials: Address,
        images: i32,
        pixels: i32,
        inputs: i32,
        outputs: i32,
        slice: i32,
        segments: i32,
        group: i32,
        inverse_rows: f32,
    }
}

arguments! {
    /// The weights' gradient alone.
    pub struct BackwardWeightsArguments {
        dout: Address,
        y: Address,
        coefficients: Address,
        sums: Address,
        keep: Address,
        x: Address,
        input_coefficients: Address,
        gate: Address,
        partials: Address,
        rows: i32,
        pixels: i32,
        inputs: i32,
        outputs: i32,
        slice: i32,
        inverse_rows: f32,
    }
}

arguments! {
    /// Adds up the five sums of an image's segments.
    pub struct BackwardSegmentsArguments {
        parts: Address,
        five_sums: Address,
        segments: i32,
        elements: i32,
    }
}

const BACKWARD: Kernel<BackwardArguments> = Kernel::stored("project_backward");
const BACKWARD_WEIGHTS: Kernel<BackwardWeightsArguments> = Kernel::stored("project_backward_weights");
const BACKWARD_SEGMENTS: Kernel<BackwardSegmentsArguments> = Kernel::plain("project_backward_segments");

/// How the backward pass is cut.
struct BackwardCut {
    sweep: SweepCut,
    /// Where the sweep does without the weights' gradient.
    weights: Option<WeightPieces>,
}

impl BackwardCut {
    fn new(p: &ProjectBackward, precision: Precision) -> BackwardCut {
        let sweep = SweepCut::new(precision, p.images, p.pixels, p.inputs, p.outputs);
        let pieces = || WeightPieces::project(precision, p.images * p.pixels, p.inputs, p.outputs);
        BackwardCut { sweep, weights: (!sweep.shape.has_weights()).then(pieces) }
    }

    /// Parts of the weights' gradient.
    fn parts(&self) -> usize {
        self.weights.map_or(self.sweep.parts, |weights| weights.parts)
    }

    /// Bytes of the partial weights' gradients and of the segments' five sums.
    fn bytes(&self, p: &ProjectBackward) -> [usize; 2] {
        let segments = if self.sweep.segments > 1 { self.sweep.segments } else { 0 };
        [self.parts() * p.inputs * p.outputs * 4, segments * p.five_sums.elements * 4]
    }
}

impl OnCuda for ProjectBackward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&BackwardCut::new(self, precision).bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = BackwardCut::new(self, cx.precision);
        let BackwardCut { sweep, weights } = cut;
        let [partials, segments] = cx.workspace(cut.bytes(self));
        let arguments = BackwardArguments {
            dout: cx.tensor(self.dout),
            y: cx.tensor(self.y),
            weight: cx.stored_weight(self.weight),
            coefficients: cx.tensor(self.bn.coefficients),
            sums: cx.tensor(self.bn.sums),
            keep: cx.optional(self.keep),
            x: cx.tensor(self.x),
            input_coefficients: cx.tensor(self.input_bn.coefficients),
            gate: cx.tensor(self.gate),
            da: cx.tensor(self.da),
            five_sums: if sweep.segments > 1 { segments } else { cx.tensor(self.five_sums) },
            partials: if weights.is_none() { partials } else { Address::NULL },
            images: self.images as i32,
            pixels: self.pixels as i32,
            inputs: self.inputs as i32,
            outputs: self.outputs as i32,
            slice: sweep.slice as i32,
            segments: sweep.segments as i32,
            group: sweep.group as i32,
            inverse_rows: inverse_rows(&self.bn),
        };
        let (kernel, shared) = (BACKWARD.variant(sweep.shape.variant()), sweep.shape.shared(cx.precision));
        cx.launch(&kernel, sweep.grid(), Sweep::THREADS, shared, arguments)?;
        if sweep.segments > 1 {
            add_segments(cx, self, segments, sweep.segments)?;
        }
        if let Some(weights) = weights {
            backward_weights(cx, self, &weights, partials)?;
        }
        add_gradient(cx, partials, cut.parts(), self.weight)
    }
}

fn add_segments<G: Gpu>(cx: &mut Context<G>, p: &ProjectBackward, parts: Address, segments: usize) -> Result {
    let elements = p.five_sums.elements;
    let arguments = BackwardSegmentsArguments {
        parts,
        five_sums: cx.tensor(p.five_sums),
        segments: segments as i32,
        elements: elements as i32,
    };
    cx.launch(&BACKWARD_SEGMENTS, [elements.div_ceil(256 * 8), 1, 1], 256, 0, arguments)
}

fn backward_weights<G: Gpu>(
    cx: &mut Context<G>,
    p: &ProjectBackward,
    weights: &WeightPieces,
    partials: Address,
) -> Result {
    let rows = p.images * p.pixels;
    let arguments = BackwardWeightsArguments {
        dout: cx.tensor(p.dout),
        y: cx.tensor(p.y),
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        keep: cx.optional(p.keep),
        x: cx.tensor(p.x),
        input_coefficients: cx.tensor(p.input_bn.coefficients),
        gate: cx.tensor(p.gate),
        partials,
        rows: rows as i32,
        pixels: p.pixels as i32,
        inputs: p.inputs as i32,
        outputs: p.outputs as i32,
        slice: weights.slice as i32,
        inverse_rows: inverse_rows(&p.bn),
    };
    let shared = weights.shared(cx.precision, weights.right);
    let kernel = BACKWARD_WEIGHTS.variant(weights.variant());
    cx.launch(&kernel, weights.grid(), WeightPieces::THREADS, shared, arguments)
}
