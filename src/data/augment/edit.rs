//! What augmentation does to a finished square: one operation a value of [`Edit`].
//!
//! All arithmetic is in integers, so an edit gives the same bytes on every machine. The operations are those of Pillow
//! that published recipes use (`ImageOps`, `ImageEnhance`, `Image.transform` and `Image.rotate` with the nearest pixel),
//! to at most one grey level: Pillow's blends are in floating point, these in steps of 2⁻¹⁶. A test compares them.
//!
//! A square is R×R×3 bytes, RGB.

use crate::pixels::Operation;

/// Steps of a factor or of a pixel's coordinates in one unit.
pub const ONE: i32 = 1 << 16;

/// One operation on a square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edit {
    /// Output pixel (x, y) is input pixel (a·x + b·y + c, d·x + e·y + f), at pixel centres, or the colour outside. The
    /// matrix is [a, b, c, d, e, f] in steps of 1/[`ONE`]; see [`Edit::affine`].
    Affine { matrix: [i32; 6], fill: [u8; 3] },
    /// Upside down.
    FlipVertically,
    /// Each channel is stretched to 0…255.
    AutoContrast,
    /// Each channel's histogram is made flat.
    Equalize,
    /// 255 − v.
    Invert,
    /// Only this many high bits stay.
    Posterize { bits: u8 },
    /// Values from this one on are inverted.
    Solarize { threshold: u16 },
    /// Values below 128 become lighter.
    SolarizeAdd { add: u8 },
    /// Between grey (0) and the image ([`ONE`]), and beyond.
    Color { factor: i32 },
    /// Between the mean grey and the image.
    Contrast { factor: i32 },
    /// Between black and the image.
    Brightness { factor: i32 },
    /// Between a smoothed image and the image.
    Sharpness { factor: i32 },
    /// A rectangle of one colour.
    Erase { left: u32, top: u32, width: u32, height: u32, fill: [u8; 3] },
}

impl Edit {
    /// An affine transform of which the matrix is in pixels and maps corners to corners, as `Image.transform` takes it.
    pub fn affine([a, b, c, d, e, f]: [f64; 6], fill: [u8; 3]) -> Edit {
        let fixed = |value: f64| (value * f64::from(ONE) + 0.5).floor() as i32;
        // The centre of pixel 0 is half a pixel from the corner.
        let first = [c + 0.5 * a + 0.5 * b, f + 0.5 * d + 0.5 * e];
        let matrix = [fixed(a), fixed(b), fixed(first[0]), fixed(d), fixed(e), fixed(first[1])];
        Edit::Affine { matrix, fill }
    }

    /// A rotation about the middle of a square of this side, counter-clockwise.
    pub fn rotate(degrees: f64, side: u32, fill: [u8; 3]) -> Edit {
        let angle = -degrees.to_radians();
        // Rounded, so that right angles are exact.
        let round = |value: f64| (value * 1e15).round() / 1e15;
        let (cos, sin) = (round(angle.cos()), round(angle.sin()));
        let middle = f64::from(side) / 2.0;
        let (c, f) = (middle - cos * middle - sin * middle, middle + sin * middle - cos * middle);
        Edit::affine([cos, sin, c, -sin, cos, f], fill)
    }

    /// A blend's factor.
    pub fn factor(value: f64) -> i32 {
        (value * f64::from(ONE)).round() as i32
    }

