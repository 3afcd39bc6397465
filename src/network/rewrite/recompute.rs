//! Recompute: where a device does not store the expanded tensor, expand and depthwise become one pass.
//!
//! The expanded tensor is the widest of a block. A device that makes it again, tile by tile, from the block's narrow
//! input saves its memory in both directions, at the price of computing it twice. [`Device::stores_expanded`] decides
//! for each block.

use crate::network::itinerary::{Entry, Itinerary};
use crate::ops::{Device, ExpandDepthwiseBackward, ExpandDepthwiseForward, ExpandForward, Pass};

/// The itinerary in which neighbouring expand and depthwise passes of a block are one wherever the device recomputes
/// the tensor between them.
pub fn recompute(recorded: &Itinerary, device: &impl Device) -> Itinerary {
    let mut entries: Vec<Entry> = Vec::new();
    for entry in recorded.entries() {
        match entries.last_mut().and_then(|last| Some((fused(&last.pass, &entry.pass, device)?, last))) {
            Some((pass, last)) => last.pass = pass,
            None => entries.push(*entry),
        }
    }
    entries.into_iter().collect()
}

/// The one pass that two neighbours become.
fn fused(first: &Pass, second: &Pass, device: &impl Device) -> Option<Pass> {
    let stored = |outputs, inputs, rows| device.stores_expanded(outputs, inputs, rows);
    match (*first, *second) {
        (Pass::ExpandForward(expand), Pass::DepthwiseForward(depthwise)) => {
            let ExpandForward { outputs, inputs, rows, .. } = expand;
            let between = expand.y == depthwise.x && !stored(outputs, inputs, rows);
            between.then(|| ExpandDepthwiseForward { expand, depthwise }.into())
        }
        (Pass::DepthwiseBackward(depthwise), Pass::ExpandBackward(expand)) => {
            let between = depthwise.dx == expand.du && !stored(expand.outputs, expand.inputs, expand.rows);
            between.then(|| ExpandDepthwiseBackward { expand, depthwise }.into())
        }
        _ => None,
    }
}
