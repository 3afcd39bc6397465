//! Preprocessing against a naive reference: every output pixel from the definition, resampling in f64.

use super::*;
use crate::random::{Purpose, draw};

fn look(seed: u64, epoch: u32, id: u64) -> Look {
    Look { policy: Policy::STANDARD, seed, epoch, id }
}

/// A coarse pattern with sharp edges and some noise, different in every channel.
fn picture(width: u32, height: u32, channels: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for y in 0..height {
        for x in 0..width {
            for c in 0..u32::from(channels) {
                let block = (x / 7 + y / 5 + c) % 3 * 90;
                bytes.push(
                    (block + draw(9, u64::from(y * width + x), c, Purpose::Synthetic, 7)[0] % 60) as u8,
                );
            }
        }
    }
    bytes
}

fn view(bytes: &[u8], width: u32, height: u32, channels: u8) -> View<'_> {
    View { width, height, channels, bytes }
}

fn run(image: View, resolution: usize, mode: CropMode, look: Option<Look>) -> Vec<u8> {
    // Dirty, as a recycled batch is.
    let mut out = vec![77; resolution * resolution * 3];
    preprocess(image, resolution, mode, look, &mut Scratch::default(), &mut out).unwrap();
    out
}

/// Weights of a triangle filter that widens when scaling down, over `from` pixels, for output pixel `at` of `to`.
fn triangle(from: u32, to: u32, at: u32) -> Vec<f64> {
    let scale = f64::from(from) / f64::from(to);
    let reach = scale.max(1.0);
    let centre = (f64::from(at) + 0.5) * scale;
    let weights: Vec<f64> =
        (0..from).map(|x| (1.0 - ((f64::from(x) + 0.5 - centre) / reach).abs()).max(0.0)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// Resamples a rectangle of an image; pixels outside have no influence.
fn naive_resize(image: View, part: Rectangle, to: (u32, u32)) -> Vec<f64> {
    let channels = u32::from(image.channels);
    let mut out = Vec::new();
    for y in 0..to.1 {
        let rows = triangle(part.height, to.1, y);
        for x in 0..to.0 {
            let columns = triangle(part.width, to.0, x);
            for c in 0..3 {
                let mut value = 0.0;
                for (v, row) in (0..).zip(&rows) {
                    for (u, column) in (0..).zip(&columns) {
                        if row * column > 0.0 {
                            let at = ((part.top + v) * image.width + part.left + u) * channels + c % channels;
                            value += row * column * f64::from(image.bytes[at as usize]);
                        }
                    }
                }
                out.push(value);
            }
        }
    }
    out
}

/// The resizer rounds after each of its two passes: half a level each, and a little for its 16-bit weights.
fn assert_near(found: &[u8], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let distance = (f64::from(found) - expected).abs();
        assert!(distance <= 1.5, "byte {at}: {found}, expected {expected}");
    }
}

fn mirrored(values: &[f64], side: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for row in values.chunks(3 * side) {
        row.chunks(3).rev().for_each(|pixel| out.extend(pixel));
    }
    out
}

#[test]
fn training_crops_match_the_definition() {
    let mut mirrors = 0;
    for (width, height, channels) in [(90, 61, 3), (61, 90, 1), (20, 24, 3)] {
        let bytes = picture(width, height, channels);
        let image = view(&bytes, width, height, channels);
        for id in 0..12 {
            let look = look(5, 2, id);
            let geometry = choose_geometry(image.size(), 32, CropMode::Resized, Some(look)).unwrap();
            let mut expected = naive_resize(image, geometry.cut, (32, 32));
            if geometry.mirrored {
                mirrors += 1;
                expected = mirrored(&expected, 32);
            }
            assert_near(&run(image, 32, CropMode::Resized, Some(look)), &expected);
        }
    }
    assert!((1..36).contains(&mirrors));
}

#[test]
fn evaluation_is_resize_then_central_crop() {
    for (width, height, channels) in
        [(75, 50, 3), (50, 75, 1), (64, 64, 3), (37, 37, 3), (23, 31, 3), (200, 90, 1)]
    {
        let bytes = picture(width, height, channels);
        let image = view(&bytes, width, height, channels);
        let whole = Rectangle { left: 0, top: 0, width, height };
        // round(32 / 0.875) = 37; the longer side is cut to a whole number, as torchvision does.
        let size = if width <= height { (37, 37 * height / width) } else { (37 * width / height, 37) };
        let full = naive_resize(image, whole, size);
        let centre = |side: u32| (f64::from(side - 32) / 2.0).round_ties_even() as usize;
        let mut expected = Vec::new();
        for y in 0..32 {
            let start = ((y + centre(size.1)) * size.0 as usize + centre(size.0)) * 3;
            expected.extend(&full[start..start + 32 * 3]);
        }
        assert_near(&run(image, 32, CropMode::Resized, None), &expected);
    }
}

#[test]
fn padding_matches_the_definition() {
    // Size, channels, and how far an image may move: to the edge of the square, at most 4; 4 where it fills it.
    let cases = [
        (28, 28, 1, (2, 2)),
        (28, 28, 3, (2, 2)),
        (32, 32, 3, (4, 4)),
        (31, 5, 1, (0, 4)),
        (1, 1, 3, (4, 4)),
    ];
    for (width, height, channels, (across, along)) in cases {
        let bytes = picture(width, height, channels);
        let image = view(&bytes, width, height, channels);
        for id in 0..200 {
            let look = look(1, 0, id);
            let geometry = choose_geometry(image.size(), 32, CropMode::Pad, Some(look)).unwrap();
            let right = geometry.place.0 - i64::from((32 - width) / 2);
            let down = geometry.place.1 - i64::from((32 - height) / 2);
            assert!(right.abs() <= i64::from(across) && down.abs() <= i64::from(along));
            let found = run(image, 32, CropMode::Pad, Some(look));
            for (at, &value) in found.iter().enumerate() {
                let (y, x, c) = ((at / 96) as i64, (at / 3 % 32) as i64, at % 3);
                let x = if geometry.mirrored { 31 - x } else { x };
                let u = x - i64::from((32 - width) / 2) - right;
                let v = y - i64::from((32 - height) / 2) - down;
                let inside = (0..i64::from(width)).contains(&u) && (0..i64::from(height)).contains(&v);
                let channel = if channels == 1 { 0 } else { c };
                let expected = if inside {
                    bytes[(v as usize * width as usize + u as usize) * channels as usize + channel]
                } else {
                    0
                };
                assert_eq!(value, expected, "{width}x{height}, sample {id}, byte {at}");
            }
        }
    }
}

#[test]
fn padding_of_evaluation_is_centred_and_shrinks_large_images() {
    let bytes = picture(28, 28, 1);
    let found = run(view(&bytes, 28, 28, 1), 32, CropMode::Pad, None);
    assert_eq!(found[(2 * 32 + 2) * 3], bytes[0]);
    assert_eq!(found[(29 * 32 + 29) * 3 + 2], bytes[28 * 28 - 1]);
    assert!(found[..2 * 96].iter().all(|&v| v == 0) && found[30 * 96..].iter().all(|&v| v == 0));

    let bytes = picture(96, 48, 3);
    let image = view(&bytes, 96, 48, 3);
    let found = run(image, 32, CropMode::Pad, None);
    let whole = Rectangle { left: 0, top: 0, width: 96, height: 48 };
    assert_near(&found[8 * 96..24 * 96], &naive_resize(image, whole, (32, 16)));
    assert!(found[..8 * 96].iter().all(|&v| v == 0) && found[24 * 96..].iter().all(|&v| v == 0));
}

#[test]
fn grey_gives_what_its_rgb_copy_gives() {
    let grey = picture(60, 45, 1);
    let rgb: Vec<u8> = grey.iter().flat_map(|&v| [v; 3]).collect();
    for mode in [CropMode::Resized, CropMode::Pad] {
        for id in 0..8 {
            for look in [None, Some(look(3, 1, id))] {
                let one = run(view(&grey, 60, 45, 1), 32, mode, look);
                assert_eq!(one, run(view(&rgb, 60, 45, 3), 32, mode, look), "{mode}, {look:?}");
            }
        }
    }
}

#[test]
fn preprocess_takes_extreme_images_in_bounded_memory() {
    for (width, height) in [(65_535, 1), (1, 65_535), (1, 1)] {
        let bytes = vec![200; width as usize * height as usize * 3];
        for mode in [CropMode::Resized, CropMode::Pad] {
            for look in [None, Some(look(0, 0, 0))] {
                let mut scratch = Scratch::default();
                let mut out = vec![0; 64 * 64 * 3];
                let image = view(&bytes, width, height, 3);
                preprocess(image, 64, mode, look, &mut scratch, &mut out).unwrap();
                assert!(out.contains(&200));
                assert!(scratch.resizer.size_of_internal_buffers() < 32 << 20, "{width}x{height} {mode}");
            }
        }
    }
}

#[test]
fn preprocess_refuses_an_unresolved_mode_and_a_wrong_length() {
    let mut out = vec![0; 32 * 32 * 3];
    let image = view(&[0; 12], 2, 2, 3);
    let scratch = &mut Scratch::default();
    assert!(preprocess(image, 32, CropMode::Auto, None, scratch, &mut out).is_err());
    let image = view(&[0; 11], 2, 2, 3);
    assert!(preprocess(image, 32, CropMode::Pad, None, scratch, &mut out).is_err());
}

#[test]
fn crop_mode_reads_and_writes_its_names() {
    for mode in [CropMode::Auto, CropMode::Resized, CropMode::Pad] {
        assert_eq!(mode.to_string().parse(), Ok(mode));
        assert_eq!(serde_json::to_string(&mode).unwrap(), format!("\"{mode}\""));
    }
    assert!("padded".parse::<CropMode>().unwrap_err().contains("auto, resized or pad"));
}

#[test]
fn crop_mode_auto_pads_only_what_fits() {
    for (largest, expected) in
        [((28, 20), CropMode::Pad), ((32, 32), CropMode::Pad), ((8, 33), CropMode::Resized)]
    {
        assert_eq!(CropMode::Auto.resolve(largest, 32), expected);
        assert_eq!(CropMode::Pad.resolve(largest, 32), CropMode::Pad);
        assert_eq!(CropMode::Resized.resolve(largest, 32), CropMode::Resized);
    }
    // Photographs are resized even where they would fit.
    assert_eq!(CropMode::Auto.resolve((64, 64), 224), CropMode::Pad);
    assert_eq!(CropMode::Auto.resolve((160, 120), 224), CropMode::Resized);
}
