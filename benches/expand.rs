//! The pointwise expansion and the head's convolution; see [`common`].

mod common;

use effnet::ops::Pass;

fn main() {
    common::main(|pass| matches!(pass, Pass::ExpandForward(_) | Pass::ExpandBackward(_)), &[]);
}
