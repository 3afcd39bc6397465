//! The pointwise projection.

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{Parts, inverse_rows, parts_bytes};
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::pointwise::Cut;
use super::pointwise_backward::{SweepCut, WeightPieces};
use super::precision::Precision;
use super::reduction::{PROJECT, Partials, WeightGradient, finish_later, kept_at};
use super::sources::project::{
    ProjectBackwardArguments, ProjectBackwardWeightsArguments, ProjectForwardArguments,
};
use crate::ops::device::KEPT;
use crate::ops::{ProjectBackward, ProjectForward, Result};

const FORWARD: Kernel<ProjectForwardArguments> = Kernel::stored("project_forward");

fn cut(p: &ProjectForward, precision: Precision) -> Cut {
    Cut::project(precision, p.images * p.pixels, p.inputs, p.outputs)
}

impl OnCuda for ProjectForward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&parts_bytes(&self.bn, cut(self, precision).parts))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = cut(self, cx.precision);
        let parts = Parts::of(cx, &self.bn, cut.parts, cut.column_tiles);
        let arguments = ProjectForwardArguments {
            x: cx.tensor(self.x),
            weight: cx.stored_weight(self.weight),
            y: cx.tensor(self.y),
            counts: parts.counts,
            moments: parts.moments,
            arrivals: parts.finish.arrivals,
            norm_weight: parts.finish.weight,
            norm_bias: parts.finish.bias,
            running_mean: parts.finish.running_mean,
            running_var: parts.finish.running_var,
            norm_coefficients: parts.finish.coefficients,
            momentum: self.bn.momentum,
            eps: self.bn.eps,
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
        cx.launch(&FORWARD.variant(cut.tile.name), cut.grid(), cut.tile.threads(), cut.shared, arguments)?;
        parts.finish(cx, &self.bn)
    }
}

const BACKWARD: Kernel<ProjectBackwardArguments> = Kernel::stored("project_backward");
const BACKWARD_WEIGHTS: Kernel<ProjectBackwardWeightsArguments> = Kernel::stored("project_backward_weights");

/// The kernels of the backward pass.
struct BackwardCut {
    sweep: SweepCut,
    /// The kernel of the weights' gradient, if the sweep does not make it.
    weights: Option<WeightPieces>,
}

impl BackwardCut {
    fn new(p: &ProjectBackward, precision: Precision) -> BackwardCut {
        let sweep = SweepCut::new(precision, p.images, p.pixels, p.inputs, p.outputs);
        let pieces = || WeightPieces::project(precision, p.images * p.pixels, p.inputs, p.outputs);
        BackwardCut { sweep, weights: (!sweep.shape.has_weights()).then(pieces) }
    }

    /// Number of parts of the weights' gradient.
    fn parts(&self) -> usize {
        self.weights.map_or(self.sweep.parts, |weights| weights.parts)
    }

    /// Bytes of the partial weights' gradients.
    fn partial_bytes(&self, p: &ProjectBackward) -> usize {
        self.parts() * p.inputs * p.outputs * 4
    }

    /// Bytes of the segments' five sums.
    fn segment_bytes(&self, p: &ProjectBackward) -> usize {
        let segments = if self.sweep.segments > 1 { self.sweep.segments } else { 0 };
        segments * p.five_sums.elements * 4
    }
}

impl OnCuda for ProjectBackward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&[BackwardCut::new(self, precision).segment_bytes(self)])
    }

    fn kept(&self, precision: Precision) -> [usize; KEPT] {
        kept_at(PROJECT, BackwardCut::new(self, precision).partial_bytes(self))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = BackwardCut::new(self, cx.precision);
        let BackwardCut { sweep, weights } = cut;
        let [segments] = cx.workspace([cut.segment_bytes(self)]);
        let partials = cx.kept(PROJECT, cut.partial_bytes(self))?;
        let arguments = ProjectBackwardArguments {
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
            five_sums: cx.tensor(self.five_sums),
            segment_sums: if sweep.segments > 1 { segments } else { Address::NULL },
            arrivals: cx.state.arrivals,
            partials: if weights.is_none() { partials } else { Address::NULL },
            images: self.images as i32,
            pixels: self.pixels as i32,
            inputs: self.inputs as i32,
            outputs: self.outputs as i32,
            slice: sweep.slice as i32,
            segments: sweep.segments as i32,
            group: sweep.group as i32,
            whole: sweep.whole as i32,
            span: sweep.span as i32,
            inverse_rows: inverse_rows(&self.bn),
        };
        let kernel = BACKWARD.variant(sweep.shape.name());
        let shared = sweep.shape.shared(cx.precision);
        cx.launch(&kernel, sweep.grid(), sweep.shape.threads(), shared, arguments)?;
        if let Some(weights) = weights {
            backward_weights(cx, self, &weights, partials)?;
        }
        let partials = Partials { at: partials, parts: cut.parts() };
        finish_later(cx, PROJECT, WeightGradient { weight: self.weight, partials });
        Ok(())
    }
}

fn backward_weights<G: Gpu>(
    cx: &mut Context<G>,
    p: &ProjectBackward,
    weights: &WeightPieces,
    partials: Address,
) -> Result {
    let rows = p.images * p.pixels;
    let arguments = ProjectBackwardWeightsArguments {
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
    let shared = weights.shared(cx.precision, weights.shape.right);
    let kernel = BACKWARD_WEIGHTS.variant(weights.shape.name);
    cx.launch(&kernel, weights.grid(), weights.shape.threads(), shared, arguments)
}
