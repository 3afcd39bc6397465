//! Apply: in inference a batch norm's coefficients are known before the convolution that it follows, so the pass of
//! the convolution applies it to what it stores.
//!
//! Training stores raw outputs, since a batch norm needs the statistics of all of them first. Then y2 is read twice,
//! for the means of squeeze-excite and for the projection, each time through batch norm and silu, and y3 once more for
//! the residual. Inference stores a2 = silu(BN2(y2)) with its means, and the block's output at once: one sweep less over
//! the wide tensor, none over y3. [`Device::applies_norms_on_store`] decides.
//!
//! Where [`Device::expands_in_cache`] says so, expansion and depthwise convolution become one pass, and y1, the widest
//! tensor of a block, is never stored.

use crate::network::itinerary::{Entry, Itinerary};
use crate::ops::{
    DepthwiseForward, DepthwiseInference, Device, Direction, ExpandDepthwiseInference, Pass, ProjectForward,
    ProjectInference, ResidualForward, SqueezeForward, SqueezeInference, Statistics,
};

/// The itinerary in which the passes of each block apply their own batch norms, if nothing comes back for raw outputs
/// and the device wants it.
pub fn apply(recorded: Itinerary, device: &impl Device) -> Itinerary {
    let trained = recorded.passes().iter().any(|pass| pass.about().direction != Direction::Forward);
    if trained || !device.applies_norms_on_store() {
        return recorded;
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(recorded.entries().len());
    let mut rest = recorded.entries();
    while let Some((first, after)) = rest.split_first() {
        match applied(rest) {
            Some([depthwise, squeeze, project]) => {
                let expanded = entries
                    .last_mut()
                    .and_then(|last| Some((with_expansion(&last.pass, &depthwise, device)?, last)));
                match expanded {
                    Some((pass, last)) => last.pass = pass,
                    None => entries.push(Entry { pass: depthwise, ..*first }),
                }
                entries.extend([squeeze, project].map(|pass| Entry { pass, ..*first }));
                rest = &rest[BLOCK..];
            }
            None => {
                entries.push(*first);
                rest = after;
            }
        }
    }
    entries.into_iter().collect()
}

/// Passes from a block's depthwise convolution to its end.
const BLOCK: usize = 4;

/// What the passes of a block become, if the list starts with them.
fn applied(entries: &[Entry]) -> Option<[Pass; 3]> {
    let passes = entries.get(..BLOCK)?;
    let [
        Pass::DepthwiseForward(depthwise),
        Pass::SqueezeForward(squeeze),
        Pass::ProjectForward(project),
        Pass::ResidualForward(residual),
    ] = [0, 1, 2, 3].map(|number: usize| &passes[number].pass)
    else {
        return None;
    };
    let linked = [squeeze.y, project.x] == [depthwise.y; 2] && residual.y == project.y;
    let known = [depthwise.bn, project.bn].iter().all(|bn| bn.statistics == Statistics::Running);
    (linked && known && residual.keep.is_none()).then(|| {
        [
            of_depthwise(depthwise, squeeze).into(),
            of_squeeze(squeeze).into(),
            of_project(project, residual).into(),
        ]
    })
}

/// The one pass that an expansion and the depthwise convolution after it become, where the device keeps the tensor
/// between them out of memory.
fn with_expansion(first: &Pass, second: &Pass, device: &impl Device) -> Option<Pass> {
    let (Pass::ExpandForward(expand), Pass::DepthwiseInference(depthwise)) = (first, second) else {
        return None;
    };
    let fused =
        expand.y == depthwise.x && device.expands_in_cache(expand.outputs, expand.inputs, depthwise.window);
    fused.then(|| ExpandDepthwiseInference { expand: *expand, depthwise: *depthwise }.into())
}

/// The activated output lies where the raw one would.
fn of_depthwise(depthwise: &DepthwiseForward, squeeze: &SqueezeForward) -> DepthwiseInference {
    let DepthwiseForward { images, window, channels, x, input_bn, weight, y, bn } = *depthwise;
    let squeezed = squeeze.squeezed;
    DepthwiseInference { images, window, channels, x, input_bn, weight, bn, a: y, squeezed }
}

fn of_squeeze(squeeze: &SqueezeForward) -> SqueezeInference {
    let SqueezeForward { images, channels, squeezed, reduce, hidden, expand, gate, .. } = *squeeze;
    SqueezeInference { images, channels, squeezed, reduce, hidden, expand, gate }
}

fn of_project(project: &ProjectForward, residual: &ResidualForward) -> ProjectInference {
    let ProjectForward { images, pixels, inputs, outputs, x, gate, weight, bn, .. } = *project;
    let ResidualForward { shortcut, out, .. } = *residual;
    ProjectInference { images, pixels, inputs, outputs, a: x, gate, weight, bn, shortcut, out }
}
