//! The depthwise convolution: one launch forward and one backward, each followed by the second stages of its sums.
//!
//! [`Cut`] decides how maps are cut into blocks, from shapes alone.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::batch_norm;
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction;
use crate::model::Window;
use crate::ops::{DepthwiseBackward, DepthwiseForward, DepthwiseInput, Result, Statistics};

/// As in `kernels/depthwise_forward.cuh`.
const LANES: usize = 8;
const COLUMNS: usize = 4;
/// Channels of a thread, backward.
const BACKWARD_CHANNELS: usize = 2;
/// Rows of per-channel constants, backward.
const CONSTANTS: usize = 9;
/// Shared memory of a block, at most: two blocks fit the smallest multiprocessor, of compute capability 8.6.
const SHARED: usize = 48 << 10;
/// Blocks that fill a large GPU several times over.
const BLOCKS: usize = 1056;
/// Rows below which a strip is not cut further: its border is loaded twice.
const STRIP: usize = 8;

fn threads(kernel: usize) -> usize {
    if kernel == 3 { 256 } else { 128 }
}

/// How the maps are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Vectors of eight channels in a slice: 1, 2 or 4.
    vectors: usize,
    slices: usize,
    /// Rows of an iteration.
    rows: usize,
    /// Images of an iteration.
    together: usize,
    images_per_block: usize,
    strips: usize,
    strip_rows: usize,
    parts: usize,
    shared: usize,
}

/// What a block needs of shared memory for these vectors, rows and images of an iteration.
type Need<'a> = &'a dyn Fn(usize, usize, usize) -> usize;

impl Cut {
    /// Over `images` maps of `height` rows on which a row takes `workers` groups of threads, each of `groups` threads a
    /// vector of channels.
    fn new(
        images: usize,
        channels: usize,
        height: usize,
        workers: usize,
        groups: usize,
        threads: usize,
        need: Need,
    ) -> Cut {
        let all = channels / LANES;
        let mut vectors = all.next_power_of_two().min(4);
        while vectors > 1 && (workers * groups * vectors > threads || need(vectors, 1, 1) > SHARED) {
            vectors /= 2;
        }
        let a_row = workers * groups * vectors;
        let mut rows = (threads / a_row).clamp(1, height);
        while rows > 1 && need(vectors, rows, 1) > SHARED {
            rows -= 1;
        }
        let mut together = if rows == height { (threads / (a_row * height)).clamp(1, images) } else { 1 };
        while together > 1 && need(vectors, rows, together) > SHARED {
            together -= 1;
        }
        let slices = all.div_ceil(vectors);
        let wanted = (images * slices).div_ceil(BLOCKS).max(1);
        let images_per_block = wanted.next_multiple_of(together).min(images.next_multiple_of(together));
        let image_parts = images.div_ceil(images_per_block);
        let strips = (BLOCKS / 4).div_ceil(image_parts * slices).min(height.div_ceil(STRIP));
        let strip_rows = height.div_ceil(strips).next_multiple_of(rows);
        let strips = height.div_ceil(strip_rows);
        let shared = need(vectors, rows, together);
        let parts = image_parts * strips;
        Cut { vectors, slices, rows, together, images_per_block, strips, strip_rows, parts, shared }
    }

    fn forward(images: usize, window: Window, channels: usize, element: usize) -> Cut {
        let Window { kernel, stride, input, output, pad } = window;
        let workers = output.div_ceil(COLUMNS);
        let reach = ((workers * COLUMNS - 1) * stride + kernel).max(pad + input);
        let warps = threads(kernel) / 32;
        let need = |vectors: usize, rows: usize, together: usize| {
            let (ring, slice) = ((rows - 1) * stride + kernel, vectors * LANES);
            shared(&[
                together * ring * reach * slice * element,
                kernel * kernel * slice * 4,
                2 * slice * 4,
                warps * vectors * (1 + 2 * LANES) * 4,
            ])
        };
        Cut::new(images, channels, output, workers, 1, threads(kernel), &need)
    }

