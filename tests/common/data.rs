//! Small sets for the tests of the data path.
#![allow(dead_code)] // each test uses a part

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use effnet::data::pack::{IdxSet, PackOptions, PackSummary, pack_idx_bytes};
use effnet::data::{Dataset, Source};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes that do not repeat: a multiplicative hash of their position.
pub fn noise(place: u64) -> u8 {
    (place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// An IDX file of images.
pub fn idx_images(count: u32, rows: u32, columns: u32, salt: u64) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3];
    for number in [count, rows, columns] {
        bytes.extend(number.to_be_bytes());
    }
    let area = u64::from(count) * u64::from(rows) * u64::from(columns);
    bytes.extend((0..area).map(|at| noise(at + (salt << 32))));
    bytes
}

/// An IDX file of labels 0, 1, ... classes - 1, 0, 1, ...
pub fn idx_labels(count: u32, classes: u32) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 1];
    bytes.extend(count.to_be_bytes());
    bytes.extend((0..count).map(|at| (at % classes) as u8));
    bytes
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Packs `train` and `val` grey images of `side` into `out`, in shards of `shard_bytes`.
pub fn pack_grey(out: &Path, train: u32, val: u32, side: u32, shard_bytes: u64) -> PackSummary {
    let set = IdxSet {
        train_images: &idx_images(train, side, side, 1),
        train_labels: &idx_labels(train, 5.min(train)),
        val_images: &idx_images(val, side, side, 2),
        val_labels: &idx_labels(val, 5.min(train)),
    };
    let options = PackOptions { shard_bytes, threads: 2, ..PackOptions::default() };
    pack_idx_bytes(&set, None, out, &options, &mut |_| ()).unwrap()
}

pub fn open(dir: &Path) -> Source {
    Source::Packed(Arc::new(Dataset::open(dir).unwrap()))
}

/// Flips bits of one byte of a file.
pub fn flip(path: &Path, at: usize, bits: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= bits;
    std::fs::write(path, bytes).unwrap();
}
