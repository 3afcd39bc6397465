//! Which images a raw batch takes. What a device makes of one is compared with the CPU's squares in `tests/operators/image.rs`.

use super::*;
use crate::data::CropMode;
use crate::data::augment::{Auto, Look, Policy, choose_geometry};

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

/// The policy with the most edits that a recipe can ask for.
#[test]
fn raw_batch_has_room_for_the_edits_of_any_policy() {
    assert!("rand-n17".parse::<Auto>().is_err());
    let policy = Policy {
        vertical_flip: 1.0,
        auto: "rand-n16".parse().unwrap(),
        color_jitter: 0.5,
        random_erasing: 1.0,
        ..Policy::STANDARD
    };
    let mut edits = Vec::new();
    let mut most = 0;
    for id in 0..200_000 {
        Look { policy, seed: 1, epoch: 0, id }.edits(64, &mut edits);
        most = most.max(edits.len());
    }
    assert_eq!(most, MOST_EDITS, "a look in 65,536 makes all sixteen operations");
}

fn pushed(edits: &[Edit]) -> Vec<u8> {
    let (side, square) = (4, [7; 48]);
    let mut buffer = vec![0; least_raw_batch_bytes(2, side)];
    let mut batch = RawBatch::new(&mut buffer, 2, side);
    batch.push_resized(&square, edits, &mut RawScratch::default());
    batch.mix(0, Mix::Exchange(Rectangle::all((4, 4))));
    buffer
}

#[test]
#[should_panic(expected = "22 edits")]
fn raw_batch_refuses_more_edits_than_it_has_room_for() {
    pushed(&[Edit::Invert; MOST_EDITS + 1]);
}

#[test]
#[should_panic(expected = "a rectangle inside 4×4")]
fn raw_batch_refuses_a_rectangle_outside_the_square() {
    pushed(&[Edit::Erase { left: 2, top: 0, width: 3, height: 1, fill: [0; 3] }]);
}

#[test]
#[should_panic(expected = "image 0 and its neighbour")]
fn raw_batch_mixes_no_image_whose_neighbour_is_missing() {
    pushed(&[]);
}
