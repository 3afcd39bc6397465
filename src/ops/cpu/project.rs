//! Project
use super::context::{Context, Workspace};
use crate::ops::{ProjectBackward, ProjectForward};

pub fn forward(cx: &Context, p: &ProjectForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &ProjectForward) -> Workspace {
    let _ = p;
    todo!()
}

pub fn backward(cx: &Context, p: &ProjectBackward) {
    let _ = (cx, p);
    todo!()
}

pub fn backward_workspace(p: &ProjectBackward) -> Workspace {
    let _ = p;
    todo!()
}
