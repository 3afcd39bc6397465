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
use super::sources::reduction::{FINISH_ELEMENTS, FINISH_THREADS, FinishGradientsArguments, LANES};
use crate::ops::device::KEPT;
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
        self.weight.elements.div_ceil(FINISH_THREADS / self.groups() * FINISH_ELEMENTS)
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
    let [first, second] = std::mem::take(&mut cx.waiting);
    launch(cx, norm, [weight, first, second])?;
    norm.map_or(Ok(()), |(bn, _)| batch_norm::exchange_sums(cx, bn))
}

/// The places of partial sums that outlive their pass: those of a block's projection and of its depthwise convolution.
pub const PROJECT: usize = 0;
pub const DEPTHWISE: usize = 1;

/// So many bytes in one place.
pub fn kept_at(place: usize, bytes: usize) -> [usize; KEPT] {
    let mut kept = [0; KEPT];
    kept[place] = bytes;
    kept
}

/// Leaves a gradient to the next launch that finishes one; its partial sums lie in a place of [`Context::kept`].
pub fn finish_later<G: Gpu>(cx: &mut Context<G>, place: usize, weight: WeightGradient) {
    assert!(cx.waiting[place].is_none(), "one gradient may wait in a place");
    cx.waiting[place] = Some(weight);
}

/// Finishes what waits, before gradients are looked at.
pub fn finish_waiting<G: Gpu>(cx: &mut Context<G>) -> Result {
    if cx.waiting.iter().any(Option::is_some) { finish_gradients(cx, None, None) } else { Ok(()) }
}

fn launch<G: Gpu>(
    cx: &mut Context<G>,
    norm: Option<(&BatchNorm, Partials)>,
    weights: [Option<WeightGradient>; 1 + KEPT],
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
        second_partials: Address::NULL,
        second_gradient: Address::NULL,
        second_parts: 0,
        second_elements: 0,
        second_groups: 1,
        third_partials: Address::NULL,
        third_gradient: Address::NULL,
        third_parts: 0,
        third_elements: 0,
        third_groups: 1,
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
    let places = [
        (
            [&mut arguments.partials, &mut arguments.gradient],
            [&mut arguments.parts, &mut arguments.elements, &mut arguments.groups],
        ),
        (
            [&mut arguments.second_partials, &mut arguments.second_gradient],
            [&mut arguments.second_parts, &mut arguments.second_elements, &mut arguments.second_groups],
        ),
        (
            [&mut arguments.third_partials, &mut arguments.third_gradient],
            [&mut arguments.third_parts, &mut arguments.third_elements, &mut arguments.third_groups],
        ),
    ];
    for (of, ([partials, gradient], [parts, elements, groups])) in weights.into_iter().flatten().zip(places) {
        (*partials, *gradient) = (of.partials.at, cx.gradient(of.weight));
        *parts = of.partials.parts as i32;
        *elements = of.weight.elements as i32;
        *groups = of.groups() as i32;
        assert_eq!(of.weight.elements % FINISH_ELEMENTS, 0, "elements come in fours");
        blocks += of.blocks();
    }
    cx.launch(&FINISH, [blocks, 1, 1], FINISH_THREADS, FINISH_THREADS * 8 * FINISH_ELEMENTS, arguments)
}
