//! The end of a block: batch norm, stochastic depth, shortcut; see [`common`].

mod common;

use effnet::ops::Pass;

fn main() {
    common::main(|pass| matches!(pass, Pass::ResidualForward(_)), &[]);
}
