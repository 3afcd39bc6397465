//! One image, from its file to the bytes that are stored. This part of packing runs on all threads.

use std::mem::{replace, take};

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde::{Deserialize, Serialize};

use super::listing::{Content, Item};
use super::{Broken, PackEncoding, PackOptions};
use crate::data::codec::{Conversions, Decoded, Pixels, decode_file_to_reduce, encode_jpeg, scale_down};
use crate::data::shard::Encoding;
use crate::data::{DataError, Normalise};

/// An image as it will be stored.
pub struct Prepared {
    pub label: u32,
    pub width: u32,
    pub height: u32,
    pub channels: u8,
    pub encoding: Encoding,
    pub bytes: Vec<u8>,
    pub conversions: Conversions,
    pub sums: Sums,
}

/// Sums over pixels, in integers, so that their order does not matter. Grey counts as three equal channels. For an
/// image that is encoded here, they are the sums before encoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    pub pixels: u64,
    pub sum: [u64; 3],
    pub squares: [u64; 3],
}

/// Values that are added side by side: whole pixels of 1 or 3 channels.
const LANES: usize = 12;
/// Values of a lane whose squares fit into 32 bits.
const MOST: usize = (u32::MAX / (255 * 255)) as usize;

impl Sums {
    fn of(pixels: &Pixels) -> Sums {
        let mut sums = Sums { pixels: u64::from(pixels.width) * u64::from(pixels.height), ..Sums::default() };
        for bytes in pixels.bytes.chunks(LANES * MOST) {
            sums.add_bytes(bytes, pixels.channels as usize);
        }
        sums
    }

