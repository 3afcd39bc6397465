//! From a decoded image to the network's R×R RGB input.
//!
//! [`crop`] says how images are brought to the resolution and what evaluation sees; a [`policy`] says what training
//! changes at random. Both choose a [`Geometry`], which the CPU follows in [`view`] and a GPU in `kernels/image.cu`
//! (see [`raw`](super::raw)), to the same bytes. A policy may also choose [`Edit`]s of the finished square, which the CPU
//! makes in [`edit`] and a GPU in `kernels/image_edit.cuh`, and how the squares of a pair of images are [mixed](mix), on a GPU
//! in `kernels/image_mix.cuh`.

pub mod crop;
pub mod edit;
pub mod geometry;
pub mod mix;
pub mod policy;
pub mod view;

use std::fs;
use std::path::Path;

use super::DataError;
use super::codec::{Pixels, decode_file};

pub use crop::CropMode;
pub use edit::Edit;
pub use geometry::{Geometry, Rectangle};
pub use mix::Mix;
pub use policy::{Auto, Look, Mixing, Policy, RandAugment};
pub use view::{Scratch, View, edit_square, render};

/// How an image of this size comes into the square. `look` is training's; evaluation has none.
///
/// # Errors
/// If `mode` is still `Auto`.
pub fn choose_geometry(
    image: (u32, u32),
    resolution: usize,
    mode: CropMode,
    look: Option<Look>,
) -> Result<Geometry, String> {
    let side = resolution as u32;
    let padded = match mode {
        CropMode::Auto => return Err("the crop mode `auto` was not resolved".into()),
        CropMode::Resized => false,
        CropMode::Pad => true,
    };
    Ok(match look {
        Some(look) => look.geometry(image, side, padded),
        None => crop::evaluation(image, side, padded),
    })
}

/// Brings an image to `out`, R×R×3 bytes, as [`choose_geometry`] says.
///
/// # Errors
/// If the bytes do not make an image of the stated size, or `mode` is still `Auto`.
pub fn preprocess(
    image: View,
    resolution: usize,
    mode: CropMode,
    look: Option<Look>,
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<(), String> {
    let image = image.whole()?;
    let geometry = choose_geometry(image.size(), resolution, mode, look)?;
    render(image, &geometry, resolution, scratch, out)?;
    if let Some(look) = look {
        edit_square(look, resolution, scratch, out);
    }
    Ok(())
}

/// Reads any image file and prepares it as evaluation does: R×R×3 bytes.
///
/// # Errors
/// [`DataError::Io`] or [`DataError::Image`], naming the file.
pub fn evaluate_image(path: &Path, resolution: usize, mode: CropMode) -> Result<Vec<u8>, DataError> {
    let bytes = fs::read(path).map_err(DataError::io(path))?;
    let broken = |problem| DataError::Image { path: path.to_owned(), problem };
    let Pixels { width, height, channels, bytes } = decode_file(&bytes).map_err(broken)?.pixels;
    let view = View { width, height, channels, bytes: &bytes };
    let mut out = vec![0; resolution * resolution * 3];
    preprocess(view, resolution, mode, None, &mut Scratch::default(), &mut out).map_err(broken)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
