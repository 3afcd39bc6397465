//! Expand
use super::context::{Context, Workspace};
use crate::ops::{ExpandBackward, ExpandForward};

pub fn forward(cx: &Context, p: &ExpandForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &ExpandForward) -> Workspace {
    let _ = p;
    todo!()
}

pub fn backward(cx: &Context, p: &ExpandBackward) {
    let _ = (cx, p);
    todo!()
}

pub fn backward_workspace(p: &ExpandBackward) -> Workspace {
    let _ = p;
    todo!()
}
