//! Expand and depthwise without the tensor between them: it is computed again wherever it is needed, from the
//! expansion's narrow input.
//!
//! Forward, the expansion's kernel takes the statistics of what it does not store, and the depthwise kernel makes its
//! input itself. Backward, the depthwise kernel does the same and leaves du for the expansion's sweep, which makes y out
//! of the x and the weights that it has anyway. Each kernel adds products in the same order and rounds them alike, so all
//! results are the bits of the passes that store it.

use super::OnCuda;
use super::context::Context;
use super::depthwise::{self, Expansion};
use super::expand;
use super::gpu::{Address, Gpu};
use super::pointwise_backward::ExpandSweep;
use super::precision::Precision;
use super::sources::depthwise::RECOMPUTE_INPUTS;
use crate::model::Window;
use crate::ops::device::KEPT;
use crate::ops::{ExpandDepthwiseBackward, ExpandDepthwiseForward, Result, Statistics};

/// Whether there are kernels that compute an expanded tensor again: for half types, few input channels, and the windows
/// that such a block has in a network of the family.
pub fn recomputes(precision: Precision, expanded: usize, inputs: usize, window: Window) -> bool {
    let sweep = ExpandSweep::recomputes(precision, inputs, expanded);
    sweep && inputs <= RECOMPUTE_INPUTS && (window.kernel, window.stride) != (5, 1)
}

impl OnCuda for ExpandDepthwiseForward {
    fn workspace(&self, precision: Precision) -> usize {
        self.expand.workspace(precision).max(self.depthwise.workspace(precision))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let p = &self.expand;
        if p.bn.statistics == Statistics::Batch {
            expand::forward(cx, p, Address::NULL)?;
        }
        let expansion = Expansion { x: p.x, weight: p.weight, inputs: p.inputs };
        depthwise::forward(cx, &self.depthwise, Some(expansion))
    }
}

impl OnCuda for ExpandDepthwiseBackward {
    fn workspace(&self, precision: Precision) -> usize {
        self.depthwise.workspace(precision).max(self.expand.workspace(precision))
    }

    fn kept(&self, precision: Precision) -> [usize; KEPT] {
        self.depthwise.kept(precision)
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let p = &self.expand;
        let expansion = Expansion { x: p.x, weight: p.weight, inputs: p.inputs };
        depthwise::backward(cx, &self.depthwise, Some(expansion))?;
        expand::backward(cx, p, Address::NULL)
    }
}
