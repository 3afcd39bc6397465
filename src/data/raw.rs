//! Batches of images in their own sizes, for a device that crops, resizes and normalises by itself.
//!
//! A [`RawBatch`] fills one buffer that is sent as it is: a [`Sample`] for each image, then the pixels that the image's
//! [`Geometry`] needs and, for both axes, a table of the integer weights by which they are resampled. The weights are
//! those of the resizer that [`preprocess`](super::augment::preprocess) uses, and so is the order (rows are combined
//! first, rounded to bytes, then columns), so that a device gives the very bytes that the CPU gives. The bytes of a batch
//! follow from its images alone: nothing of what the buffer held before is sent.

use bytemuck::{Pod, Zeroable};

use super::augment::{Geometry, View};

/// One image's part of the buffer; `ImageSample` in `kernels/image.cu`. Offsets are bytes from the buffer's start,
/// multiples of 16. An image of no output (all zero) is black.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Sample {
    /// Rows of `pitch` bytes, the first `channels` of which are a pixel.
    pub pixels: u64,
    /// Tables of [`Axis`]: how columns and rows are combined.
    pub columns: u64,
    pub rows: u64,
    pub pitch: u32,
    /// 1 or 3.
    pub channels: u32,
    /// Size after resampling.
    pub width: u32,
    pub height: u32,
    /// Weights of one output position in the tables.
    pub column_window: u32,
    pub row_window: u32,
    /// Weights are multiples of 2^−precision.
    pub column_precision: u32,
    pub row_precision: u32,
    /// Place of the left upper corner in the square.
    pub left: i32,
    pub top: i32,
    /// 1 if the square is mirrored.
    pub mirrored: u32,
    pub unused: u32,
}

/// Bytes that a row of a single output column's input may have: what a device holds of it at a time.
pub const MOST_WINDOW_BYTES: usize = 24 << 10;

/// Squares' bytes that an image may take on average, and bytes where squares are small: see [`RawBatch::bytes`].
const MOST_SQUARES: usize = 3;
const MOST_SHARE_BYTES: usize = 512 << 10;

const ALIGNMENT: usize = 16;
/// Weights of 16 bits, of which one is the sign, and products of 22 bits beside the byte.
const WEIGHT_LIMIT: i32 = 1 << 15;
const MOST_PRECISION: u32 = 21;

/// How one axis is resampled. The table: for each output position the first input position and their number, 16 bits
/// each, then for each the weights, `window` of 16 bits.
#[derive(Debug, Default)]
struct Axis {
    spans: Vec<[u16; 2]>,
    exact: Vec<f64>,
    weights: Vec<i16>,
    window: usize,
    precision: u32,
}

impl Axis {
    /// Resampling [start, start + length) of `inputs` positions to `outputs` by a triangle that widens with the scale.
    fn resample(&mut self, inputs: u32, start: f64, length: f64, outputs: u32) {
        self.spans.clear();
        if f64::from(outputs) == length && start == start.round() {
            self.spans.extend((0..outputs).map(|at| [(start as u32 + at) as u16, 1]));
            (self.window, self.precision) = (1, 14);
            self.weights.clear();
            self.weights.resize(outputs as usize, 1 << 14);
            return;
        }
        // The operations and their order are those of the resizer: a difference in the last place could round to
        // another weight.
        let scale = ((start + length) - start) / f64::from(outputs);
        let radius = scale.max(1.0);
        let inverse = 1.0 / radius;
        let stride = radius.ceil() as usize * 2 + 1;
        self.exact.clear();
        self.exact.resize(stride * outputs as usize, 0.0);
        for (at, exact) in self.exact.chunks_exact_mut(stride).enumerate() {
            let centre = start + (at as f64 + 0.5) * scale;
            let first = (centre - radius).floor().max(0.0) as u32;
            let end = (centre + radius).ceil().min(f64::from(inputs)) as u32;
            let triangle = |position: u32| {
                let distance = ((f64::from(position) - (centre - 0.5)) * inverse).abs();
                if distance < 1.0 { 1.0 - distance } else { 0.0 }
            };
            // Zeros at both ends are no part of the span.
            let first = (first..end).find(|&position| triangle(position) != 0.0).unwrap_or(end);
            let mut sum = 0.0;
            let mut count = 0;
            for (slot, position) in exact.iter_mut().zip(first..end) {
                *slot = triangle(position);
                sum += *slot;
                if *slot != 0.0 {
                    count = position + 1 - first;
                }
            }
            if sum != 0.0 {
                exact.iter_mut().for_each(|weight| *weight /= sum);
            }
            self.spans.push([first as u16, count as u16]);
        }
        self.round(stride);
    }

