//! The head: pooling and classifier, loss, backward; see [`common`].

mod common;

use effnet::ops::Pass;

fn main() {
    common::main(|pass| matches!(pass, Pass::HeadForward(_) | Pass::Loss(_) | Pass::HeadBackward(_)), &[]);
}
