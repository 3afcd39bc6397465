//! What a device makes of a raw batch, done here one byte at a time, against `preprocess`.

use super::*;
use crate::data::CropMode;
use crate::data::augment::{Look, Scratch, preprocess};
use crate::random::{Purpose, draw};

fn noise(width: u32, height: u32, channels: u8) -> Vec<u8> {
    let count = u64::from(width * height) * u64::from(channels);
    // Mostly extremes, where rounding and clipping show.
    (0..count)
        .map(|at| match draw(3, at, width, Purpose::Synthetic, height) {
            [bits, ..] if bits % 4 == 0 => (bits >> 24) as u8,
            [bits, ..] => {
                if bits % 4 == 1 {
                    0
                } else {
                    255
                }
            }
        })
        .collect()
}

/// The combination of a table's output position: Σ weight·byte, rounded.
fn combine(
    table: &[u8],
    outputs: u32,
    window: u32,
    precision: u32,
    at: u32,
    byte: impl Fn(usize) -> u8,
) -> u8 {
    let short = |index: usize| u16::from_le_bytes([table[2 * index], table[2 * index + 1]]);
    let (first, count) = (short(2 * at as usize), short(2 * at as usize + 1));
    let weights = 2 * outputs as usize + at as usize * window as usize;
    let products = (0..count as usize)
        .map(|tap| i32::from(short(weights + tap) as i16) * i32::from(byte(first as usize + tap)));
    let sum = products.sum::<i32>() + (1 << (precision - 1));
    (sum >> precision).clamp(0, 255) as u8
}

fn square(buffer: &[u8], image: usize, resolution: usize) -> Vec<u8> {
    let at = image * size_of::<Sample>();
    let s: Sample = bytemuck::pod_read_unaligned(&buffer[at..][..size_of::<Sample>()]);
    let (pixels, columns, rows) =
        (&buffer[s.pixels as usize..], &buffer[s.columns as usize..], &buffer[s.rows as usize..]);
    let mut out = vec![0; resolution * resolution * 3];
    for (y, x, c) in
        (0..s.height).flat_map(|y| (0..s.width).flat_map(move |x| (0..3).map(move |c| (y, x, c))))
    {
        let (column, row) = (i64::from(s.left) + i64::from(x), i64::from(s.top) + i64::from(y));
        let side = resolution as i64;
        let column = if s.mirrored == 1 { side - 1 - column } else { column };
        if !(0..side).contains(&column) || !(0..side).contains(&row) {
            continue;
        }
        let channels = s.channels as usize;
        let byte = combine(columns, s.width, s.column_window, s.column_precision, x, |u| {
            combine(rows, s.height, s.row_window, s.row_precision, y, |v| {
                pixels[v * s.pitch as usize + u * channels + c % channels]
            })
        });
        out[(row as usize * resolution + column as usize) * 3 + c] = byte;
    }
    out
}

#[test]
fn a_raw_image_gives_the_cpu_s_bytes() {
    let sizes =
        [(90, 61), (61, 90), (32, 32), (33, 31), (20, 24), (28, 28), (1, 1), (301, 7), (5, 400), (150, 149)];
    let resolution = 32;
    let mut scratch = RawScratch::default();
    let mut buffer = vec![77; 1 << 20];
    for (number, (width, height)) in sizes.into_iter().enumerate() {
        let channels = if number % 3 == 1 { 1 } else { 3 };
        let bytes = noise(width, height, channels);
        let image = View { width, height, channels, bytes: &bytes };
        for mode in [CropMode::Resized, CropMode::Pad] {
            for id in 0..6 {
                let look = (id > 0).then_some(Look { seed: 5, epoch: 2, id });
                let mut expected = vec![1; resolution * resolution * 3];
                preprocess(image, resolution, mode, look, &mut Scratch::default(), &mut expected).unwrap();
                let geometry = Geometry::new((width, height), resolution, mode, look).unwrap();
                let mut batch = RawBatch::new(&mut buffer, 1, resolution);
                assert!(batch.push(image, &geometry, &mut scratch));
                let found = square(&buffer, 0, resolution);
                assert!(found == expected, "{width}x{height}x{channels}, {mode}, {look:?}");
            }
        }
    }
}

#[test]
fn what_has_no_room_is_refused_and_resized_images_always_have() {
    let (images, resolution) = (3, 32);
    let mut buffer = vec![0; RawBatch::least_bytes(images, resolution)];
    let mut scratch = RawScratch::default();
    let bytes = noise(400, 300, 3);
    let image = View { width: 400, height: 300, channels: 3, bytes: &bytes };
    let geometry = Geometry::new((400, 300), resolution, CropMode::Resized, None).unwrap();
    let mut batch = RawBatch::new(&mut buffer, images, resolution);
    let resized = noise(32, 32, 3);
    batch.push_resized(&resized, &mut scratch);
    let used = batch.used();
    assert!(!batch.push(image, &geometry, &mut scratch));
    assert_eq!(batch.used(), used);
    batch.push_resized(&resized, &mut scratch);
    batch.push_resized(&resized, &mut scratch);
    assert_eq!(batch.used(), buffer.len());
    assert_eq!(square(&buffer, 2, resolution), resized);
}

#[test]
fn a_batch_s_buffer_is_in_proportion_and_has_room_for_squares() {
    for resolution in [1, 32, 224, 300, 380, 600] {
        let one = RawBatch::bytes(1, resolution);
        for images in [1, 3, 16, 1000] {
            assert_eq!(RawBatch::bytes(images, resolution), images * one);
            assert!(images * one >= RawBatch::least_bytes(images, resolution));
        }
        assert!(one.is_multiple_of(ALIGNMENT), "the next batch begins aligned");
        assert!(one < 4 * (3 * resolution + 32) * (resolution + 8));
    }
    // Of an ordinary photograph: half of it, as training's crops are on average, or evaluation's centre.
    let (half, centre) = (500 * 375 * 3 / 2, 328 * 328 * 3);
    assert!(RawBatch::bytes(1, 224) > centre && RawBatch::bytes(1, 224) > half * 3 / 2);
}

/// One output column would look at more than a device holds.
#[test]
fn a_window_too_wide_is_refused() {
    let bytes = vec![9; 65_535 * 3];
    let image = View { width: 65_535, height: 1, channels: 3, bytes: &bytes };
    let geometry = Geometry::new((65_535, 1), 8, CropMode::Pad, None).unwrap();
    let mut buffer = vec![0; 1 << 20];
    assert!(!RawBatch::new(&mut buffer, 1, 8).push(image, &geometry, &mut RawScratch::default()));
}
