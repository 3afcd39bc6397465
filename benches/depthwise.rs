//! The depthwise convolution; see [`common`].

mod common;

use effnet::ops::Pass;

fn main() {
    common::main(|pass| matches!(pass, Pass::DepthwiseForward(_) | Pass::DepthwiseBackward(_)), &[]);
}