    /// Adds up to [`MOST`] rows of [`LANES`] values.
    fn add_bytes(&mut self, bytes: &[u8], channels: usize) {
        let (rows, rest) = bytes.as_chunks::<LANES>();
        // Zeros change no sum.
        let mut last = [0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        for (sum, squares) in [lane_sums(rows), lane_sums(&[last])] {
            for channel in 0..3 {
                // Of a grey image every lane belongs to every channel.
                for lane in (0..LANES).filter(|lane| channels == 1 || lane % 3 == channel) {
                    self.sum[channel] += u64::from(sum[lane]);
                    self.squares[channel] += u64::from(squares[lane]);
                }
            }
        }
    }

    pub fn add(&mut self, other: &Sums) {
        self.pixels += other.pixels;
        for channel in 0..3 {
            self.sum[channel] += other.sum[channel];
            self.squares[channel] += other.squares[channel];
        }
    }

    /// Means and population deviations as fractions of 255. A channel that never changes gets the deviation of one grey
    /// level, because pixels are divided by it.
    pub fn normalise(&self) -> Normalise {
        let mut normalise = Normalise { mean: [0.0; 3], deviation: [0.0; 3] };
        for channel in 0..3 {
            let pixels = self.pixels.max(1) as f64;
            let mean = self.sum[channel] as f64 / pixels;
            let variance = (self.squares[channel] as f64 / pixels - mean * mean).max(0.0);
            normalise.mean[channel] = (mean / 255.0) as f32;
            normalise.deviation[channel] = (variance.sqrt().max(1.0) / 255.0) as f32;
        }
        normalise
    }
}

/// Sums and sums of squares of each lane. A function of its own, with sums that nothing else touches: then they stay in
/// vector registers, three times as fast.
#[inline(never)]
fn lane_sums(rows: &[[u8; LANES]]) -> ([u32; LANES], [u32; LANES]) {
    let (mut sum, mut squares) = ([0; LANES], [0; LANES]);
    for row in rows {
        for lane in 0..LANES {
            let value = u32::from(row[lane]);
            sum[lane] += value;
            squares[lane] += value * value;
        }
    }
    (sum, squares)
}

/// Threads for packing.
pub fn pool(threads: usize) -> Result<ThreadPool, DataError> {
    ThreadPoolBuilder::new()
        .num_threads(threads.max(1))
        .build()
        .map_err(|e| DataError::Invalid(format!("cannot start {threads} threads: {e}")))
}

/// Reads, decodes, scales down and encodes an image as the options say. `buffer` is memory for pixels, to be used again
/// for the next image.
pub fn prepare(item: Item, options: &PackOptions, buffer: &mut Vec<u8>) -> Result<Prepared, Broken> {
    let Item { name, label, content } = item;
    let prepared = match content {
        Content::Pixels { width, height, channels, bytes } => {
            let pixels = Pixels { width, height, channels, bytes };
            let decoded = Decoded { pixels, conversions: Conversions::default(), plain_jpeg: false };
            store(label, decoded, None, options, buffer)
        }
        file => file.read().and_then(|bytes| {
            let decoded = decode_file_to_reduce(&bytes, options.max_side, take(buffer))?;
            store(label, decoded, Some(bytes), options, buffer)
        }),
    };
    prepared.map_err(|problem| Broken { file: name, problem })
}

/// Memory of a huge image is not kept.
fn give_back(buffer: &mut Vec<u8>, pixels: Pixels) {
    if pixels.bytes.capacity() <= 16 << 20 {
        *buffer = pixels.bytes;
    }
}

/// A small image that was decoded into the memory of a large one lets go of the rest.
fn fitted(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.shrink_to_fit();
    bytes
}

fn store(
    label: u32,
    decoded: Decoded,
    file: Option<Vec<u8>>,
    options: &PackOptions,
    buffer: &mut Vec<u8>,
) -> Result<Prepared, String> {
    let Decoded { mut pixels, mut conversions, plain_jpeg } = decoded;
    let reduced = options.reduced(pixels.width, pixels.height);
    if let Some(longest) = reduced {
        let small = scale_down(&pixels, longest)?;
        give_back(buffer, replace(&mut pixels, small));
        conversions.scaled_down = 1;
    }
    let sums = Sums::of(&pixels);
    let keep = plain_jpeg && reduced.is_none() && options.encoding != PackEncoding::Raw;
    // A JPEG that was turned or scaled stays a JPEG: its pixels would take many times as many bytes.
    let was_jpeg = file.as_ref().is_some_and(|bytes| bytes.starts_with(&[0xff, 0xd8]));
    let Pixels { width, height, channels, .. } = pixels;
    let (encoding, bytes) = match (file, options.encoding) {
        (Some(file), _) if keep => {
            give_back(buffer, pixels);
            (Encoding::Jpeg, file)
        }
        (_, PackEncoding::Raw) => (Encoding::Raw, fitted(pixels.bytes)),
        (_, PackEncoding::Auto) if !was_jpeg => (Encoding::Raw, fitted(pixels.bytes)),
        _ => {
            conversions.encoded_anew = was_jpeg.into();
            (Encoding::Jpeg, encode_jpeg(&pixels, options.quality)?)
        }
    };
    Ok(Prepared { label, width, height, channels, encoding, bytes, conversions, sums })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The brightest images of every length, long enough for a sum that would not fit.
    #[test]
    fn sums_are_those_of_single_pixels() {
        for (width, height, channels) in [(1, 1, 1), (5, 3, 3), (7, 1, 1), (1031, 1000, 3), (900, 900, 1)] {
            let length = width * height * channels;
            let bytes: Vec<u8> = (0..length).map(|at| if at % 7 == 0 { at as u8 } else { 255 }).collect();
            let mut expected = Sums { pixels: u64::from(width * height), ..Sums::default() };
            for pixel in bytes.chunks(channels as usize) {
                for channel in 0..3 {
                    let value = u64::from(pixel[if channels == 1 { 0 } else { channel }]);
                    expected.sum[channel] += value;
                    expected.squares[channel] += value * value;
                }
            }
            let pixels = Pixels { width, height, channels: channels as u8, bytes };
            assert_eq!(Sums::of(&pixels), expected, "{width}x{height}x{channels}");
        }
    }
}
