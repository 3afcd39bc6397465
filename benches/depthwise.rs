//! The depthwise passes, at every layer shape.

mod kit;

use effnet::ops::Pass;

fn main() {
    kit::main(|pass| matches!(pass, Pass::DepthwiseForward(_) | Pass::DepthwiseBackward(_)));
}
