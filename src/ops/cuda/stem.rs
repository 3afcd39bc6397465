//! The stem: the 3×3 convolution from three channels and its weight gradient.

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{self, Parts};
use super::context::{Context, shared_floats, workspace_bytes};
use super::gpu::Gpu;
use super::precision::Precision;
use super::reduction::{Partials, WeightGradient, finish_gradients};
use super::sources::stem::{
    COLORS, LANES, SIDE, STEM_PIXELS, STEM_SLICE, STEM_THREADS, STRIDE, StemBackwardArguments,
    StemForwardArguments, TAPS,
};
use crate::model::Window;
use crate::ops::{Result, StemBackward, StemForward};

/// Pixels of a tile for each thread, backward. Forward it is `STEM_PIXELS`, which the kernel keeps in registers.
const BACKWARD_PIXELS: usize = 8;
/// Maximum bytes of the image's rows in shared memory: the other pieces of a block still fit.
const MOST_ROW_BYTES: usize = 72 << 10;
/// Floats in which the moments of all threads, of eight channels each, are added.
const MOMENT_FLOATS: usize = 2 * STEM_THREADS * LANES;
/// Maximum number of parts. Forward: sixteen blocks for each multiprocessor of a large GPU, because a part costs
/// little memory. Backward: four, of which two run at once.
const FORWARD_PARTS: usize = 2112;
const BACKWARD_PARTS: usize = 528;

const FORWARD: Kernel<StemForwardArguments> = Kernel::stored("stem_forward");
const BACKWARD: Kernel<StemBackwardArguments> = Kernel::stored("stem_backward");

/// How the output pixels are divided: tiles of `pixels` consecutive pixels of an image (the last of an image may be
/// smaller), and parts of several tiles.
struct Cut {
    pixels: usize,
    tiles: usize,
    per_part: usize,
    /// Maximum rows of the image under a tile, and floats from one row to the next in shared memory: one more than a
    /// multiple of 32, so that neighbouring rows are in different banks.
    rows: usize,
    pitch: usize,
}

impl Cut {
    /// `roles` threads share a pixel, and each computes `pixels` pixels of a tile.
    fn new(images: usize, window: &Window, roles: usize, pixels: usize, most_parts: usize) -> Cut {
        assert_eq!((window.kernel, window.stride), (SIDE, STRIDE), "the stem's window is 3×3 with stride 2");
        let columns = ((window.output - 1) * STRIDE + SIDE).max(window.pad + window.input);
        let pitch = (COLORS * columns).next_multiple_of(32) + 1;
        let output_rows =
            |pixels: usize| ((pixels + window.output - 2) / window.output + 1).min(window.output);
        let rows = |pixels: usize| (output_rows(pixels) - 1) * STRIDE + SIDE;
        let mut pixels = pixels * (STEM_THREADS / roles);
        while pixels > 2 && rows(pixels) * pitch * 4 > MOST_ROW_BYTES {
            pixels /= 2;
        }
        let tiles = images * window.output_pixels().div_ceil(pixels);
        Cut { pixels, tiles, per_part: tiles.div_ceil(most_parts), rows: rows(pixels), pitch }
    }

    fn parts(&self) -> usize {
        self.tiles.div_ceil(self.per_part)
    }
}

fn forward_cut(p: &StemForward) -> Cut {
    Cut::new(p.images, &p.window, p.channels / LANES, STEM_PIXELS, FORWARD_PARTS)
}

impl OnCuda for StemForward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&batch_norm::parts_bytes(&self.bn, forward_cut(self).parts()))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = forward_cut(self);
        let slices = self.channels.div_ceil(STEM_SLICE);
        let parts = Parts::of(cx, &self.bn, cut.parts(), slices);
        let arguments = StemForwardArguments {
            image: cx.tensor(self.image),
            weight: cx.weight(self.weight),
            y: cx.tensor(self.y),
            counts: parts.counts,
            moments: parts.moments,
            arrivals: parts.finish.arrivals,
            norm_weight: parts.finish.weight,
            norm_bias: parts.finish.bias,
            running_mean: parts.finish.running_mean,
            running_var: parts.finish.running_var,
            norm_coefficients: parts.finish.coefficients,
            momentum: self.bn.momentum,
            eps: self.bn.eps,
            images: self.images as i32,
            input: self.window.input as i32,
            output: self.window.output as i32,
            pad: self.window.pad as i32,
            pitch: cut.pitch as i32,
            rows: cut.rows as i32,
            channels: self.channels as i32,
            tile_pixels: cut.pixels as i32,
            tiles: cut.tiles as i32,
            tiles_per_part: cut.per_part as i32,
        };
        let pieces = [TAPS * self.channels, self.channels, (cut.rows * cut.pitch).max(MOMENT_FLOATS)];
        cx.launch(&FORWARD, [cut.parts(), 1, 1], STEM_THREADS, shared_floats(pieces), arguments)?;
        parts.finish(cx, &self.bn)
    }
}

fn backward_cut(p: &StemBackward) -> Cut {
    // A thread has one of the window's three rows.
    Cut::new(p.images, &p.window, SIDE * p.channels / LANES, BACKWARD_PIXELS, BACKWARD_PARTS)
}

/// Pixels of dy that fit its piece of shared memory. The threads' sums are added in the same piece afterwards.
fn dy_pixels(p: &StemBackward) -> usize {
    BACKWARD_PIXELS * (STEM_THREADS / (SIDE * p.channels / LANES))
}

fn partial_bytes(p: &StemBackward) -> usize {
    backward_cut(p).parts() * TAPS * p.channels * 4
}

impl OnCuda for StemBackward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&[partial_bytes(self)])
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = backward_cut(self);
        let parts = cut.parts();
        let [partials] = cx.workspace([partial_bytes(self)]);
        let arguments = StemBackwardArguments {
            image: cx.tensor(self.image),
            y: cx.tensor(self.y),
            du: cx.tensor(self.du),
            coefficients: cx.tensor(self.bn.coefficients),
            sums: cx.tensor(self.bn.sums),
            partials,
            images: self.images as i32,
            input: self.window.input as i32,
            output: self.window.output as i32,
            pad: self.window.pad as i32,
            pitch: cut.pitch as i32,
            rows: cut.rows as i32,
            channels: self.channels as i32,
            tile_pixels: cut.pixels as i32,
            dy_pixels: dy_pixels(self) as i32,
            tiles: cut.tiles as i32,
            tiles_per_part: cut.per_part as i32,
            inverse_rows: batch_norm::inverse_rows(&self.bn),
        };
        // Four numbers of batch norm's backward for each channel, the image's rows, dy.
        let pieces = [4 * self.channels, cut.rows * cut.pitch, dy_pixels(self) * self.channels];
        cx.launch(&BACKWARD, [parts, 1, 1], STEM_THREADS, shared_floats(pieces), arguments)?;
        let partials = Partials { at: partials, parts };
        finish_gradients(cx, None, Some(WeightGradient { weight: self.weight, partials }))
    }
}
