//! The projection; see [`common`].

mod common;

use effnet::ops::Pass;

fn main() {
    common::main(|pass| matches!(pass, Pass::ProjectForward(_) | Pass::ProjectBackward(_)), &[]);
}
