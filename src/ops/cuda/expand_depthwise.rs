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
use super::gpu::{Address, Gpu, Properties};
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

/// A card that moves fewer bytes than this in the time of an instruction gains by it.
///
/// Counted for a step of B0 at 224², batch 512, in fp16 (docs/recompute.md), by the balance of the card: 0.8 (RTX 4090) 1.17
/// times the images a second, 1.6 (RTX 3080) 1.12, 2.6 (A100 with 40 GB) 1.07, 3.2 (H100) 0.96. There instructions and
/// latency bind, not memory.
const MOST_BALANCE: f64 = 3.0;

/// Whether a card is faster if it computes expanded tensors again. One whose speeds are unknown stores them.
pub fn pays(card: &Properties) -> bool {
    card.balance().is_some_and(|balance| balance < MOST_BALANCE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_with_slow_memory_recompute() {
        let pays = |multiprocessors, megahertz: u64, gigabytes: u64| {
            super::pays(&Properties {
                name: String::new(),
                capability: (8, 6),
                multiprocessors,
                clock: megahertz * 1_000_000,
                memory_speed: gigabytes * 1_000_000_000,
                shared_per_block: 99 << 10,
                memory: 10 << 30,
            })
        };
        assert!(pays(68, 1710, 760), "RTX 3080");
        assert!(pays(128, 2520, 1008), "RTX 4090");
        assert!(pays(108, 1410, 1555), "A100, 40 GB");
        assert!(!pays(132, 1980, 3352), "H100");
        assert!(!pays(108, 1410, 2039), "A100, 80 GB");
        assert!(!pays(132, 1980, 4800), "H200");
        assert!(!pays(0, 0, 0) && !pays(68, 1710, 0), "unknown");
    }
}
