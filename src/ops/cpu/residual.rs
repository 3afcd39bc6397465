//! Residual
use super::context::{Context, Workspace};
use crate::ops::ResidualForward;

pub fn forward(cx: &Context, p: &ResidualForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &ResidualForward) -> Workspace {
    let _ = p;
    todo!()
}
