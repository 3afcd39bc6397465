//! The squeeze-excite passes, at every layer shape.

mod kit;

use effnet::ops::Pass;

fn main() {
    kit::main(|pass| matches!(pass, Pass::SqueezeForward(_) | Pass::SqueezeBackward(_)));
}
