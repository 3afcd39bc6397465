//! The optimiser over all parameters of a network: each rule, with and without the moving average.

mod kit;

use effnet::ops::Pass;

fn main() {
    kit::main(|pass| matches!(pass, Pass::Update(_)));
}
