//! PNG files.

use std::io::Cursor;

use image::codecs::png::PngDecoder;
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, Limits};

use super::{Conversions, Decoded, MAX_PIXELS, Pixels, check_size, turn};
use crate::data::shard::MAX_SIDE;

pub(super) fn decode_png_file(bytes: &[u8]) -> Result<Decoded, String> {
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
