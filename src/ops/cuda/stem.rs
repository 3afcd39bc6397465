//! The stem: the 3×3 convolution from three channels and its weight gradient.

use super::OnCuda;
use super::arguments::{Kernel, arguments};
use super::batch_norm;
use super::context::{Context, workspace_bytes};
use super::gpu::{Address, Gpu};
use super::precision::Precision;
use super::reduction;
use crate::model::Window;
use crate::ops::{Result, Statistics, StemBackward, StemForward};

const THREADS: usize = 256;
/// Values under one output value.
const TAPS: usize = 27;
/// Pixels of a thread in a tile: `STEM_PIXELS` of the kernel forward, and what it walks through backward.
const FORWARD_PIXELS: usize = 7;
const BACKWARD_PIXELS: usize = 8;
/// Bytes of the image's rows in shared memory, at most: beside them the rest of a block's pieces have room.
const MOST_ROW_BYTES: usize = 72 << 10;
/// Floats in which the threads' moments of eight channels are added up.
const MOMENT_FLOATS: usize = 2 * THREADS * 8;
/// Most parts: sixteen blocks for each multiprocessor of a large GPU forward, whose parts cost little memory, four
/// backward, where two are at work at a time.
const FORWARD_PARTS: usize = 2112;
const BACKWARD_PARTS: usize = 528;

arguments! {
    /// y and its statistics; without these `counts` and `moments` are null.
    pub struct ForwardArguments {
        image: Address,
        weight: Address,
        y: Address,
        counts: Address,
        moments: Address,
        images: i32,
        input: i32,
        output: i32,
        pad: i32,
        pitch: i32,
        rows: i32,
        channels: i32,
        tile_pixels: i32,
        tiles: i32,
        tiles_per_part: i32,
    }
}

arguments! {
    /// Partial weight gradients.
    pub struct BackwardArguments {
        image: Address,
        y: Address,
        du: Address,
        coefficients: Address,
        sums: Address,
        partials: Address,
        images: i32,
        input: i32,
        output: i32,
        pad: i32,
        pitch: i32,
        rows: i32,
        channels: i32,
        tile_pixels: i32,
        dy_pixels: i32,
        tiles: i32,
        tiles_per_part: i32,
        inverse_rows: f32,
    }
}

const FORWARD: Kernel<ForwardArguments> = Kernel::stored("stem_forward");
const BACKWARD: Kernel<BackwardArguments> = Kernel::stored("stem_backward");

/// How the output pixels are cut: tiles of `pixels` consecutive ones of an image, the last of an image smaller, and
/// parts of several tiles.
struct Cut {
    pixels: usize,
    tiles: usize,
    per_part: usize,
    /// Rows of the image under a tile, at most, and floats from one to the next in shared memory: one more than a
    /// multiple of 32, so that neighbouring rows lie in different banks.
    rows: usize,
    pitch: usize,
}

impl Cut {
    /// `roles` threads share a pixel, each takes `pixels` of a tile.
    fn new(images: usize, window: &Window, roles: usize, pixels: usize, most_parts: usize) -> Cut {
        assert_eq!((window.kernel, window.stride), (3, 2), "the stem's window is 3×3 with stride 2");
        let columns = ((window.output - 1) * 2 + 3).max(window.pad + window.input);
        let pitch = (3 * columns).next_multiple_of(32) + 1;
        let output_rows =
            |pixels: usize| ((pixels + window.output - 2) / window.output + 1).min(window.output);
        let rows = |pixels: usize| 2 * output_rows(pixels) + 1;
        let mut pixels = pixels * (THREADS / roles);
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
    Cut::new(p.images, &p.window, p.channels / 8, FORWARD_PIXELS, FORWARD_PARTS)
}

impl OnCuda for StemForward {
    fn workspace(&self, _precision: Precision) -> usize {
        workspace_bytes(&batch_norm::statistics_bytes(&self.bn, forward_cut(self).parts()))
    }

    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result {
        let cut = forward_cut(self);
        let parts = cut.parts();
        let batch = self.bn.statistics == Statistics::Batch;
        let [counts, moments] = match batch {
            true => cx.workspace(batch_norm::statistics_bytes(&self.bn, parts)),
            false => [Address::NULL; 2],
        };
        let arguments = ForwardArguments {
            image: cx.tensor(self.image),
            weight: cx.weight(self.weight),
            y: cx.tensor(self.y),
            counts,
            moments,
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
        cx.launch(&FORWARD, [parts, 1, 1], THREADS, shared_bytes(&pieces), arguments)?;
        match batch {
            true => batch_norm::finish_statistics(cx, &self.bn, counts, moments, parts),
            false => Ok(()),
        }
    }
}

fn backward_cut(p: &StemBackward) -> Cut {
    // A thread has one of the window's three rows.
    Cut::new(p.images, &p.window, 3 * p.channels / 8, BACKWARD_PIXELS, BACKWARD_PARTS)
}

/// Pixels that dy has room for in shared memory, where the threads' sums are added up afterwards.
fn dy_pixels(p: &StemBackward) -> usize {
    BACKWARD_PIXELS * (THREADS / (3 * p.channels / 8))
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
        let arguments = BackwardArguments {
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
        // Four numbers of batch norm's backward a channel, the image's rows, dy.
        let pieces = [4 * self.channels, cut.rows * cut.pitch, dy_pixels(self) * self.channels];
        cx.launch(&BACKWARD, [parts, 1, 1], THREADS, shared_bytes(&pieces), arguments)?;
        reduction::add_gradient(cx, partials, parts, self.weight)
    }
}

/// Bytes of shared memory for pieces of these numbers of floats.
fn shared_bytes(floats: &[usize]) -> usize {
    floats.iter().map(|floats| (floats * 4).next_multiple_of(16)).sum()
}
