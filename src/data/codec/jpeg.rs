//! JPEG files.
//!
//! Two decoders are at work. The first one is fast, but reads some files wrongly without a word; [`Layout`] recognises
//! them by their headers, and the second decoder gets them. Shards may hold such files too, packed by earlier versions.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::segments::{Colours, Layout};
use super::{Conversions, Decoded, MAX_PIXELS, Pixels, check_size, entropy, fit, no_panic, turn};
use crate::data::shard::MAX_SIDE;

/// Decodes a file of which nothing is known; see [`decode_file_to_reduce`](super::decode_file_to_reduce).
pub(super) fn decode_jpeg_file(
    bytes: &[u8],
    longest: Option<u32>,
    buffer: Vec<u8>,
) -> Result<Decoded, String> {
    let layout = Layout::read(bytes)?;
    if !layout.frame.usual {
        return Err("a JPEG of a rare kind (arithmetic codes, 12 bits, or without loss); convert it".into());
    }
    let (width, height) = (u32::from(layout.frame.width), u32::from(layout.frame.height));
    let huge = u64::from(width) * u64::from(height) > MAX_PIXELS;
    let reduced = match (huge, longest) {
        (true, Some(longest)) => Some(Reduced::new(bytes, &layout, longest)?),
        (true, None) => {
            return Err(format!("{width}x{height} are more than {MAX_PIXELS} pixels; --max-side reduces it"));
        }
        (false, _) => None,
    };
    entropy::check(bytes)?;
    let orientation = layout.exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms);
    let components = layout.frame.components.len();
    let channels = if components == 1 { 1 } else { 3 };
    let plain = reduced.is_none() && components != 4 && !needs_second(&layout);
    let scaled_down = u64::from(reduced.is_some());
    let mut pixels = Pixels { width, height, channels, bytes: buffer };
    match reduced {
        Some(reduced) => pixels = reduced.decode(&layout, channels)?,
        None => decode_jpeg(bytes, width, height, channels, &mut pixels.bytes)?,
    }

    let cmyk = components == 4;
    let rotated = orientation != Orientation::NoTransforms;
    let conversions =
        Conversions { cmyk: cmyk.into(), rotated: rotated.into(), scaled_down, ..Default::default() };
    if rotated {
        pixels = turn(pixels, orientation)?;
    }
    Ok(Decoded { pixels, conversions, plain_jpeg: plain && !rotated })
}

/// Whether the first decoder reads such files wrongly, in some version at least.
fn needs_second(layout: &Layout) -> bool {
    layout.in_several_scans() || layout.has_coarse_first_plane() || layout.has_disputed_colours()
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
    let layout = Layout::read(bytes)?;
    if (u32::from(layout.frame.width), u32::from(layout.frame.height)) != (width, height) {
        return Err(format!("its JPEG is not of {width}x{height} pixels"));
    }
    let length = width as usize * height as usize * channels as usize;
    if needs_second(&layout) {
        if channels != 3 {
            return Err(format!("its JPEG does not give {channels} channels"));
        }
        *out = no_panic(|| to_rgb(second(bytes, &layout).decode().map_err(damaged)?, &layout))?;
        return if out.len() == length { Ok(()) } else { Err("damaged JPEG: its headers disagree".into()) };
    }
    decode_first(bytes, channels, length, out)
}

fn decode_first(bytes: &[u8], channels: u8, length: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_out_colorspace(if channels == 1 { ColorSpace::Luma } else { ColorSpace::RGB });
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    if decoder.output_buffer_size() != Some(length) {
        return Err(format!("its JPEG does not give {channels} channels"));
    }
    out.resize(length, 0);
    decoder.decode_into(out).map_err(damaged)
}

/// The second decoder, told what libjpeg takes the colours for.
fn second<'a>(bytes: &'a [u8], layout: &Layout) -> jpeg_decoder::Decoder<&'a [u8]> {
    let mut decoder = jpeg_decoder::Decoder::new(bytes);
    decoder.set_color_transform(match layout.colours() {
        Colours::Grey => jpeg_decoder::ColorTransform::Grayscale,
        Colours::Rgb => jpeg_decoder::ColorTransform::RGB,
        Colours::YCbCr => jpeg_decoder::ColorTransform::YCbCr,
        Colours::Cmyk => jpeg_decoder::ColorTransform::CMYK,
        Colours::Ycck => jpeg_decoder::ColorTransform::YCCK,
    });
    decoder
}

/// The second decoder's pixels; grey ones stay grey.
fn to_rgb(pixels: Vec<u8>, layout: &Layout) -> Result<Vec<u8>, String> {
    match layout.frame.components.len() {
        1 | 3 => Ok(pixels),
        4 => Ok(pixels.chunks_exact(4).flat_map(ink_to_rgb).collect()),
        other => Err(format!("a JPEG of {other} components is neither grey, RGB nor CMYK")),
    }
}

/// A picture too large to be decoded whole.
struct Reduced<'a> {
    decoder: jpeg_decoder::Decoder<&'a [u8]>,
    width: u32,
    height: u32,
}

impl Reduced<'_> {
    /// Chooses the scale.
    fn new<'a>(bytes: &'a [u8], layout: &Layout, longest: u32) -> Result<Reduced<'a>, String> {
        let mut decoder = second(bytes, layout);
        let side = longest.min(MAX_SIDE) as u16;
        let (width, height) = decoder.scale(side, side).map_err(damaged)?;
        let (width, height) = (u32::from(width), u32::from(height));
        // The decoder holds the planes beside the pixels, and all coefficients of a progressive file.
        let area = |width: u32, height: u32| u64::from(width) * u64::from(height);
        let frame = &layout.frame;
        let coefficients =
            if frame.progressive { 2 * area(frame.width.into(), frame.height.into()) } else { 0 };
        let bytes = frame.components.len() as u64 * (coefficients + 2 * area(width, height));
        let stored = fit(width, height, longest);
        if bytes > 8 * MAX_PIXELS || area(stored.0, stored.1) > MAX_PIXELS {
            let (width, height) = (frame.width, frame.height);
            return Err(format!(
                "{width}x{height} pixels take more than a gigabyte of memory to be reduced to {longest}; \
                 give a smaller --max-side, or scale it down"
            ));
        }
        Ok(Reduced { decoder, width, height })
    }

    fn decode(mut self, layout: &Layout, channels: u8) -> Result<Pixels, String> {
        let bytes = to_rgb(self.decoder.decode().map_err(damaged)?, layout)?;
        Ok(Pixels { width: self.width, height: self.height, channels, bytes })
    }
}

/// Amounts of cyan, magenta, yellow and black, 255 being all, to light.
fn ink_to_rgb(ink: &[u8]) -> [u8; 3] {
    let paper = |ink: u8| 255 - u32::from(ink);
    [0, 1, 2].map(|colour| ((paper(ink[colour]) * paper(ink[3]) + 127) / 255) as u8)
}

fn damaged(error: impl std::fmt::Display) -> String {
    format!("damaged JPEG: {error}")
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