    fn backward(images: usize, window: Window, channels: usize, element: usize) -> Cut {
        let Window { kernel, stride, input, output, pad } = window;
        let first = pad % stride;
        let workers = (input + first).div_ceil(COLUMNS);
        let before = (kernel - 1) / stride;
        let reached = (COLUMNS - 1) / stride + 1 + before;
        // Of the ring's first column, an output column: at most zero.
        let base = (pad - first) as isize / stride as isize - before as isize;
        let reach = ((workers - 1) * COLUMNS / stride + reached).max((output as isize - base) as usize);
        let warps = threads(kernel) / 32;
        let need = |vectors: usize, rows: usize, together: usize| {
            let (ring, slice) = ((rows - 1 + kernel - 1) / stride + 2, vectors * LANES);
            shared(&[
                together * ring * reach * slice * element,
                kernel * kernel * slice * 4,
                CONSTANTS * slice * 4,
                together * 2 * slice * 4,
                warps * (kernel * kernel + 2) * slice * 4,
            ])
        };
        Cut::new(images, channels, input, workers, LANES / BACKWARD_CHANNELS, threads(kernel), &need)
    }

    fn grid(&self) -> [usize; 3] {
        [self.slices, self.parts, 1]
    }
}

/// Bytes of shared pieces, each rounded up as the arena does.
fn shared(pieces: &[usize]) -> usize {
    pieces.iter().map(|bytes| bytes.next_multiple_of(16)).sum()
}

arguments! {
    /// See `kernels/depthwise_forward.cuh`.
    pub struct ForwardArguments {
        x: Address,
        coefficients: Address,
        weight: Address,
        y: Address,
        counts: Address,
        moments: Address,
        images: i32,
        channels: i32,
        input: i32,
        output: i32,
        pad: i32,
        vectors: i32,
        rows: i32,
        together: i32,
        images_per_block: i32,
        strips: i32,
        strip_rows: i32,
    }
}

arguments! {
    /// See `kernels/depthwise_backward.cuh`.
    pub struct BackwardArguments {
        x: Address,
        y: Address,
        da: Address,
        dx: Address,
        coefficients: Address,
        sums: Address,
        gate: Address,
        squeeze_gradient: Address,
        weight: Address,
        previous: Address,
        previous_y: Address,
        shortcut: Address,
        keep: Address,
        weight_partials: Address,
        sum_partials: Address,
        images: i32,
        channels: i32,
        input: i32,
        output: i32,
        pad: i32,
        vectors: i32,
        rows: i32,
        together: i32,
        images_per_block: i32,
        strips: i32,
        strip_rows: i32,
        inverse_rows: f32,
    }
}

const FORWARD: Kernel<ForwardArguments> = Kernel::stored("depthwise_forward");
const BACKWARD: Kernel<BackwardArguments> = Kernel::stored("depthwise_backward");
const BACKWARD_IDENTITY: Kernel<BackwardArguments> = Kernel::stored("depthwise_backward_identity");

fn variant(window: Window) -> String {
    format!("k{}s{}", window.kernel, window.stride)
}

impl OnCuda for DepthwiseForward {
    fn workspace(&self, precision: Precision) -> usize {
        let cut = Cut::forward(self.images, self.window, self.channels, precision.bytes());
        workspace_bytes(&batch_norm::statistics_bytes(&self.bn, cut.parts))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = Cut::forward(self.images, self.window, self.channels, cx.precision.bytes());
        let [counts, moments] = cx.workspace(batch_norm::statistics_bytes(&self.bn, cut.parts));
        let batch = self.bn.statistics == Statistics::Batch;
        let arguments = ForwardArguments {
            x: cx.tensor(self.x),
            coefficients: cx.optional(self.input_bn.map(|bn| bn.coefficients)),
            weight: cx.weight(self.weight),
            y: cx.tensor(self.y),
            counts: if batch { counts } else { Address::NULL },
            moments,
            images: self.images as i32,
            channels: self.channels as i32,
            input: self.window.input as i32,
            output: self.window.output as i32,
            pad: self.window.pad as i32,
            vectors: cut.vectors as i32,
            rows: cut.rows as i32,
            together: cut.together as i32,
            images_per_block: cut.images_per_block as i32,
            strips: cut.strips as i32,
            strip_rows: cut.strip_rows as i32,
        };
        let kernel = FORWARD.variant(variant(self.window));
        cx.launch(&kernel, cut.grid(), threads(self.window.kernel), cut.shared, arguments)?;
        if batch { batch_norm::finish_statistics(cx, &self.bn, counts, moments, cut.parts) } else { Ok(()) }
    }
}

