//! The set that travels inside the program: 12,000 images of Fashion-MNIST (see the README beside this file).
//!
//! The demo packs it like any other set, so that what follows is the ordinary way from shards to a checkpoint.

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

/// Opens the demo's set in `dir`, where it is packed first unless it is there already.
///
/// # Errors
/// What packing and opening meet: a full disk, a directory that holds something else.
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
    fn the_set_is_whole_and_balanced() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = open(&dir.path().join("data")).unwrap();
        assert_eq!(dataset.classes(), CLASSES);
        assert_eq!(dataset.class_counts(Split::Train), [1000; 10]);
        assert_eq!(dataset.class_counts(Split::Val), [200; 10]);
        assert_eq!(dataset.largest(Split::Train), (28, 28));
    }

    #[test]
    fn a_second_opening_packs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("data");
        let first = open(&dir).unwrap().fingerprint();
        let made = std::fs::metadata(dir.join("dataset.json")).unwrap().modified().unwrap();
        assert_eq!(open(&dir).unwrap().fingerprint(), first);
        assert_eq!(std::fs::metadata(dir.join("dataset.json")).unwrap().modified().unwrap(), made);
    }
}
