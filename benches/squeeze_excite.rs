//! Squeeze-excite; see [`common`].

mod common;

use effnet::ops::Pass;

fn main() {
    common::main(|pass| matches!(pass, Pass::SqueezeForward(_) | Pass::SqueezeBackward(_)), &[]);
}
