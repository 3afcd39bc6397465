//! Batches of images in their own sizes, for a device that crops, resizes, edits and normalises by itself.
//!
//! A [`RawBatch`] fills one buffer that is sent as it is: an [`ImageSample`] for each image, then the pixels that the
//! image's [`Geometry`] needs, for both axes a table of the integer weights by which they are resampled, and the edits of
//! the square. Weights and order are those of the resizer that [`render`](super::augment::render) uses (rows are combined
//! first, rounded to bytes, then columns), so that a device gives the same bytes as the CPU. The bytes of a batch follow
//! from its images alone: the buffer's former content is never sent.

use super::augment::mix::ONE;
use super::augment::{Edit, Geometry, Mix, Rectangle, View};
use crate::pixels::{
    ImageEdit, ImageSample, MAX_WINDOW_BYTES, MOST_EDITS, RAW_ALIGNMENT, least_raw_batch_bytes,
    program_bytes, raw_samples_bytes, raw_square_bytes,
};

/// Weights have 16 bits, one of which is the sign. Their precision leaves room for a byte in sums of 32 bits.
const WEIGHT_LIMIT: i32 = 1 << 15;
const MAX_PRECISION: u32 = 21;

/// How one axis is resampled; [`ImageSample`] describes the table that it writes.
#[derive(Debug, Default)]
struct Axis {
    /// For each output position, the first input position and the number of inputs.
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
            self.window = 1;
            self.precision = 14;
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
            // Zeros at both ends are not part of the span.
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
        self.precision = (0..MAX_PRECISION).find(|p| scaled(p + 1) >= WEIGHT_LIMIT).unwrap_or(MAX_PRECISION);
        self.window = self.spans.iter().map(|span| span[1] as usize).max().unwrap_or(0);
        let unit = f64::from(1u32 << self.precision);
        self.weights.clear();
        for exact in self.exact.chunks_exact(stride) {
            self.weights.extend(exact[..self.window].iter().map(|weight| (weight * unit).round() as i16));
        }
    }

    /// The input positions that have a weight. From here on the spans count from the first of them.
    fn trim(&mut self) -> std::ops::Range<usize> {
        let first = self.spans.iter().map(|span| span[0]).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span[0] as usize + span[1] as usize).max().unwrap_or(0);
        self.spans.iter_mut().for_each(|span| span[0] -= first);
        first as usize..end
    }

    fn bytes(&self) -> usize {
        (self.spans.len() * 4 + self.weights.len() * 2).next_multiple_of(RAW_ALIGNMENT)
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
    /// An empty batch of `images` black squares.
    ///
    /// # Panics
    /// If the buffer is shorter than [`least_raw_batch_bytes`].
    pub fn new(buffer: &'a mut [u8], images: usize, resolution: usize) -> RawBatch<'a> {
        assert!(buffer.len() >= least_raw_batch_bytes(images, resolution), "a buffer for {images} images");
        let used = raw_samples_bytes(images);
        buffer[..used].fill(0);
        RawBatch { buffer, images, resolution, pushed: 0, used }
    }

    /// Bytes that are to be sent.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Adds an image. Returns false and adds nothing if the images still to come would find no room beside it, or if a
    /// device could not hold its rows: then resize it and call [`RawBatch::push_resized`].
    ///
    /// # Panics
    /// For more than [`MOST_EDITS`] edits, or if one is not of a square of this side.
    pub fn push(
        &mut self,
        image: View,
        geometry: &Geometry,
        edits: &[Edit],
        scratch: &mut RawScratch,
    ) -> bool {
        let Geometry { cut, region, size, place, mirrored } = *geometry;
        let RawScratch { columns, rows } = scratch;
        columns.resample(cut.width, region.0, region.2, size.0);
        rows.resample(cut.height, region.1, region.3, size.1);
        let across = columns.trim();
        let down = rows.trim();
        let channels = image.channels as usize;
        let row = across.len() * channels;
        let pitch = row.next_multiple_of(RAW_ALIGNMENT);
        assert!(edits.len() <= MOST_EDITS, "{} edits", edits.len());
        let need = columns.bytes() + rows.bytes() + pitch * down.len() + program_bytes(edits.len());
        let least = raw_square_bytes(self.resolution) + program_bytes(MOST_EDITS);
        let to_come = (self.images - self.pushed - 1) * least;
        if self.used + need + to_come > self.buffer.len() || columns.window * channels > MAX_WINDOW_BYTES {
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
        let program_at = pixels_at + pitch * down.len();
        for (to, y) in self.buffer[pixels_at..].chunks_exact_mut(pitch).zip(down) {
            to[..row].copy_from_slice(&image.bytes[start(y)..][..row]);
            to[row..].fill(0);
        }
        self.add(
            ImageSample {
                pixels: pixels_at as u64,
                columns: columns_at as u64,
                rows: rows_at as u64,
                program: program_at as u64,
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
                ..ImageSample::default()
            },
            edits,
            need,
        );
        true
    }

    /// Adds an image that is R×R×3 bytes already.
    pub fn push_resized(&mut self, pixels: &[u8], edits: &[Edit], scratch: &mut RawScratch) {
        let side = self.resolution as u32;
        let image = View { width: side, height: side, channels: 3, bytes: pixels };
        let added = self.push(image, &Geometry::square(side), edits, scratch);
        assert!(added, "there is room for every image that is still to come");
    }

    /// Image `number` is mixed with its neighbour, image `number ^ 1`. Both are in the batch already.
    ///
    /// # Panics
    /// If they are not, or if the weight or the rectangle is too large.
    pub fn mix(&mut self, number: usize, mix: Mix) {
        let none = Rectangle { left: 0, top: 0, width: 0, height: 0 };
        let (share, part) = match mix {
            // A weight above one is found below.
            Mix::Blend { weight } => (ONE.wrapping_sub(weight), none),
            Mix::Exchange(rectangle) => (0, rectangle),
        };
        assert!(number.max(number ^ 1) < self.pushed, "image {number} and its neighbour");
        let (right, bottom) = (part.left + part.width, part.top + part.height);
        assert!(share <= ONE && right.max(bottom) as usize <= self.resolution, "{share} and {part:?}");
        let range = number * size_of::<ImageSample>()..(number + 1) * size_of::<ImageSample>();
        let mut sample: ImageSample = bytemuck::pod_read_unaligned(&self.buffer[range.clone()]);
        sample.share = share;
        sample.part = [part.left, part.top, part.width, part.height].map(|length| length as u16);
        self.buffer[range].copy_from_slice(bytemuck::bytes_of(&sample));
    }

    /// Writes the edits, and returns how many of them move pixels.
    fn write_program(&mut self, edits: &[Edit], at: usize) -> u16 {
        let to = &mut self.buffer[at..][..program_bytes(edits.len())];
        let mut moves = 0;
        for (edit, to) in edits.iter().zip(to.chunks_exact_mut(size_of::<ImageEdit>())) {
            let (operation, numbers) = edit.program(self.resolution as u32);
            moves += u16::from(operation.moves());
            to.copy_from_slice(bytemuck::bytes_of(&ImageEdit { operation: operation as u32, numbers }));
        }
        moves
    }

    fn add(&mut self, mut sample: ImageSample, edits: &[Edit], bytes: usize) {
        sample.edits = edits.len() as u16;
        sample.moves = self.write_program(edits, sample.program as usize);
        let at = self.pushed * size_of::<ImageSample>();
        self.buffer[at..][..size_of::<ImageSample>()].copy_from_slice(bytemuck::bytes_of(&sample));
        self.pushed += 1;
        self.used += bytes;
    }
}

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
