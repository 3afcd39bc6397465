//! Depthwise
use super::context::{Context, Workspace};
use crate::ops::{DepthwiseBackward, DepthwiseForward};

pub fn forward(cx: &Context, p: &DepthwiseForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &DepthwiseForward) -> Workspace {
    let _ = p;
    todo!()
}

pub fn backward(cx: &Context, p: &DepthwiseBackward) {
    let _ = (cx, p);
    todo!()
}

pub fn backward_workspace(p: &DepthwiseBackward) -> Workspace {
    let _ = p;
    todo!()
}
