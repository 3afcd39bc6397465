//! Head
use super::context::{Context, Workspace};
use crate::ops::{HeadBackward, HeadForward, Loss};

pub fn forward(cx: &Context, p: &HeadForward) {
    let _ = (cx, p);
    todo!()
}

pub fn forward_workspace(p: &HeadForward) -> Workspace {
    let _ = p;
    todo!()
}

pub fn loss(cx: &Context, p: &Loss) {
    let _ = (cx, p);
    todo!()
}

pub fn loss_workspace(p: &Loss) -> Workspace {
    let _ = p;
    todo!()
}

pub fn backward(cx: &Context, p: &HeadBackward) {
    let _ = (cx, p);
    todo!()
}

pub fn backward_workspace(p: &HeadBackward) -> Workspace {
    let _ = p;
    todo!()
}
