//! The optimiser step over the flat buffers.
use super::context::Context;
use crate::ops::Update;

pub fn update(cx: &Context, p: &Update) {
    let _ = (cx, p);
    todo!()
}
