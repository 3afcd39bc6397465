//! Squeeze-excite
use super::context::{Context, Workspace};
use crate::ops::{SqueezeBackward, SqueezeForward};

pub fn forward(cx: &Context, p: &SqueezeForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &SqueezeForward) -> Workspace {
    let _ = p;
    todo!()
}

pub fn backward(cx: &Context, p: &SqueezeBackward) {
    let _ = (cx, p);
    todo!()
}

pub fn backward_workspace(p: &SqueezeBackward) -> Workspace {
    let _ = p;
    todo!()
}
