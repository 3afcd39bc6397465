//! Image files to pixels and back.
//!
//! Packing uses [`decode_file`], which takes any file of a folder. The loader uses [`decode_jpeg`], which takes only
//! what packing stored, and decodes into a buffer that is used again and again. Both are strict: a JPEG that ends early
//! or whose entropy-coded data makes no sense is an error, although a viewer would show it half grey.

mod jpeg;
mod png;
mod resize;

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use jpeg::decode_jpeg_file;
pub use jpeg::{decode_jpeg, encode_jpeg};
use png::decode_png_file;
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
}

impl Conversions {
    pub fn add(&mut self, other: &Conversions) {
        self.cmyk += other.cmyk;
        self.sixteen_bit += other.sixteen_bit;
        self.palette += other.palette;
        self.alpha += other.alpha;
        self.rotated += other.rotated;
        self.scaled_down += other.scaled_down;
    }
}

/// A decoded file.
pub struct Decoded {
    pub pixels: Pixels,
    pub conversions: Conversions,
    /// The file is a JPEG that [`decode_jpeg`] decodes to the same pixels: its bytes may be stored as they are.
    pub plain_jpeg: bool,
}

/// Decodes a JPEG or PNG file to an upright 8-bit image. The content tells which it is. Never panics.
pub fn decode_file(bytes: &[u8]) -> Result<Decoded, String> {
    no_panic(|| {
        if bytes.starts_with(&[0xff, 0xd8, 0xff]) {
            decode_jpeg_file(bytes)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            decode_png_file(bytes)
        } else if bytes.is_empty() {
            Err("empty file".into())
        } else {
            Err("neither JPEG nor PNG".into())
        }
    })
}

/// Decoders read any file a user has. If one of them panics, the image counts as broken.
fn no_panic<T>(action: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|_| Err("the decoder failed on it".into()))
}

/// Width and height from the header of a JPEG or PNG file's first bytes, unturned.
pub fn dimensions(bytes: &[u8]) -> Option<(u32, u32)> {
    let format = image::guess_format(bytes).ok()?;
    image::ImageReader::with_format(Cursor::new(bytes), format).into_dimensions().ok()
}

fn check_size(width: u32, height: u32) -> Result<(), String> {
    let sides = 1..=MAX_SIDE;
    if !sides.contains(&width)
        || !sides.contains(&height)
        || u64::from(width) * u64::from(height) > MAX_PIXELS
    {
        return Err(format!("{width}x{height} is no size that can be stored"));
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
