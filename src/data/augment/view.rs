//! A decoded image, and how the CPU brings it into the network's square.
//!
//! Resizing is bilinear with antialiasing, in integers: the same bytes on every machine, and on a GPU.

use fast_image_resize::Resizer;

use super::edit::Edit;
use super::geometry::{Geometry, Rectangle};
use super::policy::Look;
use crate::data::codec::resize;

/// A decoded image as the loader holds it: rows of 1 or 3 bytes a pixel.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub width: u32,
    pub height: u32,
    pub channels: u8,
    pub bytes: &'a [u8],
}

impl<'a> View<'a> {
    /// The view, if it has as many bytes as its size says.
    ///
    /// # Errors
    /// One line.
    pub fn whole(self) -> Result<View<'a>, String> {
        if self.bytes.len() != self.width as usize * self.height as usize * self.channels as usize {
            return Err("its size and its pixels disagree".into());
        }
        Ok(self)
    }

    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }
}

/// Buffers that one thread uses again and again. Only the resizer's table of weights is allocated for each image
/// (8 bytes for each output column and each input column under its triangle, some tens of kilobytes).
#[derive(Default)]
pub struct Scratch {
    pub(super) resizer: Resizer,
    /// The part to be resized, as RGB.
    part: Vec<u8>,
    /// An image that was scaled down to be padded.
    small: Vec<u8>,
    /// What is done to the finished square, and a copy of it.
    edits: Vec<Edit>,
    copy: Vec<u8>,
}

/// Brings an image to `out`, R×R×3 bytes.
///
/// # Errors
/// The resizer's, for an image whose bytes do not match its size.
pub fn render(
    image: View,
    geometry: &Geometry,
    resolution: usize,
    scratch: &mut Scratch,
    out: &mut [u8],
) -> Result<(), String> {
    let Geometry { cut, region, size, mirrored, .. } = *geometry;
    let Scratch { resizer, part, small, .. } = scratch;
    if geometry.fills(resolution as u32) {
        resize(resizer, cut_rgb(image, cut, part), cut.size(), region, out, size)?;
        if mirrored {
            out.chunks_exact_mut(3 * resolution).for_each(mirror);
        }
        return Ok(());
    }
    if geometry.copies() {
        pad(image, geometry, resolution, out);
        return Ok(());
    }
    small.resize(size.0 as usize * size.1 as usize * 3, 0);
    resize(resizer, cut_rgb(image, cut, part), cut.size(), region, small, size)?;
    pad(View { width: size.0, height: size.1, channels: 3, bytes: small }, geometry, resolution, out);
    Ok(())
}

/// Does to a finished square of R×R×3 bytes what the look says.
pub fn edit_square(look: Look, resolution: usize, scratch: &mut Scratch, square: &mut [u8]) {
    let Scratch { edits, copy, .. } = scratch;
    look.edits(resolution as u32, edits);
    edits.iter().for_each(|edit| edit.apply(square, resolution, copy));
}

/// A rectangle of an image as RGB, copied unless it is the whole image. It is cut out *before* resizing, so that pixels
/// outside have no influence.
fn cut_rgb<'a>(image: View<'a>, cut: Rectangle, part: &'a mut Vec<u8>) -> &'a [u8] {
    let Rectangle { left, top, width, height } = cut;
    let channels = image.channels as usize;
    if channels == 3 && cut == Rectangle::all(image.size()) {
        return image.bytes;
    }
    part.resize(width as usize * height as usize * 3, 0);
    let rows = image.bytes.chunks_exact(image.width as usize * channels).skip(top as usize);
    for (to, row) in part.chunks_exact_mut(width as usize * 3).zip(rows) {
        copy_row(&row[left as usize * channels..][..width as usize * channels], channels, false, to);
    }
    part
}

/// Sets an image that already has its final size into the black square.
fn pad(image: View, geometry: &Geometry, resolution: usize, out: &mut [u8]) {
    let View { width, channels, bytes, .. } = image;
    let Geometry { place: (left, top), mirrored, .. } = *geometry;
    let side = resolution as i64;
    // Columns of the image that stay inside; in the mirrored square they are counted from the other edge.
    let first = (-left).clamp(0, i64::from(width)) as usize;
    let last = (side - left).clamp(0, i64::from(width)) as usize;
    let start = if mirrored { side - left - last as i64 } else { left + first as i64 } as usize;

    out.fill(0);
    let channels = channels as usize;
    for (row, from) in bytes.chunks_exact(width as usize * channels).enumerate() {
        let Ok(to_row) = usize::try_from(top + row as i64) else { continue };
        if to_row >= resolution {
            break;
        }
        let to = &mut out[(to_row * resolution + start) * 3..][..(last - first) * 3];
        copy_row(&from[first * channels..last * channels], channels, mirrored, to);
    }
}

/// Copies a row of 1 or 3 channels to RGB, mirrored or not.
fn copy_row(from: &[u8], channels: usize, mirrored: bool, to: &mut [u8]) {
    let fill = |(pixel, grey): (&mut [u8], &u8)| pixel.fill(*grey);
    if channels == 3 {
        to.copy_from_slice(from);
        if mirrored {
            mirror(to);
        }
    } else if mirrored {
        to.chunks_exact_mut(3).zip(from.iter().rev()).for_each(fill);
    } else {
        to.chunks_exact_mut(3).zip(from).for_each(fill);
    }
}

/// Mirrors a row of RGB pixels in place.
fn mirror(row: &mut [u8]) {
    row.reverse();
    for pixel in row.chunks_exact_mut(3) {
        pixel.swap(0, 2);
    }
}
