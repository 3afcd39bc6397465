//! The second stage of weight gradients: the partial sums of the blocks, added in a fixed order.

use super::arguments::Kernel;
use super::context::Context;
use super::gpu::{Address, Gpu};
use super::sources::reduction::{AddGradientArguments, WARP};
use crate::ops::{Param, Result};

/// The kernels by the number of thread groups that share the parts of an element.
const ONE_GROUP: Kernel<AddGradientArguments> = Kernel::plain("add_gradient_g1");
const EIGHT_GROUPS: Kernel<AddGradientArguments> = Kernel::plain("add_gradient_g8");
const MANY_GROUPS: Kernel<AddGradientArguments> = Kernel::plain("add_gradient_g32");

/// With fewer elements, more groups are needed to fill a GPU.
const FEW_ELEMENTS: usize = 1 << 14;

/// Adds the sum over the parts of `partials` [parts, elements] (fp32, in the order of the parameter's elements) to the
/// parameter's gradient, and raises the step's flag if an element is not finite.
pub fn add_gradient<G: Gpu>(cx: &mut Context<G>, partials: Address, parts: usize, param: Param) -> Result {
    let elements = param.elements;
    let few = elements < FEW_ELEMENTS;
    let (kernel, columns, groups) = match parts {
        0..=8 => (&ONE_GROUP, 256, 1),
        9..=32 => (&EIGHT_GROUPS, WARP, 8),
        33..=256 if !few => (&EIGHT_GROUPS, WARP, 8),
        _ => (&MANY_GROUPS, WARP, 32),
    };
    let arguments = AddGradientArguments {
        partials,
        gradient: cx.gradient(param),
        block: cx.state.block,
        parts: parts as i32,
        elements: elements as i32,
    };
    let threads = columns * groups;
    cx.launch(kernel, [elements.div_ceil(columns), 1, 1], threads, threads * 8, arguments)
}
