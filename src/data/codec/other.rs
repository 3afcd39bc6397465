//! Files that the `image` library decodes: PNG, WebP, GIF, BMP and TIFF.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageResult, Limits};

use super::kind::Kind;
use super::{Conversions, Decoded, MAX_PIXELS, Pixels, check_size, turn};
use crate::data::shard::MAX_SIDE;

/// Decodes a file of any kind but JPEG; of several pictures in it the first.
pub(super) fn decode_other(kind: Kind, bytes: &[u8]) -> Result<Decoded, String> {
    let input = Cursor::new(bytes);
    match kind {
        Kind::Jpeg => unreachable!("JPEG has a module of its own"),
        // In the file's header, byte 25 is the colour type; 3 is a palette.
        Kind::Png => finish(kind, PngDecoder::with_limits(input, limits()), bytes.get(25) == Some(&3)),
        Kind::WebP => finish(kind, WebPDecoder::new(input), false),
        Kind::Gif => finish(kind, GifDecoder::new(input), true),
        Kind::Bmp => {
            let decoder = BmpDecoder::new(input);
            let palette = decoder.as_ref().is_ok_and(|decoder| decoder.get_palette().is_some());
            finish(kind, decoder, palette)
        }
        Kind::Tiff => match unread_tiff(bytes) {
            Some(what) => Err(format!("{kind} of a rare kind ({what}); convert it")),
            None => finish(kind, TiffDecoder::new(input), false),
        },
    }
}

/// Kinds of TIFF that the library reads wrongly without a word, or fails on.
fn unread_tiff(bytes: &[u8]) -> Option<&'static str> {
    const FILL_ORDER: u16 = 266;
    const PLANAR: u16 = 284;
    const TILE_WIDTH: u16 = 322;
    if tiff_number(bytes, FILL_ORDER) == Some(2) {
        return Some("the bits of its bytes are in reverse order");
    }
    let planes = tiff_number(bytes, PLANAR) == Some(2);
    (planes && tiff_number(bytes, TILE_WIDTH).is_some()).then_some("tiles of single colours")
}

/// A 16-bit number in the first directory of a TIFF file.
fn tiff_number(bytes: &[u8], tag: u16) -> Option<u16> {
    let little = bytes.starts_with(b"II");
    let short = |at: usize| {
        let bytes = *bytes.get(at..)?.first_chunk()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let start = *bytes.get(4..)?.first_chunk()?;
    let directory = if little { u32::from_le_bytes(start) } else { u32::from_be_bytes(start) } as usize;
    let entries = (0..usize::from(short(directory)?)).map(|entry| directory + 2 + 12 * entry);
    entries
        .take_while(|&at| short(at).is_some())
        .find(|&at| short(at) == Some(tag))
        .and_then(|at| short(at + 8))
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(8 * MAX_PIXELS);
    limits
}

fn finish(kind: Kind, decoder: ImageResult<impl ImageDecoder>, palette: bool) -> Result<Decoded, String> {
    let broken = |e: image::ImageError| match e {
        image::ImageError::Unsupported(e) => format!("{kind} of a rare kind ({e}); convert it"),
        // The library's message names the chunk by the fields of a structure.
        e if e.to_string().contains("CRC error") => {
            format!("damaged {kind}: a checksum does not fit its data")
        }
        e => format!("damaged {kind}: {e}"),
    };
    let mut decoder = decoder.map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    decoder.set_limits(limits()).map_err(broken)?;
    let (colour, original) = (decoder.color_type(), decoder.original_color_type());
    if matches!(colour, ColorType::Rgb32F | ColorType::Rgba32F) {
        return Err(format!("{kind} of floating-point numbers, whose range nobody knows; convert it"));
    }
    let mut orientation = decoder.orientation().map_err(broken)?;
    // Some programs put the head of JPEG's segment into WebP's chunk, which the library does not expect.
    let exif = if kind == Kind::WebP { decoder.exif_metadata().map_err(broken)? } else { None };
    if let Some(exif) = exif.as_deref().and_then(|exif| exif.strip_prefix(b"Exif\0\0")) {
        orientation = Orientation::from_exif_chunk(exif).unwrap_or(Orientation::NoTransforms);
    }
    let image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    let grey = matches!(colour, ColorType::L8 | ColorType::L16 | ColorType::La8 | ColorType::La16);
    let wide = matches!(colour, ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16);
    let cmyk = matches!(original, ExtendedColorType::Cmyk8 | ExtendedColorType::Cmyk16);
    let rotated = orientation != Orientation::NoTransforms;
    let conversions = Conversions {
        cmyk: cmyk.into(),
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
