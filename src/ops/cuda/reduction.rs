//! The second stage of a backward pass: the partial sums that its blocks have left become a batch norm's sums and
//! gradients, added in a fixed order.
//!
//! A launch costs three to four microseconds, whatever it does. So one launch finishes a batch norm's sums, which the next
//! pass needs, together with the gradients of weights, which nobody needs before the update or the sum over ranks. A
//! gradient may also wait for the next such launch ([`finish_later`]); its partial sums are then kept beside the workspace.

use super::arguments::Kernel;
use super::batch_norm;
use super::context::Context;
use super::gpu::{Address, Gpu};
use super::sources::reduction::{FINISH_THREADS, FinishGradientsArguments, LANES};
use crate::ops::{BatchNorm, Param, Result};

const FINISH: Kernel<FinishGradientsArguments> = Kernel::plain("finish_gradients");

/// With fewer elements, more groups are needed to fill a GPU.
const FEW_ELEMENTS: usize = 1 << 14;

/// Partial sums that the blocks of a pass have left: one row of fp32 for each part.
#[derive(Clone, Copy, Debug)]
pub struct Partials {
    pub at: Address,
    pub parts: usize,
}

/// The partial sums of a weight's gradient, in the order of the parameter's elements.
#[derive(Clone, Copy, Debug)]
pub struct WeightGradient {
    pub weight: Param,
    pub partials: Partials,
}

impl WeightGradient {
    /// Groups of threads that share the parts of an element.
    fn groups(&self) -> usize {
        let few = self.weight.elements < FEW_ELEMENTS;
        match self.partials.parts {
            0..=8 => 1,
            9..=32 => 8,
            33..=256 if !few => 8,
            _ => 32,
        }
    }

    fn blocks(&self) -> usize {
        self.weight.elements.div_ceil(FINISH_THREADS / self.groups())
    }
}

/// Adds up what a pass has left, and what [waits](finish_later): Σdu and Σdu·ŷ [parts, 2, C] of a batch norm become its sums
/// and are added to the gradients of β and γ, the sum over a weight's parts is added to its gradient. Raises the step's
/// flag if a gradient is not finite. With synchronised batch norm, the sums are then summed over the ranks.
pub fn finish_gradients<G: Gpu>(
    cx: &mut Context<G>,
    norm: Option<(&BatchNorm, Partials)>,
    weight: Option<WeightGradient>,
) -> Result {
    let waiting = cx.waiting.take();
    launch(cx, norm, [weight, waiting])?;
    norm.map_or(Ok(()), |(bn, _)| batch_norm::exchange_sums(cx, bn))
}

/// Leaves a gradient to the next launch that finishes one; its partial sums lie in [`Context::kept`].
pub fn finish_later<G: Gpu>(cx: &mut Context<G>, weight: WeightGradient) {
    assert!(cx.waiting.is_none(), "one gradient may wait");
    cx.waiting = Some(weight);
}

/// Finishes what waits, before gradients are looked at.
pub fn finish_waiting<G: Gpu>(cx: &mut Context<G>) -> Result {
    if cx.waiting.is_some() { finish_gradients(cx, None, None) } else { Ok(()) }
}

fn launch<G: Gpu>(
    cx: &mut Context<G>,
    norm: Option<(&BatchNorm, Partials)>,
    weights: [Option<WeightGradient>; 2],
) -> Result {
    let mut arguments = FinishGradientsArguments {
        norm_partials: Address::NULL,
        norm_sums: Address::NULL,
        bias_gradient: Address::NULL,
        norm_gradient: Address::NULL,
        block: cx.state.block,
        norm_parts: 0,
        channels: 0,
        partials: Address::NULL,
        gradient: Address::NULL,
        parts: 0,
        elements: 0,
        groups: 1,
        other_partials: Address::NULL,
        other_gradient: Address::NULL,
        other_parts: 0,
        other_elements: 0,
        other_groups: 1,
    };
    let mut blocks = 0;
    if let Some((bn, partials)) = norm {
        assert_eq!(bn.channels % LANES, 0, "channels come in vectors");
        arguments.norm_partials = partials.at;
        arguments.norm_sums = cx.tensor(bn.sums);
        arguments.bias_gradient = cx.gradient(bn.bias);
        arguments.norm_gradient = cx.gradient(bn.weight);
        arguments.norm_parts = partials.parts as i32;
        arguments.channels = bn.channels as i32;
        blocks += 2 * bn.channels / LANES;
    }
    let [first, other] = weights;
    if let Some(of) = first {
        arguments.partials = of.partials.at;
        arguments.gradient = cx.gradient(of.weight);
        arguments.parts = of.partials.parts as i32;
        arguments.elements = of.weight.elements as i32;
        arguments.groups = of.groups() as i32;
        blocks += of.blocks();
    }
    if let Some(of) = other {
        arguments.other_partials = of.partials.at;
        arguments.other_gradient = cx.gradient(of.weight);
        arguments.other_parts = of.partials.parts as i32;
        arguments.other_elements = of.weight.elements as i32;
        arguments.other_groups = of.groups() as i32;
        blocks += of.blocks();
    }
    cx.launch(&FINISH, [blocks, 1, 1], FINISH_THREADS, FINISH_THREADS * 8, arguments)
}
