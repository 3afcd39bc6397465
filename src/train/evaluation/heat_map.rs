//! The picture of a class activation map: the image as the network saw it, and beside it the same image under the map in
//! colours.
//!
//! As in the code of Zhou et al., a map is scaled to 0 for its least and 1 for its greatest value: colours compare places
//! of one image, not images. Between the places of the map the values are interpolated (bilinear, the map's places being
//! squares whose values stand in their middle). The colours are viridis of matplotlib (Smith and van der Walt, 2015, CC0),
//! which rise evenly in lightness; where the map is low the image shows through.

use image::{Rgb, RgbImage};

/// Small images are shown with their pixels visible, at least so wide.
const LEAST_WIDTH: usize = 256;
/// Between the two images, in pixels.
const GAP: usize = 8;
/// The share of the colour where the map is highest.
const MOST_COLOUR: f64 = 0.75;
/// viridis at 0, 1/16, …, 1; lines between them are at most 6 of 255 away from its 256 colours.
const COLOURS: [[u8; 3]; 17] = [
    [68, 1, 84],
    [72, 24, 106],
    [71, 45, 123],
    [66, 64, 134],
    [59, 82, 139],
    [51, 99, 141],
    [44, 114, 142],
    [38, 129, 142],
    [33, 144, 140],
    [31, 159, 136],
    [40, 174, 128],
    [62, 188, 116],
    [93, 201, 99],
    [130, 211, 76],
    [171, 220, 50],
    [213, 226, 26],
    [253, 231, 37],
];

/// Draws a map of `side` × `side` values over an image of R×R×3 bytes.
///
/// # Panics
/// If the image or the map is empty or not square.
pub fn picture(square: &[u8], map: &[f64]) -> RgbImage {
    let resolution = (square.len() / 3).isqrt();
    let side = map.len().isqrt();
    assert!(
        side > 0 && side * side == map.len() && resolution > 0 && resolution * resolution * 3 == square.len()
    );
    let times = LEAST_WIDTH.div_ceil(resolution);
    let width = resolution * times;
    let strengths = strengths(map);
    RgbImage::from_fn((2 * width + GAP) as u32, width as u32, |x, y| {
        let (x, y) = (x as usize, y as usize);
        let own = |x: usize| {
            let at = (y / times * resolution + x / times) * 3;
            [square[at], square[at + 1], square[at + 2]]
        };
        match x.checked_sub(width + GAP) {
            Some(x) => Rgb(overlay(own(x), at(&strengths, side, [x, y], width))),
            None if x < width => Rgb(own(x)),
            None => Rgb([255; 3]),
        }
    })
}

/// The map from 0 to 1; 0 everywhere if all its values are equal or one is not finite.
fn strengths(map: &[f64]) -> Vec<f64> {
    let least = map.iter().copied().fold(f64::INFINITY, f64::min);
    let range = map.iter().copied().fold(f64::NEG_INFINITY, f64::max) - least;
    let sound = range > 0.0 && map.iter().all(|value| value.is_finite());
    map.iter().map(|value| if sound { (value - least) / range } else { 0.0 }).collect()
}

/// The map at the middle of a pixel of an image of this width.
fn at(map: &[f64], side: usize, pixel: [usize; 2], width: usize) -> f64 {
    let [x, y] = pixel.map(|pixel| {
        let place = (pixel as f64 + 0.5) * side as f64 / width as f64 - 0.5;
        let place = place.clamp(0.0, (side - 1) as f64);
        let first = (place as usize).min(side.saturating_sub(2));
        (first, (first + 1).min(side - 1), place - first as f64)
    });
    let row = |y: usize| map[y * side + x.0] * (1.0 - x.2) + map[y * side + x.1] * x.2;
    row(y.0) * (1.0 - y.2) + row(y.1) * y.2
}

fn overlay(pixel: [u8; 3], strength: f64) -> [u8; 3] {
    let (colour, share) = (colour(strength), MOST_COLOUR * strength);
    std::array::from_fn(|c| (f64::from(pixel[c]) * (1.0 - share) + colour[c] * share).round() as u8)
}

/// The colour of a strength from 0 to 1.
fn colour(strength: f64) -> [f64; 3] {
    let place = strength.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let first = (place as usize).min(COLOURS.len() - 2);
    let share = place - first as f64;
    std::array::from_fn(|c| {
        f64::from(COLOURS[first][c]) * (1.0 - share) + f64::from(COLOURS[first + 1][c]) * share
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_has_the_image_twice_and_the_heat_where_the_map_is_high() {
        let square: Vec<u8> = (0..32 * 32).flat_map(|at| [at as u8, (at / 32) as u8, 90]).collect();
        let picture = picture(&square, &[-2.0, 0.0, 0.0, 6.0]);
        assert_eq!(picture.dimensions(), (256 + 8 + 256, 256));
        for (x, y) in [(0, 0), (17, 200), (255, 255)] {
            let at = (y / 8 * 32 + x / 8) as usize * 3;
            assert_eq!(picture.get_pixel(x, y).0, square[at..at + 3]);
        }
        assert_eq!(picture.get_pixel(260, 9).0, [255; 3]);
        // The lowest corner is the image itself, the highest the end of the colours at three quarters.
        assert_eq!(picture.get_pixel(264, 0).0, square[..3]);
        let last = &square[square.len() - 3..];
        let most = [253.0, 231.0, 37.0];
        let mixed: Vec<u8> =
            (0..3).map(|c| (f64::from(last[c]) * 0.25 + most[c] * 0.75).round() as u8).collect();
        assert_eq!(picture.get_pixel(264 + 255, 255).0, mixed[..]);
    }

    #[test]
    fn map_is_interpolated_between_the_middles_of_its_places() {
        let map = [0.0, 1.0, 2.0, 3.0];
        assert_eq!([[0, 0], [7, 0], [0, 7], [7, 7]].map(|pixel| at(&map, 2, pixel, 8)), [0.0, 1.0, 2.0, 3.0]);
        // Pixels 2 to 5 of eight lie between the middles of the places at 1.5 and 5.5.
        assert_eq!(at(&map, 2, [3, 1], 8), 0.375);
        assert_eq!(at(&map, 2, [1, 4], 8), 2.0 * 0.625);
        assert_eq!(at(&[4.0], 1, [5, 2], 8), 4.0);
    }

    #[test]
    fn strengths_of_a_map_without_contrast_are_zero() {
        assert_eq!(strengths(&[1.0, 3.0, 2.0]), [0.0, 1.0, 0.5]);
        assert_eq!(strengths(&[2.0; 3]), [0.0; 3]);
        assert_eq!(strengths(&[1.0, f64::NAN, 2.0]), [0.0; 3]);
        assert_eq!(strengths(&[1.0, f64::INFINITY, 2.0]), [0.0; 3]);
    }

    #[test]
    fn colours_rise_in_lightness() {
        let light = |step: usize| {
            let [r, g, b] = colour(step as f64 / 64.0);
            0.2126 * r + 0.7152 * g + 0.0722 * b
        };
        assert!((0..64).all(|step| light(step) < light(step + 1)));
        assert_eq!((colour(0.0), colour(1.0)), ([68.0, 1.0, 84.0], [253.0, 231.0, 37.0]));
    }
}
