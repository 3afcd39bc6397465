//! Recompute: where a device does not store the expanded tensor, expand and depthwise become one pass.
//!
//! The expanded tensor is the widest of a block. A device that makes it again, tile by tile, from the block's narrow
//! input saves its memory in both directions, at the price of computing it twice. [`Device::stores_expanded`] decides
//! for each block. The first trained block, whose expansion makes no gradient at its input, stores the tensor: only the pass
//! that makes this gradient has what it takes to compute it again.

use crate::network::itinerary::{Entry, Itinerary};
use crate::ops::{Device, ExpandDepthwiseBackward, ExpandDepthwiseForward, Pass, Tensor};

/// The itinerary in which neighbouring expand and depthwise passes of a block are one wherever the device recomputes
/// the tensor between them.
pub fn recompute(recorded: &Itinerary, device: &impl Device) -> Itinerary {
    let mut entries: Vec<Entry> = Vec::with_capacity(recorded.entries().len());
    let first = recorded.entries().iter().find_map(|entry| match &entry.pass {
        Pass::ExpandBackward(expand) if expand.narrow.is_none() => Some(expand.y),
        _ => None,
    });
    for entry in recorded.entries() {
        let one = |last: &Pass| fused(last, &entry.pass, first, device);
        match entries.last_mut().and_then(|last| Some((one(&last.pass)?, last))) {
            Some((pass, last)) => last.pass = pass,
            None => entries.push(*entry),
        }
    }
    entries.into_iter().collect()
}

/// The one pass that two neighbours become, unless the expanded tensor between them is the `kept` one.
fn fused(first: &Pass, second: &Pass, kept: Option<Tensor>, device: &impl Device) -> Option<Pass> {
    // The passes are large, so they are only looked at.
    match (first, second) {
        (Pass::ExpandForward(expand), Pass::DepthwiseForward(depthwise)) => {
            let recomputed = expand.y == depthwise.x
                && kept != Some(expand.y)
                && !device.stores_expanded(expand.outputs, expand.inputs, depthwise.window);
            recomputed.then(|| ExpandDepthwiseForward { expand: *expand, depthwise: *depthwise }.into())
        }
        (Pass::DepthwiseBackward(depthwise), Pass::ExpandBackward(expand)) => {
            let recomputed = depthwise.gradient() == Some(expand.du)
                && kept != Some(expand.y)
                && !device.stores_expanded(expand.outputs, expand.inputs, depthwise.window);
            recomputed.then(|| ExpandDepthwiseBackward { expand: *expand, depthwise: *depthwise }.into())
        }
        _ => None,
    }
}
