//! The stem, forward and backward, at the first layer.

mod kit;

use effnet::ops::Pass;

fn main() {
    kit::main(|pass| matches!(pass, Pass::StemForward(_) | Pass::StemBackward(_)));
}