    /// Changes a square of this side. `scratch` is used again and again.
    pub fn apply(self, square: &mut [u8], side: usize, scratch: &mut Vec<u8>) {
        match self {
            Edit::Affine { matrix, fill } => affine(square, side, matrix, fill, scratch),
            Edit::FlipVertically => flip_vertically(square, side),
            Edit::AutoContrast => by_channel(square, auto_contrast),
            Edit::Equalize => by_channel(square, equalize),
            Edit::Invert => by_value(square, |v| 255 - v),
            Edit::Posterize { bits } => by_value(square, |v| v & posterize_mask(bits)),
            Edit::Solarize { threshold } => {
                by_value(square, |v| if u16::from(v) < threshold { v } else { 255 - v });
            }
            Edit::SolarizeAdd { add } => {
                by_value(square, |v| if v < 128 { v.saturating_add(add) } else { v })
            }
            Edit::Color { factor } => {
                for pixel in square.as_chunks_mut::<3>().0 {
                    let grey = luma(*pixel);
                    pixel.iter_mut().for_each(|v| *v = blend(grey, *v, factor));
                }
            }
            Edit::Contrast { factor } => {
                let mean = mean_luma(square);
                by_value(square, |v| blend(mean, v, factor));
            }
            Edit::Brightness { factor } => by_value(square, |v| blend(0, v, factor)),
            Edit::Sharpness { factor } => sharpness(square, side, factor, scratch),
            Edit::Erase { left, top, width, height, fill } => {
                let rows = square.chunks_exact_mut(3 * side).skip(top as usize).take(height as usize);
                for row in rows {
                    let part = &mut row[3 * left as usize..][..3 * width as usize];
                    part.as_chunks_mut::<3>().0.fill(fill);
                }
            }
        }
    }

    /// The edit of a square of this side as a device knows it: an operation and its numbers.
    ///
    /// # Panics
    /// If a rectangle is not inside the square.
    pub fn program(self, side: u32) -> (Operation, [i32; 7]) {
        let colour = |[red, green, blue]: [u8; 3]| i32::from_le_bytes([red, green, blue, 0]);
        let one = |number| [number, 0, 0, 0, 0, 0, 0];
        match self {
            Edit::Affine { matrix: [a, b, c, d, e, f], fill } => {
                (Operation::Affine, [a, b, c, d, e, f, colour(fill)])
            }
            Edit::FlipVertically => {
                let last = (side as i32 - 1) * ONE;
                (Operation::Affine, [ONE, 0, 0, 0, -ONE, last, 0])
            }
            Edit::AutoContrast => (Operation::AutoContrast, one(0)),
            Edit::Equalize => (Operation::Equalize, one(0)),
            Edit::Invert => (Operation::Invert, one(0)),
            Edit::Posterize { bits } => (Operation::Posterize, one(i32::from(posterize_mask(bits)))),
            Edit::Solarize { threshold } => (Operation::Solarize, one(i32::from(threshold))),
            Edit::SolarizeAdd { add } => (Operation::SolarizeAdd, one(i32::from(add))),
            Edit::Color { factor } => (Operation::Color, one(factor)),
            Edit::Contrast { factor } => (Operation::Contrast, one(factor)),
            Edit::Brightness { factor } => (Operation::Brightness, one(factor)),
            Edit::Sharpness { factor } => (Operation::Sharpness, one(factor)),
            Edit::Erase { left, top, width, height, fill } => {
                let inside =
                    |first: u32, length: u32| u64::from(first) + u64::from(length) <= u64::from(side);
                assert!(
                    inside(left, width) && inside(top, height),
                    "a rectangle inside {side}×{side}: {self:?}"
                );
                let [left, top, width, height] = [left, top, width, height].map(|length| length as i32);
                (Operation::Erase, [left, top, width, height, colour(fill), 0, 0])
            }
        }
    }
}

/// v of the image beside what it is blended with; a factor of 0 gives `other`, [`ONE`] gives `v`.
fn blend(other: u8, v: u8, factor: i32) -> u8 {
    let (other, v, factor) = (i64::from(other), i64::from(v), i64::from(factor));
    let value = (other * i64::from(ONE) + factor * (v - other)) >> 16;
    value.clamp(0, 255) as u8
}

/// Pillow's grey of a colour (ITU-R 601-2, rounded).
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// The mean of all greys, rounded.
fn mean_luma(square: &[u8]) -> u8 {
    let pixels = square.as_chunks::<3>().0;
    let sum: u64 = pixels.iter().map(|pixel| u64::from(luma(*pixel))).sum();
    let count = pixels.len().max(1) as u64;
    ((2 * sum + count) / (2 * count)) as u8
}

