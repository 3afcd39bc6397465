//! The depthwise convolution: one launch forward and one backward, then the kernels that finish their partial sums.
//!
//! [`Tiles`] says how the maps are divided among blocks. It depends on shapes only.

mod tiles;

use self::tiles::{Sweep, Tiles};
use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{self, Parts, added_sums_bytes, arrivals, exchange_sums};
use super::context::{Context, shared_bytes, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction::{DEPTHWISE, Partials, WeightGradient, finish_later, kept_at};
use super::sources::depthwise::{
    DEPTHWISE_CHANNELS, DEPTHWISE_COLUMNS, DEPTHWISE_COLUMNS_STRIDE1, DEPTHWISE_COLUMNS_STRIDE2,
    DEPTHWISE_CONSTANTS, DEPTHWISE_MERGE, DEPTHWISE_SLICE, DEPTHWISE_THREADS, DepthwiseBackwardArguments,
    DepthwiseForwardArguments, RECOMPUTE_INPUTS, WARP,
};
use crate::model::Window;
use crate::ops::device::KEPT;
use crate::ops::{
    DepthwiseBackward, DepthwiseForward, DepthwiseInput, NarrowGradient, OpsError, Param, Result, Tensor,
};

/// The forward pass: its threads share out the positions of the output.
struct Forward {
    tiles: Tiles,
    ring_rows: usize,
}

impl Forward {
    fn of(images: usize, window: Window, channels: usize, element: usize) -> Forward {
        let Window { kernel, stride, input, output, .. } = window;
        let columns = DEPTHWISE_COLUMNS;
        let seen = (columns - 1) * stride + kernel;
        let reach = |workers: usize| (workers - 1) * columns * stride + seen;
        let ring_rows = |rows: usize| {
            let in_use = (rows - 1) * stride + kernel;
            // Those in use, and those under way; or two whole maps.
            (in_use + rows * stride).min((2 * input).max(in_use))
        };
        let (value, exchanged) = if stride == 1 { (4, false) } else { (element, element == 2) };
        let pixel = DEPTHWISE_SLICE * value;
        let need = |workers: usize, rows: usize| {
            let columns = if exchanged { reach(workers).next_multiple_of(2) } else { reach(workers) };
            shared_bytes([
                (ring_rows(rows) * columns * pixel).max(DEPTHWISE_MERGE * 4),
                (seen + 1) * pixel,
                2 * DEPTHWISE_SLICE * 4,
                DEPTHWISE_THREADS / WARP * (DEPTHWISE_SLICE / DEPTHWISE_CHANNELS + 2 * DEPTHWISE_SLICE) * 4,
            ])
        };
        let tiles = Sweep {
            images,
            channels,
            width: output,
            height: output,
            columns,
            thread_rows: 1,
            reach: &reach,
            fresh: &|rows| rows * stride,
            need: &need,
            warp_cost: 220 + DEPTHWISE_CHANNELS * kernel * kernel * columns,
            unit_cost: 105,
            blocks: 1056,
        }
        .divide();
        Forward { ring_rows: ring_rows(tiles.rows), tiles }
    }
}

/// The backward pass: its threads share out the positions of the input.
struct Backward {
    tiles: Tiles,
    ring_rows: usize,
}

impl Backward {
    fn of(images: usize, window: Window, channels: usize, element: usize) -> Backward {
        let Window { kernel, stride, input, output, pad } = window;
        let columns = if stride == 1 { DEPTHWISE_COLUMNS_STRIDE1 } else { DEPTHWISE_COLUMNS_STRIDE2 };
        // Threads begin where input and output columns meet: at −1 if the padding is odd and the stride two.
        let extent = input + pad % stride;
        let before = (kernel - 1) / stride;
        let reached = (columns - 1) / stride + 1 + before;
        let reach = |workers: usize| (workers - 1) * (columns / stride) + reached;
        let ring_rows = |rows: usize| {
            let fresh = rows / stride;
            // Those in use, and those under way; or two whole maps.
            (before + 2 * fresh).min((2 * output).max(before + fresh))
        };
        let sums = (kernel * kernel + 2) * DEPTHWISE_SLICE * DEPTHWISE_THREADS / WARP;
        let pixel = DEPTHWISE_SLICE * 2 * element;
        let need = |workers: usize, rows: usize| {
            shared_bytes([
                (ring_rows(rows) * reach(workers) * pixel).max(sums * 4),
                reached * pixel,
                2 * rows * workers * (columns | 1) * DEPTHWISE_SLICE * element,
                kernel * kernel * DEPTHWISE_SLICE * 4,
                DEPTHWISE_CONSTANTS * DEPTHWISE_SLICE * 4,
                DEPTHWISE_THREADS / WARP * 2 * DEPTHWISE_SLICE * 4,
            ])
        };
        let products = DEPTHWISE_CHANNELS * 2 * kernel * kernel * columns / stride;
        let tiles = Sweep {
            images,
            channels,
            width: extent,
            height: extent,
            columns,
            thread_rows: stride,
            reach: &reach,
            fresh: &|rows| rows / stride,
            need: &need,
            warp_cost: 380 + products,
            unit_cost: 160,
            // Two or three times what fits the 132 multiprocessors of an H100.
            blocks: if (kernel, stride) == (3, 2) { 1056 } else { 1188 },
        }
        .divide();
        Backward { ring_rows: ring_rows(tiles.rows), tiles }
    }
}

/// The kernel and stride of a network's first depthwise convolution, which makes no gradient at its input if the stem alone
/// is not trained.
const FIRST_WINDOW: (usize, usize) = (3, 1);

/// # Errors
/// A map has so many elements that the kernels cannot number them.
fn check(window: Window, channels: usize) -> Result {
    let elements = window.input_pixels() * channels;
    if elements < 1 << 31 {
        return Ok(());
    }
    Err(OpsError::Device(format!(
        "depthwise {}: a map has {elements} elements, the kernel counts to 2³¹; use a smaller --resolution",
        variant(window)
    )))
}

/// # Errors
/// No gradient at the input is wanted, and the kernel is one that always makes it.
fn check_gradient(p: &DepthwiseBackward, recomputes: bool) -> Result {
    let Window { kernel, stride, .. } = p.window;
    if p.gradient().is_some() || ((kernel, stride) == FIRST_WINDOW && !recomputes) {
        return Ok(());
    }
    let window = variant(p.window);
    Err(OpsError::Device(format!("depthwise {window}: its kernel makes the gradient at its input")))
}

const FORWARD: Kernel<DepthwiseForwardArguments> = Kernel::stored("depthwise_forward");
const FORWARD_RECOMPUTE: Kernel<DepthwiseForwardArguments> = Kernel::stored("depthwise_forward_recompute");
const BACKWARD: Kernel<DepthwiseBackwardArguments> = Kernel::stored("depthwise_backward");
const BACKWARD_RECOMPUTE: Kernel<DepthwiseBackwardArguments> = Kernel::stored("depthwise_backward_recompute");
const BACKWARD_IDENTITY: Kernel<DepthwiseBackwardArguments> = Kernel::stored("depthwise_backward_identity");

fn variant(window: Window) -> String {
    format!("k{}s{}", window.kernel, window.stride)
}

impl OnCuda for DepthwiseForward {
    fn workspace(&self, precision: Precision) -> usize {
        let plan = Forward::of(self.images, self.window, self.channels, precision.bytes());
        workspace_bytes(&batch_norm::parts_bytes(&self.bn, plan.tiles.parts))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        forward(cx, self, None)
    }
}

/// What a pass computes again in place of reading it: the tensor that an expansion does not store.
#[derive(Clone, Copy, Debug)]
pub struct Expansion {
    /// Its input.
    pub x: Tensor,
    pub weight: Param,
    pub inputs: usize,
}

impl Expansion {
    /// Its input, its weights and the number of its input channels, or the stored tensor; bytes of shared memory.
    fn source<G: Gpu>(
        cx: &Context<G>,
        stored: Tensor,
        again: Option<Expansion>,
    ) -> (Address, Address, i32, usize) {
        match again {
            Some(Expansion { x, weight, inputs }) => {
                (cx.tensor(x), cx.stored_weight(weight), inputs as i32, weights_bytes(cx.precision.bytes()))
            }
            None => (cx.tensor(stored), Address::NULL, 0, 0),
        }
    }
}

/// Bytes of an expansion's weights in a block's shared memory.
fn weights_bytes(element: usize) -> usize {
    DEPTHWISE_SLICE * (RECOMPUTE_INPUTS * element + 16)
}

/// The forward pass, of the tensor that it names or of one that it computes `again`.
pub fn forward<G: Gpu>(cx: &mut Context<G>, p: &DepthwiseForward, again: Option<Expansion>) -> Result {
    check(p.window, p.channels)?;
    // The same blocks with either, so that the statistics are the same bits.
    let Forward { tiles, ring_rows } = Forward::of(p.images, p.window, p.channels, cx.precision.bytes());
    let parts = Parts::of(cx, &p.bn, tiles.parts, tiles.slices);
    let (x, expand_weight, inputs, more) = Expansion::source(cx, p.x, again);
    let arguments = DepthwiseForwardArguments {
        x,
        expand_weight,
        coefficients: cx.optional(p.input_bn.map(|bn| bn.coefficients)),
        weight: cx.weight(p.weight),
        y: cx.tensor(p.y),
        counts: parts.counts,
        moments: parts.moments,
        arrivals: parts.finish.arrivals,
        norm_weight: parts.finish.weight,
        norm_bias: parts.finish.bias,
        running_mean: parts.finish.running_mean,
        running_var: parts.finish.running_var,
        norm_coefficients: parts.finish.coefficients,
        momentum: p.bn.momentum,
        eps: p.bn.eps,
        images: p.images as i32,
        channels: p.channels as i32,
        inputs,
        input: p.window.input as i32,
        output: p.window.output as i32,
        pad: p.window.pad as i32,
        workers: tiles.workers as i32,
        tiles: tiles.tiles as i32,
        rows: tiles.rows as i32,
        ring_rows: ring_rows as i32,
        images_per_block: tiles.images_per_block as i32,
        strips: tiles.strips as i32,
        strip_rows: tiles.strip_rows as i32,
    };
    let kernel = if again.is_some() { &FORWARD_RECOMPUTE } else { &FORWARD };
    let kernel = kernel.variant(variant(p.window));
    cx.launch(&kernel, tiles.grid(), DEPTHWISE_THREADS, tiles.shared + more, arguments)?;
    parts.finish(cx, &p.bn)
}

fn weight_bytes(p: &DepthwiseBackward, tiles: &Tiles) -> usize {
    tiles.parts * p.weight.elements * 4
}

impl OnCuda for DepthwiseBackward {
    fn workspace(&self, precision: Precision) -> usize {
        let plan = Backward::of(self.images, self.window, self.channels, precision.bytes());
        workspace_bytes(&[added_sums_bytes(plan.tiles.parts, self.channels)])
    }

    fn kept(&self, precision: Precision) -> [usize; KEPT] {
        let plan = Backward::of(self.images, self.window, self.channels, precision.bytes());
        kept_at(DEPTHWISE, weight_bytes(self, &plan.tiles))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        backward(cx, self, None)
    }
}

/// The backward pass, likewise.
pub fn backward<G: Gpu>(cx: &mut Context<G>, p: &DepthwiseBackward, again: Option<Expansion>) -> Result {
    check(p.window, p.channels)?;
    check_gradient(p, again.is_some())?;
    let Backward { tiles, ring_rows } = Backward::of(p.images, p.window, p.channels, cx.precision.bytes());
    let [sum_partials] = cx.workspace([added_sums_bytes(tiles.parts, p.channels)]);
    let weight_partials = cx.kept(DEPTHWISE, weight_bytes(p, &tiles))?;
    let (previous, previous_y, shortcut, keep) = match &p.input {
        DepthwiseInput::Normalised { bn, .. } => (*bn, Address::NULL, None, None),
        DepthwiseInput::Identity(NarrowGradient { shortcut, previous, .. }) => {
            (previous.bn, cx.tensor(previous.y), *shortcut, previous.keep)
        }
    };
    // With no gradient at the input, its batch norm has none either.
    let dx = p.gradient();
    let summed = dx.map(|_| &previous);
    let (x, expand_weight, inputs, more) = Expansion::source(cx, p.x, again);
    let arguments = DepthwiseBackwardArguments {
        x,
        expand_weight,
        y: cx.tensor(p.y),
        da: cx.tensor(p.da),
        dx: cx.optional(dx),
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        gate: cx.tensor(p.gate),
        squeeze_gradient: cx.tensor(p.squeeze_gradient),
        weight: cx.raw_weight(p.weight),
        previous: cx.tensor(previous.coefficients),
        previous_y,
        shortcut: cx.optional(shortcut),
        keep: cx.optional(keep),
        weight_partials,
        sum_partials,
        arrivals: arrivals(cx, tiles.parts, tiles.slices),
        norm_sums: cx.optional(summed.map(|bn| bn.sums)),
        bias_gradient: summed.map_or(Address::NULL, |bn| cx.gradient(bn.bias)),
        norm_gradient: summed.map_or(Address::NULL, |bn| cx.gradient(bn.weight)),
        block: cx.state.block,
        images: p.images as i32,
        channels: p.channels as i32,
        inputs,
        input: p.window.input as i32,
        output: p.window.output as i32,
        pad: p.window.pad as i32,
        workers: tiles.workers as i32,
        tiles: tiles.tiles as i32,
        rows: tiles.rows as i32,
        ring_rows: ring_rows as i32,
        images_per_block: tiles.images_per_block as i32,
        strips: tiles.strips as i32,
        strip_rows: tiles.strip_rows as i32,
        inverse_rows: batch_norm::inverse_rows(&p.bn),
    };
    let kernel = match p.input {
        DepthwiseInput::Normalised { .. } if again.is_some() => &BACKWARD_RECOMPUTE,
        DepthwiseInput::Normalised { .. } => &BACKWARD,
        DepthwiseInput::Identity(_) => &BACKWARD_IDENTITY,
    };
    let kernel = kernel.variant(variant(p.window));
    cx.launch(&kernel, tiles.grid(), DEPTHWISE_THREADS, tiles.shared + more, arguments)?;
    summed.map_or(Ok(()), |bn| exchange_sums(cx, bn))?;
    let partials = Partials { at: weight_partials, parts: tiles.parts };
    finish_later(cx, DEPTHWISE, WeightGradient { weight: p.weight, partials });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Padding;
    use crate::ops::cuda::batch_norm::MOST_ARRIVALS;
    use crate::ops::cuda::sources::batch_norm::FAN;

    #[test]
    fn map_with_too_many_elements_is_refused() {
        let window = |input| Window::new(5, 1, input, Padding::Symmetric);
        assert!(check(window(8191), 32).is_ok());
        let error = check(window(8192), 32).unwrap_err().to_string();
        assert!(error.contains("k5s1: a map has 2147483648 elements, the kernel counts to 2³¹; "), "{error}");
    }

    /// All sizes of the family, and odd ones.
    #[test]
    fn tiles_fit_shared_memory_and_cover_the_maps() {
        for (input, channels) in
            [(1, 8), (7, 1152), (14, 672), (29, 40), (112, 96), (190, 48), (300, 64), (301, 192)]
        {
            for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
                for padding in [Padding::Symmetric, Padding::Same] {
                    let window = Window::new(kernel, stride, input, padding);
                    for (images, element) in [(1, 4), (5, 2), (512, 2)] {
                        let forward = Forward::of(images, window, channels, element).tiles;
                        let backward = Backward::of(images, window, channels, element).tiles;
                        for (tiles, height) in [(forward, window.output), (backward, window.input)] {
                            let weights = if element == 2 { weights_bytes(element) } else { 0 };
                            assert!(tiles.shared + weights <= 99 << 10, "{tiles:?} of {window:?}");
                            let arrivals = tiles.slices * (tiles.parts.div_ceil(FAN) + 1);
                            assert!(arrivals <= MOST_ARRIVALS, "{tiles:?} of {window:?}");
                            assert!(tiles.slices * DEPTHWISE_SLICE >= channels);
                            assert!(tiles.strips * tiles.strip_rows >= height);
                            assert!(tiles.strips == 1 || tiles.images_per_block == 1);
                            let image_parts = tiles.parts / tiles.strips / tiles.tiles;
                            assert!(image_parts * tiles.images_per_block >= images);
                        }
                    }
                }
            }
        }
    }
}
