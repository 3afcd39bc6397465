//! The stem: the 3×3 convolution from three channels and its weight gradient.

use super::OnCuda;
use super::arguments::Kernel;
use super::batch_norm::{self, Parts};
use super::context::{Context, shared_bytes, shared_floats, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction::{Partials, WeightGradient, finish_gradients};
use super::sources::stem::{
    COLORS, LANES, ROW_TAPS, SIDE, STEM_MERGED, STEM_PIXELS, STEM_SLICE, STEM_STAGED, STEM_TAPS,
    STEM_THREADS, STRIDE, StemBackwardArguments, StemBandBackwardArguments, StemBandForwardArguments,
    StemForwardArguments, TAPS, WARP,
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

/// Output rows of a tile for half types, and the most shared memory of a block: two fit a multiprocessor of any GPU.
const FORWARD_ROWS: usize = 4;
const BACKWARD_ROWS: usize = 1;
const BAND_BYTES: usize = 48 << 10;

const FORWARD: Kernel<StemForwardArguments> = Kernel::stored("stem_forward");
const BACKWARD: Kernel<StemBackwardArguments> = Kernel::stored("stem_backward");
/// The same for half types.
const BAND_FORWARD: Kernel<StemBandForwardArguments> = Kernel::stored("stem_forward");
const BAND_BACKWARD: Kernel<StemBandBackwardArguments> = Kernel::stored("stem_backward");

/// How the output pixels are divided in fp32: tiles of `pixels` consecutive pixels of an image (the last of an image may be
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

/// How the output pixels are divided for half types: tiles of `rows` × `columns`, and parts of several tiles.
struct Band {
    rows: usize,
    columns: usize,
    tiles: usize,
    per_part: usize,
}

impl Band {
    /// `bytes` of shared memory are those of a tile of so many rows and columns.
    fn new(
        images: usize,
        window: &Window,
        channels: usize,
        most_rows: usize,
        most_parts: usize,
        bytes: impl Fn(usize, usize) -> usize,
    ) -> Band {
        assert_eq!((window.kernel, window.stride), (SIDE, STRIDE), "the stem's window is 3×3 with stride 2");
        assert!(channels <= STEM_SLICE * STEM_THREADS / WARP, "each warp has a slice of the stem's channels");
        let (mut rows, mut columns) = (most_rows.min(window.output), window.output.next_multiple_of(LANES));
        while bytes(rows, columns) > BAND_BYTES && rows > 1 {
            rows /= 2;
        }
        while bytes(rows, columns) > BAND_BYTES && columns > LANES {
            columns = (columns / 2).next_multiple_of(LANES);
        }
        let tiles = images * window.output.div_ceil(rows) * window.output.div_ceil(columns);
        Band { rows, columns, tiles, per_part: tiles.div_ceil(most_parts) }
    }

    fn parts(&self) -> usize {
        self.tiles.div_ceil(self.per_part)
    }
}

fn slices(channels: usize) -> usize {
    channels.div_ceil(STEM_SLICE)
}

/// Bytes of the image's rows under a tile, and of their planes.
fn plane_bytes(rows: usize, columns: usize) -> [usize; 2] {
    let inputs = (rows - 1) * STRIDE + SIDE;
    let units = (STRIDE * COLORS * columns + 21) / LANES;
    let pitch = ((columns / LANES) | 1) * LANES;
    [inputs * units * 16, (inputs * ROW_TAPS + STEM_TAPS - TAPS) * pitch * 2]
}

fn forward_band(p: &StemForward) -> Band {
    let bytes = |rows, columns| forward_bytes(p.channels, rows, columns);
    Band::new(p.images, &p.window, p.channels, FORWARD_ROWS, FORWARD_PARTS, bytes)
}

/// Both halves of the weights, the image, a vector for each thread or the merge of statistics.
fn forward_bytes(channels: usize, rows: usize, columns: usize) -> usize {
    let weights = 2 * slices(channels) * STEM_SLICE * (STEM_TAPS + LANES) * 2;
    let [raw, planes] = plane_bytes(rows, columns);
    shared_bytes([weights, raw, planes, STEM_STAGED * 4])
}

fn backward_band(p: &StemBackward) -> Band {
    let bytes = |rows, columns| backward_bytes(p.channels, rows, columns);
    Band::new(p.images, &p.window, p.channels, BACKWARD_ROWS, BACKWARD_PARTS, bytes)
}

/// The image, du and y or the warps' sums, dy.
fn backward_bytes(channels: usize, rows: usize, columns: usize) -> usize {
    let pixels = rows * columns;
    let stride = ((channels / LANES) | 1) * LANES;
    let [raw, planes] = plane_bytes(rows, columns);
    let gradients = (pixels * channels).max(STEM_THREADS / WARP * 16 * STEM_TAPS) * 4;
    shared_bytes([raw, planes, gradients, ((pixels + LANES) * stride + STEM_SLICE) * 2])
}

fn forward_cut(p: &StemForward) -> Cut {
    Cut::new(p.images, &p.window, p.channels / LANES, STEM_PIXELS, FORWARD_PARTS)
}

impl OnCuda for StemForward {
    fn workspace(&self, precision: Precision) -> usize {
        let parts = match precision {
            Precision::Fp32 => forward_cut(self).parts(),
            Precision::Fp16 | Precision::Bf16 => forward_band(self).parts(),
        };
        workspace_bytes(&batch_norm::parts_bytes(&self.bn, parts))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        if cx.precision != Precision::Fp32 {
            return launch_forward_half(self, cx);
        }
        let cut = forward_cut(self);
        let slices = self.channels.div_ceil(STEM_MERGED);
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

fn launch_forward_half<G: Gpu>(p: &StemForward, cx: &mut Context<G>) -> Result {
    let band = forward_band(p);
    let parts = Parts::of(cx, &p.bn, band.parts(), slices(p.channels));
    let arguments = StemBandForwardArguments {
        image: cx.tensor(p.image),
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
        input: p.window.input as i32,
        output: p.window.output as i32,
        pad: p.window.pad as i32,
        channels: p.channels as i32,
        rows: band.rows as i32,
        columns: band.columns as i32,
        tiles: band.tiles as i32,
        tiles_per_part: band.per_part as i32,
    };
    let shared = forward_bytes(p.channels, band.rows, band.columns);
    cx.launch(&BAND_FORWARD, [band.parts(), 1, 1], STEM_THREADS, shared, arguments)?;
    parts.finish(cx, &p.bn)
}

fn backward_cut(p: &StemBackward) -> Cut {
    // A thread has one of the window's three rows.
    Cut::new(p.images, &p.window, SIDE * p.channels / LANES, BACKWARD_PIXELS, BACKWARD_PARTS)
}

/// Pixels of dy that fit its piece of shared memory. The threads' sums are added in the same piece afterwards.
fn dy_pixels(p: &StemBackward) -> usize {
    BACKWARD_PIXELS * (STEM_THREADS / (SIDE * p.channels / LANES))
}

fn partial_bytes(p: &StemBackward, precision: Precision) -> usize {
    let parts = match precision {
        Precision::Fp32 => backward_cut(p).parts(),
        Precision::Fp16 | Precision::Bf16 => backward_band(p).parts(),
    };
    parts * TAPS * p.channels * 4
}

impl OnCuda for StemBackward {
    fn workspace(&self, precision: Precision) -> usize {
        workspace_bytes(&[partial_bytes(self, precision)])
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let [partials] = cx.workspace([partial_bytes(self, cx.precision)]);
        if cx.precision != Precision::Fp32 {
            return launch_backward_half(self, cx, partials);
        }
        let cut = backward_cut(self);
        let parts = cut.parts();
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

fn launch_backward_half<G: Gpu>(p: &StemBackward, cx: &mut Context<G>, partials: Address) -> Result {
    let band = backward_band(p);
    let parts = band.parts();
    let arguments = StemBandBackwardArguments {
        image: cx.tensor(p.image),
        y: cx.tensor(p.y),
        du: cx.tensor(p.du),
        coefficients: cx.tensor(p.bn.coefficients),
        sums: cx.tensor(p.bn.sums),
        partials,
        images: p.images as i32,
        input: p.window.input as i32,
        output: p.window.output as i32,
        pad: p.window.pad as i32,
        channels: p.channels as i32,
        rows: band.rows as i32,
        columns: band.columns as i32,
        tiles: band.tiles as i32,
        tiles_per_part: band.per_part as i32,
        inverse_rows: batch_norm::inverse_rows(&p.bn),
    };
    let shared = backward_bytes(p.channels, band.rows, band.columns);
    cx.launch(&BAND_BACKWARD, [parts, 1, 1], STEM_THREADS, shared, arguments)?;
    let partials = Partials { at: partials, parts };
    finish_gradients(cx, None, Some(WeightGradient { weight: p.weight, partials }))
}
