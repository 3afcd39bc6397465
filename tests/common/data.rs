//! Small sets of images, packed and not, and the loader's settings for them.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use effnet::data::pack::{IdxSet, PackOptions, PackSummary, pack_idx_bytes};
use effnet::data::{CropMode, Dataset, Form, LoaderConfig, Policy, Sampling, Share, Source, Split};
use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

/// Squares of 32 pixels for training, from one thread; a test changes what it is about.
pub const LOADER: LoaderConfig = LoaderConfig {
    split: Split::Train,
    batch: 16,
    share: Share::WHOLE,
    resolution: 32,
    crop: CropMode::Pad,
    form: Form::Squares,
    augment: Some(Policy::STANDARD),
    sampling: Sampling::PLAIN,
    seed: 3,
    first_step: 0,
    steps: 12,
    threads: 1,
    ahead: 3,
    memory: None,
    processors: Vec::new(),
};

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

/// Writes the four IDX files of a set of `train` and `val` images of [rows, columns], in ten classes.
pub fn idx_folder(dir: &Path, train: u32, val: u32, [rows, columns]: [u32; 2]) {
    std::fs::create_dir_all(dir).unwrap();
    for (name, count, salt) in [("train", train, 1), ("t10k", val, 2)] {
        let images = idx_images(count, rows, columns, salt);
        std::fs::write(dir.join(format!("{name}-images-idx3-ubyte")), images).unwrap();
        std::fs::write(dir.join(format!("{name}-labels-idx1-ubyte")), idx_labels(count, 10)).unwrap();
    }
}

/// Saves an image; the folder need not exist.
pub fn save(path: &Path, image: impl Into<image::DynamicImage>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(path).unwrap();
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

/// A directory in which `data` is a set of five classes: 40 grey images to train, 13 to validate.
pub fn packed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(&dir.path().join("data"), 40, 13, 28, 1 << 20);
    dir
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
