//! The head and the loss, forward and backward.

mod kit;

use effnet::ops::Pass;

fn main() {
    kit::main(|pass| matches!(pass, Pass::HeadForward(_) | Pass::Loss(_) | Pass::HeadBackward(_)));
}