fn backward_bytes(p: &DepthwiseBackward, cut: &Cut) -> [usize; 2] {
    [cut.parts * p.weight.elements * 4, batch_norm::sums_bytes(cut.parts, p.channels)]
}

impl OnCuda for DepthwiseBackward {
    fn workspace(&self, precision: Precision) -> usize {
        let cut = Cut::backward(self.images, self.window, self.channels, precision.bytes());
        workspace_bytes(&backward_bytes(self, &cut))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = Cut::backward(self.images, self.window, self.channels, cx.precision.bytes());
        let [weight_partials, sum_partials] = cx.workspace(backward_bytes(self, &cut));
        let (previous, previous_y, shortcut, keep) = match &self.input {
            DepthwiseInput::Normalised(bn) => (*bn, Address::NULL, None, None),
            DepthwiseInput::Identity { shortcut, previous } => {
                (previous.bn, cx.tensor(previous.y), *shortcut, previous.keep)
            }
        };
        let arguments = BackwardArguments {
            x: cx.tensor(self.x),
            y: cx.tensor(self.y),
            da: cx.tensor(self.da),
            dx: cx.tensor(self.dx),
            coefficients: cx.tensor(self.bn.coefficients),
            sums: cx.tensor(self.bn.sums),
            gate: cx.tensor(self.gate),
            squeeze_gradient: cx.tensor(self.squeeze_gradient),
            weight: cx.raw_weight(self.weight),
            previous: cx.tensor(previous.coefficients),
            previous_y,
            shortcut: cx.optional(shortcut),
            keep: cx.optional(keep),
            weight_partials,
            sum_partials,
            images: self.images as i32,
            channels: self.channels as i32,
            input: self.window.input as i32,
            output: self.window.output as i32,
            pad: self.window.pad as i32,
            vectors: cut.vectors as i32,
            rows: cut.rows as i32,
            together: cut.together as i32,
            images_per_block: cut.images_per_block as i32,
            strips: cut.strips as i32,
            strip_rows: cut.strip_rows as i32,
            inverse_rows: batch_norm::inverse_rows(&self.bn),
        };
        let kernel = match self.input {
            DepthwiseInput::Normalised(_) => &BACKWARD,
            DepthwiseInput::Identity { .. } => &BACKWARD_IDENTITY,
        };
        let kernel = kernel.variant(variant(self.window));
        cx.launch(&kernel, cut.grid(), threads(self.window.kernel), cut.shared, arguments)?;
        batch_norm::finish_sums(cx, &previous, sum_partials, cut.parts)?;
        reduction::add_gradient(cx, weight_partials, cut.parts, self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Padding;

    /// Every size that the family has, and odd ones: threads suffice, shared memory fits, nothing is left out.
    #[test]
    fn cuts_fit_and_cover() {
        for (input, channels) in
            [(1, 8), (7, 1152), (14, 672), (29, 40), (112, 96), (190, 48), (300, 64), (301, 192)]
        {
            for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
                for padding in [Padding::Symmetric, Padding::Same] {
                    let window = Window::new(kernel, stride, input, padding);
                    for (images, element) in [(1, 4), (5, 2), (512, 2)] {
                        let forward = Cut::forward(images, window, channels, element);
                        let backward = Cut::backward(images, window, channels, element);
                        for (cut, height) in [(forward, window.output), (backward, window.input)] {
                            assert!(cut.shared <= 99 << 10, "{cut:?} of {window:?}");
                            assert!(cut.slices * cut.vectors * LANES >= channels);
                            assert!(cut.strips * cut.strip_rows >= height);
                            let image_parts = cut.parts / cut.strips;
                            assert!(image_parts * cut.images_per_block >= images);
                            assert!(cut.images_per_block % cut.together == 0);
                        }
                    }
                }
            }
        }
    }
}
