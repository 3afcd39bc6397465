//! The stem
use super::context::{Context, Workspace};
use crate::ops::{StemBackward, StemForward, Tensor};

pub fn forward(cx: &Context, p: &StemForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &StemForward) -> Workspace {
    let _ = p;
    todo!()
}

pub fn backward(cx: &Context, p: &StemBackward) {
    let _ = (cx, p);
    todo!()
}

pub fn backward_workspace(p: &StemBackward) -> Workspace {
    let _ = p;
    todo!()
}

/// image = (pixels/255 − mean)/deviation per channel, NHWC.
pub fn prepare(cx: &Context, image: Tensor, pixels: &[u8], mean: [f32; 3], deviation: [f32; 3]) {
    let _ = (cx, image, pixels, mean, deviation);
    todo!()
}
