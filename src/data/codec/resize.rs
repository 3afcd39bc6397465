//! Images of another size.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::Pixels;

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
