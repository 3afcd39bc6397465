//! The set that travels inside the program: 12,000 images of Fashion-MNIST (see the README beside this file).
//!
//! The demo packs it like any other set; all later steps are the ordinary ones, from shards to a checkpoint.

use std::path::Path;

use super::pack::{IdxSet, PackOptions, pack_idx_bytes};
use super::{DataError, Dataset};

const IMAGES: IdxSet<'static> = IdxSet {
    train_images: include_bytes!("train-images-idx3-ubyte.gz"),
    train_labels: include_bytes!("train-labels-idx1-ubyte.gz"),
    val_images: include_bytes!("t10k-images-idx3-ubyte.gz"),
    val_labels: include_bytes!("t10k-labels-idx1-ubyte.gz"),
};

pub const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

/// Opens the demo's set in `dir`; packs it first if it is not there.
///
/// # Errors
/// Those of packing and opening: a full disk, a directory that holds something else.
pub fn open(dir: &Path) -> Result<Dataset, DataError> {
    match Dataset::open(dir) {
        Ok(dataset) => return Ok(dataset),
        Err(DataError::NoDataset { .. }) => {}
        Err(other) => return Err(other),
    }
    pack_idx_bytes(&IMAGES, Some(&CLASSES), dir, &PackOptions::default(), &mut |_| {})?;
    Dataset::open(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Split;

    #[test]
    fn demo_set_is_complete_balanced_and_packed_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("data");
        let dataset = open(&dir).unwrap();
        assert_eq!(dataset.classes(), CLASSES);
        assert_eq!(dataset.class_counts(Split::Train), [1000; 10]);
        assert_eq!(dataset.class_counts(Split::Val), [200; 10]);
        assert_eq!(dataset.largest(Split::Train), (28, 28));
        let made = || std::fs::metadata(dir.join("dataset.json")).unwrap().modified().unwrap();
        let first = made();
        assert_eq!(open(&dir).unwrap().fingerprint(), dataset.fingerprint());
        assert_eq!(made(), first);
    }
}
