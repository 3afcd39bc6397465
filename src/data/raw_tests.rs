//! Which images a raw batch takes. What a device makes of one is compared with the CPU's squares in `tests/operators/image.rs`.

use super::*;
use crate::data::CropMode;
use crate::data::augment::choose_geometry;

#[test]
fn raw_batch_refuses_images_without_room_but_takes_resized_ones() {
    let (images, resolution) = (3, 32);
    let mut buffer = vec![0; least_raw_batch_bytes(images, resolution)];
    let mut scratch = RawScratch::default();
    let bytes = vec![9; 400 * 300 * 3];
    let image = View { width: 400, height: 300, channels: 3, bytes: &bytes };
    let geometry = choose_geometry((400, 300), resolution, CropMode::Resized, None).unwrap();
    let mut batch = RawBatch::new(&mut buffer, images, resolution);
    let edits = [Edit::Invert; MOST_EDITS];
    let resized = &bytes[..resolution * resolution * 3];
    batch.push_resized(resized, &edits, &mut scratch);
    let used = batch.used();
    assert!(!batch.push(image, &geometry, &[], &mut scratch));
    assert_eq!(batch.used(), used);
    batch.push_resized(resized, &edits, &mut scratch);
    batch.push_resized(resized, &edits, &mut scratch);
    assert_eq!(batch.used(), buffer.len());
}

/// One output column would need more bytes of a row than a device holds.
#[test]
fn raw_batch_refuses_a_window_too_wide() {
    let bytes = vec![9; 65_535 * 3];
    let image = View { width: 65_535, height: 1, channels: 3, bytes: &bytes };
    let geometry = choose_geometry((65_535, 1), 8, CropMode::Pad, None).unwrap();
    let mut buffer = vec![0; 1 << 20];
    assert!(!RawBatch::new(&mut buffer, 1, 8).push(image, &geometry, &[], &mut RawScratch::default()));
}