    /// Rounds the exact weights with as many bits as the largest leaves room for.
    fn round(&mut self, stride: usize) {
        let most = self.exact.iter().copied().fold(0.0, f64::max);
        let scaled = |precision: u32| (most * f64::from(1u32 << precision)).round() as i32;
        self.precision =
            (0..MOST_PRECISION).find(|p| scaled(p + 1) >= WEIGHT_LIMIT).unwrap_or(MOST_PRECISION);
        self.window = self.spans.iter().map(|span| span[1] as usize).max().unwrap_or(0);
        let unit = f64::from(1u32 << self.precision);
        self.weights.clear();
        for exact in self.exact.chunks_exact(stride) {
            self.weights.extend(exact[..self.window].iter().map(|weight| (weight * unit).round() as i16));
        }
    }

    /// The input positions that have a weight, from which the spans count from now on.
    fn trim(&mut self) -> std::ops::Range<usize> {
        let first = self.spans.iter().map(|span| span[0]).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span[0] as usize + span[1] as usize).max().unwrap_or(0);
        self.spans.iter_mut().for_each(|span| span[0] -= first);
        first as usize..end
    }

    fn bytes(&self) -> usize {
        (self.spans.len() * 4 + self.weights.len() * 2).next_multiple_of(ALIGNMENT)
    }

    fn write(&self, to: &mut [u8]) {
        let spans = bytemuck::cast_slice(&self.spans);
        let weights = bytemuck::cast_slice(&self.weights);
        to[..spans.len()].copy_from_slice(spans);
        to[spans.len()..][..weights.len()].copy_from_slice(weights);
        to[spans.len() + weights.len()..self.bytes()].fill(0);
    }
}

/// Buffers that one thread uses again and again.
#[derive(Debug, Default)]
pub struct RawScratch {
    columns: Axis,
    rows: Axis,
}

/// A batch being written into a buffer.
#[derive(Debug)]
pub struct RawBatch<'a> {
    buffer: &'a mut [u8],
    images: usize,
    resolution: usize,
    pushed: usize,
    used: usize,
}

impl<'a> RawBatch<'a> {
    /// Bytes of the buffer for a batch that trains or is evaluated, in proportion to its images; at least
    /// [`RawBatch::least_bytes`].
    ///
    /// An image's share is three squares, but no more than 512 KiB where a square takes less. What crops of ImageNet
    /// cover is near two squares of 224 pixels in training and 2.3 in evaluation (half and 0.875² of 469×387 pixels), so
    /// a batch has room for nearly all of its images; it is the bound of what the bus carries, the host pins and the
    /// device keeps for a batch. Larger photographs are resized by the loader as soon as the rest of the batch would
    /// find no room: beside decoding them that costs little, and sending them much.
    pub fn bytes(images: usize, resolution: usize) -> usize {
        let square = resized_bytes(resolution);
        let share = (MOST_SQUARES * square).min(MOST_SHARE_BYTES).max(square);
        images * (share + size_of::<Sample>().next_multiple_of(ALIGNMENT))
    }