fn posterize_mask(bits: u8) -> u8 {
    !(0xff_u16 >> bits.min(8)) as u8
}

fn by_value(square: &mut [u8], value: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|v| value(v as u8));
    square.iter_mut().for_each(|v| *v = table[*v as usize]);
}

/// Replaces the values of each channel by a table that follows from its histogram.
fn by_channel(square: &mut [u8], table: fn(&[u32; 256]) -> Option<[u8; 256]>) {
    let mut histograms = [[0; 256]; 3];
    for pixel in square.as_chunks::<3>().0 {
        for (histogram, &v) in histograms.iter_mut().zip(pixel) {
            histogram[v as usize] += 1;
        }
    }
    let tables = histograms.map(|histogram| table(&histogram));
    for pixel in square.as_chunks_mut::<3>().0 {
        for (v, table) in pixel.iter_mut().zip(&tables) {
            if let Some(table) = table {
                *v = table[*v as usize];
            }
        }
    }
}

/// None: the channel stays as it is.
fn auto_contrast(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let least = histogram.iter().position(|&count| count > 0)? as u32;
    let most = histogram.iter().rposition(|&count| count > 0)? as u32;
    (least < most).then(|| {
        std::array::from_fn(|v| {
            let above = (v as u32).clamp(least, most) - least;
            (above * 255 / (most - least)) as u8
        })
    })
}

/// None: the channel stays as it is.
fn equalize(histogram: &[u32; 256]) -> Option<[u8; 256]> {
    let all: u32 = histogram.iter().sum();
    let last = *histogram.iter().rfind(|&&count| count > 0)?;
    let step = (all - last) / 255;
    (step > 0).then(|| {
        let mut below = step / 2;
        std::array::from_fn(|v| {
            let value = below / step;
            below += histogram[v];
            value.min(255) as u8
        })
    })
}

fn flip_vertically(square: &mut [u8], side: usize) {
    let row = 3 * side;
    let (upper, lower) = square.split_at_mut(side.div_ceil(2) * row);
    // The row in the middle of an odd side stays.
    for (a, b) in upper.chunks_exact_mut(row).zip(lower.chunks_exact_mut(row).rev()) {
        a.swap_with_slice(b);
    }
}

fn affine(square: &mut [u8], side: usize, matrix: [i32; 6], fill: [u8; 3], scratch: &mut Vec<u8>) {
    scratch.clear();
    scratch.extend_from_slice(square);
    let from = scratch.as_chunks::<3>().0;
    let [a, b, c, d, e, f] = matrix.map(i64::from);
    for (y, row) in square.chunks_exact_mut(3 * side).enumerate() {
        let (left, top) = (b * y as i64 + c, e * y as i64 + f);
        for (x, pixel) in row.as_chunks_mut::<3>().0.iter_mut().enumerate() {
            let column = usize::try_from((left + a * x as i64) >> 16).ok().filter(|&column| column < side);
            let line = usize::try_from((top + d * x as i64) >> 16).ok().filter(|&line| line < side);
            *pixel = match (column, line) {
                (Some(column), Some(line)) => from[line * side + column],
                _ => fill,
            };
        }
    }
}

/// Pillow's `SMOOTH` is the mean of nine pixels, the middle one five times; the edge keeps its pixels.
fn sharpness(square: &mut [u8], side: usize, factor: i32, scratch: &mut Vec<u8>) {
    if side < 3 {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(square);
    let row = 3 * side;
    for y in 1..side - 1 {
        for at in y * row + 3..(y + 1) * row - 3 {
            let three =
                |at: usize| u32::from(scratch[at - 3]) + u32::from(scratch[at]) + u32::from(scratch[at + 3]);
            let sum = three(at - row) + three(at) + three(at + row) + 4 * u32::from(scratch[at]);
            let smooth = ((2 * sum + 13) / 26) as u8;
            square[at] = blend(smooth, scratch[at], factor);
        }
    }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
