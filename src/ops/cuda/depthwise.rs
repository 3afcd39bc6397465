//! The depthwise convolution: one launch forward and one backward, then the kernels that finish their partial sums.
//!
//! [`Tiles`] and [`Cut`] decide how the maps are divided among blocks. They depend on shapes only.

mod tiles;

use self::tiles::{Sweep, Tiles};
use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{self, Parts};
use super::context::{Context, shared_bytes, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction;
use super::sources::depthwise::{
    DEPTHWISE_CHANNELS, DEPTHWISE_COLUMNS, DEPTHWISE_COLUMNS_STRIDE1, DEPTHWISE_COLUMNS_STRIDE2,
    DEPTHWISE_CONSTANTS, DEPTHWISE_SLICE, DEPTHWISE_THREADS, DepthwiseBackwardArguments,
    DepthwiseForwardArguments, LANES, THREADS_3X3, THREADS_5X5, WARP,
};
use crate::model::Window;
use crate::ops::{DepthwiseBackward, DepthwiseForward, DepthwiseInput, OpsError, Result};

/// Maximum of a block's shared memory: two blocks fit the smallest multiprocessor, that of compute capability 8.6.
const SHARED: usize = 48 << 10;
/// Enough blocks to fill a large GPU several times.
const BLOCKS: usize = 1056;
/// Minimum rows of a strip: the rows at its border are loaded twice.
const STRIP: usize = 8;

fn threads(kernel: usize) -> usize {
    if kernel == 3 { THREADS_3X3 } else { THREADS_5X5 }
}

/// How the maps are divided among blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Vectors of eight channels in a slice: 1, 2 or 4.
    vectors: usize,
    slices: usize,
    /// Rows per iteration.
    rows: usize,
    /// Images per iteration.
    together: usize,
    images_per_block: usize,
    strips: usize,
    strip_rows: usize,
    parts: usize,
    shared: usize,
    /// Threads that a row takes.
    row_threads: usize,
}

/// Bytes of shared memory that a block needs for these vectors, rows and images per iteration.
type Need<'a> = &'a dyn Fn(usize, usize, usize) -> usize;

impl Cut {
    /// For `images` maps of `height` rows. A row takes `workers` groups of threads, and a group has `groups` threads
    /// for each vector of channels.
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
        let row_threads = a_row;
        Cut {
            vectors,
            slices,
            rows,
            together,
            images_per_block,
            strips,
            strip_rows,
            parts,
            shared,
            row_threads,
        }
    }

    /// Of the forward pass, in which a thread has columns of one row. In the backward pass it may have any number.
    ///
    /// # Errors
    /// A row of the map has more columns than a block has threads for: the last ones would not be computed.
    fn check(&self, window: Window) -> Result {
        let has = threads(window.kernel);
        if self.row_threads <= has {
            return Ok(());
        }
        let (columns, needs) = (window.input, self.row_threads);
        Err(OpsError::Device(format!(
            "depthwise {}: a row of {columns} columns needs {needs} threads, a block has {has}; use a smaller --resolution",
            variant(window)
        )))
    }

    fn forward(images: usize, window: Window, channels: usize, element: usize) -> Cut {
        let Window { kernel, stride, input, output, pad } = window;
        let workers = output.div_ceil(DEPTHWISE_COLUMNS);
        let reach = ((workers * DEPTHWISE_COLUMNS - 1) * stride + kernel).max(pad + input);
        let warps = threads(kernel) / WARP;
        let need = |vectors: usize, rows: usize, together: usize| {
            let ring = (rows - 1) * stride + kernel;
            let slice = vectors * LANES;
            shared_bytes([
                together * ring * reach * slice * element,
                kernel * kernel * slice * 4,
                2 * slice * 4,
                warps * vectors * (1 + 2 * LANES) * 4,
            ])
        };
        Cut::new(images, channels, output, workers, 1, threads(kernel), &need)
    }

    fn grid(&self) -> [usize; 3] {
        [self.slices, self.parts, 1]
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
            blocks: if kernel == 3 { 1056 } else { 1188 },
        }
        .divide();
        Backward { ring_rows: ring_rows(tiles.rows), tiles }
    }
}