    /// Bytes in which any `images` images have room, if need be already resized.
    pub fn least_bytes(images: usize, resolution: usize) -> usize {
        samples_bytes(images) + images * resized_bytes(resolution)
    }

    /// An empty batch of `images` black squares.
    ///
    /// # Panics
    /// Where the buffer is shorter than [`RawBatch::least_bytes`].
    pub fn new(buffer: &'a mut [u8], images: usize, resolution: usize) -> RawBatch<'a> {
        assert!(buffer.len() >= RawBatch::least_bytes(images, resolution), "a buffer for {images} images");
        let used = samples_bytes(images);
        buffer[..used].fill(0);
        RawBatch { buffer, images, resolution, pushed: 0, used }
    }

    /// Bytes that are to be sent.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Adds an image. False, and nothing is added, where there is no room for it beside the images still to come or a
    /// device could not hold its rows: then resize it and [`RawBatch::push_resized`].
    pub fn push(&mut self, image: View, geometry: &Geometry, scratch: &mut RawScratch) -> bool {
        let Geometry { cut, region, size, place, mirrored } = *geometry;
        let RawScratch { columns, rows } = scratch;
        columns.resample(cut.width, region.0, region.2, size.0);
        rows.resample(cut.height, region.1, region.3, size.1);
        let (across, down) = (columns.trim(), rows.trim());
        let channels = image.channels as usize;
        let row = across.len() * channels;
        let pitch = row.next_multiple_of(ALIGNMENT);
        let need = columns.bytes() + rows.bytes() + pitch * down.len();
        let to_come = (self.images - self.pushed - 1) * resized_bytes(self.resolution);
        if self.used + need + to_come > self.buffer.len() || columns.window * channels > MOST_WINDOW_BYTES {
            return false;
        }
        let columns_at = self.used;
        let rows_at = columns_at + columns.bytes();
        let pixels_at = rows_at + rows.bytes();
        columns.write(&mut self.buffer[columns_at..]);
        rows.write(&mut self.buffer[rows_at..]);
        let start = |y: usize| {
            ((cut.top as usize + y) * image.width as usize + cut.left as usize + across.start) * channels
        };
        for (to, y) in self.buffer[pixels_at..].chunks_exact_mut(pitch).zip(down) {
            to[..row].copy_from_slice(&image.bytes[start(y)..][..row]);
            to[row..].fill(0);
        }
        self.add(
            Sample {
                pixels: pixels_at as u64,
                columns: columns_at as u64,
                rows: rows_at as u64,
                pitch: pitch as u32,
                channels: channels as u32,
                width: size.0,
                height: size.1,
                column_window: columns.window as u32,
                row_window: rows.window as u32,
                column_precision: columns.precision,
                row_precision: rows.precision,
                left: place.0 as i32,
                top: place.1 as i32,
                mirrored: u32::from(mirrored),
                unused: 0,
            },
            need,
        );
        true
    }

    /// Adds an image that is R×R×3 bytes already.
    pub fn push_resized(&mut self, pixels: &[u8], scratch: &mut RawScratch) {
        let side = self.resolution as u32;
        let image = View { width: side, height: side, channels: 3, bytes: pixels };
        let added = self.push(image, &Geometry::square(side), scratch);
        assert!(added, "there is room for every image that is still to come");
    }

    fn add(&mut self, sample: Sample, bytes: usize) {
        let at = self.pushed * size_of::<Sample>();
        self.buffer[at..][..size_of::<Sample>()].copy_from_slice(bytemuck::bytes_of(&sample));
        self.pushed += 1;
        self.used += bytes;
    }
}

fn samples_bytes(images: usize) -> usize {
    (images * size_of::<Sample>()).next_multiple_of(ALIGNMENT)
}

/// Bytes of an R×R image with its tables.
fn resized_bytes(resolution: usize) -> usize {
    2 * (resolution * 6).next_multiple_of(ALIGNMENT)
        + (3 * resolution).next_multiple_of(ALIGNMENT) * resolution
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
