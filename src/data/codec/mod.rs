//! Image files to pixels and back.
//!
//! Packing uses [`decode_file`], which takes any file of a folder. The loader uses [`decode_jpeg`], which takes only
//! what packing stored, and decodes into a buffer that is used again and again. [`decode_file`] is strict: a JPEG that
//! ends early or whose entropy-coded data makes no sense is an error, although a viewer would show it half grey. The
//! loader relies on the checksums of what packing has stored.

mod bits;
mod entropy;
mod jpeg;
mod kind;
mod other;
mod resize;
mod segments;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use jpeg::decode_jpeg_file;
pub use jpeg::{decode_jpeg, encode_jpeg};
pub use kind::{IMAGE_ENDINGS, Kind, is_image_name, kind};
use other::decode_other;
pub use resize::{Region, scale_down};
pub(crate) use resize::{fit, resize, whole};

use super::shard::MAX_SIDE;

/// Images of more pixels are refused, because a few bytes of PNG can ask for gigabytes.
pub const MAX_PIXELS: u64 = 1 << 27;

/// An upright image of 1 (grey) or 3 (RGB) bytes a pixel.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    pub width: u32,
    pub height: u32,
    pub channels: u8,
    pub bytes: Vec<u8>,
}

/// What had to be done to make a file's image plain 8-bit grey or RGB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // notes of an interrupted pack may be of an earlier version
pub struct Conversions {
    pub cmyk: u64,
    pub sixteen_bit: u64,
    pub palette: u64,
    /// Alpha is dropped, as `convert("RGB")` does in Python's usual loaders.
    pub alpha: u64,
    /// Turned or mirrored as its EXIF orientation says.
    pub rotated: u64,
    /// Scaled down to the longest side that the user allows.
    #[serde(rename = "reduced")]
    pub scaled_down: u64,
    /// JPEG files that were turned, CMYK, scaled down or of a rare kind, and therefore encoded to JPEG once more.
    pub encoded_anew: u64,
}

impl Conversions {
    pub fn add(&mut self, other: &Conversions) {
        self.cmyk += other.cmyk;
        self.sixteen_bit += other.sixteen_bit;
        self.palette += other.palette;
        self.alpha += other.alpha;
        self.rotated += other.rotated;
        self.scaled_down += other.scaled_down;
        self.encoded_anew += other.encoded_anew;
    }
}

/// A decoded file.
pub struct Decoded {
    pub pixels: Pixels,
    pub conversions: Conversions,
    /// The file is a JPEG that [`decode_jpeg`] decodes to the same pixels: its bytes may be stored as they are.
    pub plain_jpeg: bool,
}

/// Decodes an image file to an upright 8-bit image. The content tells of which kind it is. Never panics.
pub fn decode_file(bytes: &[u8]) -> Result<Decoded, String> {
    decode_file_to_reduce(bytes, None, Vec::new())
}

/// The same for an image that will be reduced to sides of at most `longest`: a JPEG of more than [`MAX_PIXELS`] is
/// decoded at a half, a quarter or an eighth of its size, but not below `longest`. The pixels of most JPEGs are written to
/// `buffer`, whatever it holds: fresh memory for each image takes as long as a twentieth of its decoding.
pub fn decode_file_to_reduce(bytes: &[u8], longest: Option<u32>, buffer: Vec<u8>) -> Result<Decoded, String> {
    no_panic(|| match kind(bytes)? {
        Kind::Jpeg => decode_jpeg_file(bytes, longest, buffer),
        other => decode_other(other, bytes),
    })
}

/// Decoders read any file a user has. If one of them panics, the image counts as broken.
fn no_panic<T>(action: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|_| Err("the decoder failed on it".into()))
}

/// Width and height from the header of an image file's first bytes, unturned.
pub fn dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let format = image::guess_format(bytes).ok()?;
    image::ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().ok()
}

/// Refuses images that cannot be stored, and those that would fill the memory.
fn check_size(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("an image of {width}x{height} pixels"));
    }
    if width.max(height) > MAX_SIDE {
        return Err(format!("{width}x{height} pixels, and a side may have {MAX_SIDE}; scale it down"));
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!(
            "{width}x{height} are more than {MAX_PIXELS} pixels, the most for an image; scale it down"
        ));
    }
    Ok(())
}

fn turn(pixels: Pixels, orientation: Orientation) -> Result<Pixels, String> {
    let Pixels { width, height, channels, bytes } = pixels;
    let wrong = "its size and its pixels disagree";
    let mut image = if channels == 1 {
        DynamicImage::ImageLuma8(GrayImage::from_raw(width, height, bytes).ok_or(wrong)?)
    } else {
        DynamicImage::ImageRgb8(RgbImage::from_raw(width, height, bytes).ok_or(wrong)?)
    };
    image.apply_orientation(orientation);
    Ok(Pixels { width: image.width(), height: image.height(), channels, bytes: image.into_bytes() })
}