const FORWARD: Kernel<DepthwiseForwardArguments> = Kernel::stored("depthwise_forward");
const BACKWARD: Kernel<DepthwiseBackwardArguments> = Kernel::stored("depthwise_backward");
const BACKWARD_IDENTITY: Kernel<DepthwiseBackwardArguments> = Kernel::stored("depthwise_backward_identity");

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
        cut.check(self.window)?;
        let parts = Parts::of(cx, &self.bn, cut.parts);
        let arguments = DepthwiseForwardArguments {
            x: cx.tensor(self.x),
            coefficients: cx.optional(self.input_bn.map(|bn| bn.coefficients)),
            weight: cx.weight(self.weight),
            y: cx.tensor(self.y),
            counts: parts.counts,
            moments: parts.moments,
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
        parts.finish(cx, &self.bn)
    }
}

fn backward_bytes(p: &DepthwiseBackward, tiles: &Tiles) -> [usize; 2] {
    [tiles.parts * p.weight.elements * 4, batch_norm::sums_bytes(tiles.parts, p.channels)]
}

impl OnCuda for DepthwiseBackward {
    fn workspace(&self, precision: Precision) -> usize {
        let plan = Backward::of(self.images, self.window, self.channels, precision.bytes());
        workspace_bytes(&backward_bytes(self, &plan.tiles))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let Backward { tiles, ring_rows } =
            Backward::of(self.images, self.window, self.channels, cx.precision.bytes());
        let [weight_partials, sum_partials] = cx.workspace(backward_bytes(self, &tiles));
        let (previous, previous_y, shortcut, keep) = match &self.input {
            DepthwiseInput::Normalised(bn) => (*bn, Address::NULL, None, None),
            DepthwiseInput::Identity { shortcut, previous } => {
                (previous.bn, cx.tensor(previous.y), *shortcut, previous.keep)
            }
        };
        let arguments = DepthwiseBackwardArguments {
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
            workers: tiles.workers as i32,
            tiles: tiles.tiles as i32,
            rows: tiles.rows as i32,
            ring_rows: ring_rows as i32,
            images_per_block: tiles.images_per_block as i32,
            strips: tiles.strips as i32,
            strip_rows: tiles.strip_rows as i32,
            inverse_rows: batch_norm::inverse_rows(&self.bn),
        };
        let kernel = match self.input {
            DepthwiseInput::Normalised(_) => &BACKWARD,
            DepthwiseInput::Identity { .. } => &BACKWARD_IDENTITY,
        };
        let kernel = kernel.variant(variant(self.window));
        cx.launch(&kernel, tiles.grid(), DEPTHWISE_THREADS, tiles.shared, arguments)?;
        batch_norm::finish_sums(cx, &previous, sum_partials, tiles.parts)?;
        reduction::add_gradient(cx, weight_partials, tiles.parts, self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Padding;

    #[test]
    fn row_that_is_too_long_for_a_block_is_refused() {
        let window = |input| Window::new(5, 1, input, Padding::Symmetric);
        assert!(Cut::forward(1, window(512), 8, 2).check(window(512)).is_ok());
        let error = Cut::forward(1, window(513), 8, 2).check(window(513)).unwrap_err().to_string();
        assert!(error.contains("a row of 513 columns needs 129 threads, a block has 128; "), "{error}");
    }

    /// All sizes of the family, and odd ones.
    #[test]
    fn cuts_fit_shared_memory_and_cover_the_maps() {
        for (input, channels) in
            [(1, 8), (7, 1152), (14, 672), (29, 40), (112, 96), (190, 48), (300, 64), (301, 192)]
        {
            for (kernel, stride) in [(3, 1), (3, 2), (5, 1), (5, 2)] {
                for padding in [Padding::Symmetric, Padding::Same] {
                    let window = Window::new(kernel, stride, input, padding);
                    for (images, element) in [(1, 4), (5, 2), (512, 2)] {
                        let cut = Cut::forward(images, window, channels, element);
                        cut.check(window).unwrap();
                        assert!(cut.shared <= 99 << 10, "{cut:?} of {window:?}");
                        assert!(cut.slices * cut.vectors * LANES >= channels);
                        assert!(cut.strips * cut.strip_rows >= window.output);
                        let image_parts = cut.parts / cut.strips;
                        assert!(image_parts * cut.images_per_block >= images);
                        assert!(cut.images_per_block % cut.together == 0);
                        let Backward { tiles, .. } = Backward::of(images, window, channels, element);
                        assert!(tiles.shared <= 99 << 10, "{tiles:?} of {window:?}");
                        assert!(tiles.slices * DEPTHWISE_SLICE >= channels);
                        assert!(tiles.strips * tiles.strip_rows >= input);
                        assert!(tiles.strips == 1 || tiles.images_per_block == 1);
                        let image_parts = tiles.parts / tiles.strips / tiles.tiles;
                        assert!(image_parts * tiles.images_per_block >= images);
                    }
                }
            }
        }
    }
}
