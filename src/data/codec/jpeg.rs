//! JPEG files.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::metadata::Orientation;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::{Conversions, Decoded, Pixels, check_size, turn};
use crate::data::shard::MAX_SIDE;

fn jpeg_options(colours: ColorSpace) -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_out_colorspace(colours)
}

pub(super) fn decode_jpeg_file(bytes: &[u8]) -> Result<Decoded, String> {
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

/// Encodes to JPEG with quality 1 to 100.
pub fn encode_jpeg(pixels: &Pixels, quality: u8) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let colour = if pixels.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&pixels.bytes, pixels.width, pixels.height, colour)
        .map_err(|e| format!("cannot be encoded as JPEG: {e}"))?;
    Ok(bytes)
}
