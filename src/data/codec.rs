//! Image files to pixels and back.
//!
//! Packing uses [`decode_file`], which takes any file of a folder. The loader uses [`decode_jpeg`], which takes only
//! what packing stored, and decodes into a buffer that is used again and again. Both are strict: a JPEG that ends early
//! or whose entropy-coded data makes no sense is an error, although a viewer would show it half grey.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ExtendedColorType, GrayImage, ImageDecoder, Limits, RgbImage};
use serde::{Deserialize, Serialize};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

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

fn jpeg_options(colours: ColorSpace) -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_out_colorspace(colours)
}

fn decode_jpeg_file(bytes: &[u8]) -> Result<Decoded, String> {
    if !jpeg_is_whole(bytes) {
        return Err("truncated JPEG (it has no end)".into());
    }
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), jpeg_options(ColorSpace::RGB));
    decoder.decode_headers().map_err(|e| format!("damaged JPEG: {e}"))?;
    let info = decoder.info().ok_or("damaged JPEG: no header")?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    let orientation = decoder
        .exif()
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let channels = if info.components == 1 { 1 } else { 3 };
    let mut pixels = Vec::new();
    decode_jpeg(bytes, width, height, channels, &mut pixels)?;

    let cmyk = info.components == 4;
    let rotated = orientation != Orientation::NoTransforms;
    let conversions = Conversions { cmyk: cmyk.into(), rotated: rotated.into(), ..Default::default() };
    let mut pixels = Pixels { width, height, channels, bytes: pixels };
    if rotated {
        pixels = turn(pixels, orientation)?;
    }
    Ok(Decoded { pixels, conversions, plain_jpeg: !cmyk && !rotated })
}

/// Decodes a JPEG of known size into `out`, which is resized to fit and keeps its capacity.
///
/// The decoder itself still allocates: rows of blocks (16 lines of 16-bit values) for a baseline file, all coefficients
/// for a progressive one.
pub fn decode_jpeg(
    bytes: &[u8],
    width: u32,
    height: u32,
    channels: u8,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    check_size(width, height)?;
    let colours = if channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), jpeg_options(colours));
    decoder.decode_headers().map_err(|e| format!("damaged JPEG: {e}"))?;
    if decoder.dimensions() != Some((width as usize, height as usize)) {
        return Err(format!("its JPEG is not of {width}x{height} pixels"));
    }
    let length = width as usize * height as usize * channels as usize;
    if decoder.output_buffer_size() != Some(length) {
        return Err(format!("its JPEG does not give {channels} channels"));
    }
    out.resize(length, 0);
    decoder.decode_into(out).map_err(|e| format!("damaged JPEG: {e}"))
}

/// Whether a JPEG's marker segments lead to an end-of-image marker. In entropy-coded data a byte 0xff is followed by
/// 0x00 or a restart marker, so any other marker ends a scan; a truncated file has no end marker. Bytes after the end
/// (some cameras append data) do not matter.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    let mut in_scan = false;
    while at + 1 < bytes.len() {
        if bytes[at] != 0xff {
            at += 1;
            continue;
        }
        match bytes[at + 1] {
            0xff => at += 1,
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            0xd9 => return in_scan,
            marker => {
                in_scan |= marker == 0xda;
                let Some(length) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
    false
}

fn decode_png_file(bytes: &[u8]) -> Result<Decoded, String> {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(8 * MAX_PIXELS);
    let broken = |e: image::ImageError| format!("damaged PNG: {e}");
    let mut decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let colour = decoder.color_type();
    let orientation = decoder.orientation().map_err(broken)?;
    // In the file's header, byte 24 is the bit depth and byte 25 the colour type; 3 is a palette.
    let palette = bytes.get(25) == Some(&3);
    let wide = bytes.get(24) == Some(&16);
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let grey = matches!(colour, ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16);
    let rotated = orientation != Orientation::NoTransforms;
    let conversions = Conversions {
        sixteen_bit: wide.into(),
        palette: palette.into(),
        alpha: colour.has_alpha().into(),
        rotated: rotated.into(),
        ..Default::default()
    };
    let (channels, bytes) =
        if grey { (1, image.into_luma8().into_raw()) } else { (3, image.into_rgb8().into_raw()) };
    let mut pixels = Pixels { width, height, channels, bytes };
    if rotated {
        pixels = turn(pixels, orientation)?;
    }
    Ok(Decoded { pixels, conversions, plain_jpeg: false })
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

/// Encodes to JPEG with quality 1 to 100.
pub fn encode_jpeg(pixels: &Pixels, quality: u8) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let colour = if pixels.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&pixels.bytes, pixels.width, pixels.height, colour)
        .map_err(|e| format!("cannot be encoded as JPEG: {e}"))?;
    Ok(bytes)
}

/// Scales an image down, bilinear with antialiasing, until no side is longer than `longest`.
pub fn scale_down(pixels: &Pixels, longest: u32) -> Result<Pixels, String> {
    let from = (pixels.width, pixels.height);
    let (width, height) = fit(from.0, from.1, longest);
    let grey = pixels.channels == 1;
    let rgb: Vec<u8>;
    let source = if grey {
        rgb = pixels.bytes.iter().flat_map(|&v| [v; 3]).collect();
        &rgb
    } else {
        &pixels.bytes
    };
    let mut bytes = vec![0; width as usize * height as usize * 3];
    resize(&mut Resizer::new(), source, from, whole(from), &mut bytes, (width, height))?;
    if grey {
        bytes = bytes.into_iter().step_by(3).collect();
    }
    Ok(Pixels { width, height, channels: pixels.channels, bytes })
}

/// The size of an image scaled so that its longer side is `longest`.
pub(crate) fn fit(width: u32, height: u32, longest: u32) -> (u32, u32) {
    let scale = f64::from(longest) / f64::from(width.max(height));
    let side = |side: u32| ((f64::from(side) * scale).round() as u32).clamp(1, longest);
    (side(width), side(height))
}

/// The part of an image that is resized: left, top, width, height in fractions of pixels.
pub type Region = (f64, f64, f64, f64);

/// Resizes a region of an RGB image.
///
/// Everything is resized as RGB, grey images too, and from whole images: the resizer is generic code that is compiled
/// here for each type of pixel and of view, and each of them takes longer to compile than the rest of this crate.
pub(crate) fn resize(
    resizer: &mut Resizer,
    from: &[u8],
    (width, height): (u32, u32),
    (left, top, wide, high): Region,
    to: &mut [u8],
    (to_width, to_height): (u32, u32),
) -> Result<(), String> {
    let from = TypedImageRef::<U8x3>::from_buffer(width, height, from).map_err(|e| e.to_string())?;
    let mut to = TypedImage::<U8x3>::from_buffer(to_width, to_height, to).map_err(|e| e.to_string())?;
    // Bilinear; when scaling down, the triangle widens with the scale (antialiasing).
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    resizer.resize_typed(&from, &mut to, &options.crop(left, top, wide, high)).map_err(|e| e.to_string())
}

/// The region that is all of an image.
pub(crate) fn whole((width, height): (u32, u32)) -> Region {
    (0.0, 0.0, f64::from(width), f64::from(height))
}
