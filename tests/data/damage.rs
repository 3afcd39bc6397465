//! Damaged bytes for every reader: each truncation and each changed byte is detected, and nothing panics.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use crate::common::data::{flip, gzip, idx_images, idx_labels, noise, pack_grey};
use effnet::data::codec::{Pixels, decode_file, decode_jpeg, encode_jpeg};
use effnet::data::dataset::{MANIFEST, Manifest, verify};
use effnet::data::idx::{Images, Input, labels};
use effnet::data::pack::{IdxSet, PackOptions, pack_idx_bytes};
use effnet::data::shard::{Header, Record, Shard, check};
use effnet::data::{DataError, Dataset, Split};
use proptest::prelude::*;

/// Whether reading all of a shard finds damage.
fn shard_fails(path: &Path) -> bool {
    match Shard::open(path) {
        Err(_) => true,
        Ok(shard) => (0..shard.samples()).any(|at| shard.sample(at).is_err()),
    }
}

#[test]
fn shard_detects_every_changed_byte_and_every_cut() {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 6, 3, 7, 1 << 20);
    let path = dir.path().join("train-00000.shard");
    let sound = fs::read(&path).unwrap();
    assert_eq!(sound.len(), 64 + 6 * 40 + 6 * 49);
    assert!(!shard_fails(&path));
    for at in 0..sound.len() {
        for bits in [0x01, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] ^= bits;
            fs::write(&path, &bytes).unwrap();
            assert!(shard_fails(&path), "byte {at} changed by {bits:02x}");
            if at >= 64 + 6 * 40 {
                // Within a sample: only that sample is lost, and the error names it.
                let shard = Shard::open(&path).unwrap();
                let hit = (at - 64 - 6 * 40) / 49;
                for sample in 0..6 {
                    match shard.sample(sample) {
                        Ok(_) => assert_ne!(sample, hit),
                        Err(error) => {
                            assert!(error.to_string().contains(&format!("train-00000.shard: sample {hit}")))
                        }
                    }
                }
            }
        }
    }
    for length in 0..sound.len() {
        fs::write(&path, &sound[..length]).unwrap();
        assert!(Shard::open(&path).is_err(), "cut to {length} bytes");
    }
    let mut longer = sound.clone();
    longer.push(0);
    fs::write(&path, &longer).unwrap();
    assert!(Shard::open(&path).is_err(), "a byte appended");
}

#[test]
fn manifest_detects_every_changed_byte_and_every_cut() {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 6, 3, 7, 1 << 20);
    let sound = fs::read(dir.path().join(MANIFEST)).unwrap();
    Manifest::parse(&sound).unwrap();
    for at in 0..sound.len() {
        // 0x20 changes the case of a letter, 0x01 a digit.
        for bits in [0x01, 0x20, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] ^= bits;
            assert!(Manifest::parse(&bytes).is_err(), "byte {at} changed by {bits:02x}");
        }
        assert!(Manifest::parse(&sound[..at]).is_err(), "cut to {at} bytes");
    }
    assert!(Manifest::parse(&[&sound[..], b"\n"].concat()).is_err(), "a byte appended");
}

#[test]
fn shard_of_another_set_or_split_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pack_grey(one.path(), 20, 20, 7, 1 << 20);
    pack_grey(two.path(), 21, 20, 7, 1 << 20);
    let train = one.path().join("train-00000.shard");
    for other in [two.path().join("train-00000.shard"), one.path().join("val-00000.shard")] {
        let kept = fs::read(&train).unwrap();
        fs::copy(&other, &train).unwrap();
        let error = Dataset::open(one.path()).unwrap_err().to_string();
        assert!(error.contains("train-00000.shard") && error.contains("another dataset"), "{error}");
        fs::write(&train, kept).unwrap();
    }
    Dataset::open(one.path()).unwrap();
    fs::remove_file(&train).unwrap();
    let error = Dataset::open(one.path()).unwrap_err().to_string();
    assert!(error.contains("train-00000.shard") && error.contains("missing"), "{error}");
}

#[test]
fn verify_continues_after_damage() {
    let dir = tempfile::tempdir().unwrap();
    let summary = pack_grey(dir.path(), 40, 10, 28, 8 << 10);
    assert!(summary.train.shards >= 4);
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.samples, report.damage.len()), (50, 0));
    let last = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len() as usize - 1;
    for name in ["train-00000.shard", "val-00000.shard"] {
        flip(&dir.path().join(name), last(name), 1);
    }
    flip(&dir.path().join("train-00002.shard"), 70, 1);
    let report = verify(dir.path()).unwrap();
    assert_eq!(report.damage.len(), 3, "{:?}", report.damage);
    assert!(report.damage[0].contains("train-00000.shard: sample 9"));
    assert!(report.damage[1].contains("train-00002.shard") && report.damage[1].contains("index"));
    assert!(report.damage[2].contains("val-00000.shard: sample 9"));
}

/// Reads all of an IDX file of images.
fn read_images(bytes: &[u8]) -> Result<Vec<Vec<u8>>, DataError> {
    let input = Input::Bytes("images", bytes);
    let survey = Images::survey(input)?;
    let mut images = Images::open(input)?;
    (0..survey.count).map(|_| images.read()).collect()
}

fn read_labels(bytes: &[u8]) -> Result<Vec<u8>, DataError> {
    labels(Input::Bytes("labels", bytes))
}

#[test]
fn idx_files_detect_every_cut_and_every_changed_header_byte() {
    let images = idx_images(5, 4, 3, 0);
    let numbers = idx_labels(9, 3);
    assert_eq!(read_images(&images).unwrap().concat(), images[16..]);
    assert_eq!(read_labels(&numbers).unwrap(), numbers[8..]);
    for length in 0..images.len() {
        assert!(read_images(&images[..length]).is_err(), "images cut to {length}");
    }
    for length in 0..numbers.len() {
        assert!(read_labels(&numbers[..length]).is_err(), "labels cut to {length}");
    }
    for bits in 1..=255 {
        for at in 0..16 {
            let mut bytes = images.clone();
            bytes[at] ^= bits;
            assert!(read_images(&bytes).is_err(), "images, byte {at} changed by {bits:02x}");
        }
        for at in 0..8 {
            let mut bytes = numbers.clone();
            bytes[at] ^= bits;
            assert!(read_labels(&bytes).is_err(), "labels, byte {at} changed by {bits:02x}");
        }
    }
    // In a gzip file the checksum covers everything except gzip's own notes (time, system, flags without effect).
    let (zipped_images, zipped_labels) = (gzip(&images), gzip(&numbers));
    assert_eq!(read_images(&zipped_images).unwrap().concat(), images[16..]);
    for length in 0..zipped_images.len() {
        assert!(read_images(&zipped_images[..length]).is_err(), "zipped images cut to {length}");
    }
    for at in 0..zipped_images.len() {
        for bits in [0x01, 0x10, 0x80, 0xff] {
            let mut bytes = zipped_images.clone();
            bytes[at] ^= bits;
            assert!(read_images(&bytes).map_or(true, |read| read.concat() == images[16..]), "byte {at}");
        }
    }
    for length in 0..zipped_labels.len() {
        assert!(read_labels(&zipped_labels[..length]).is_err(), "zipped labels cut to {length}");
    }
}

#[test]
fn idx_files_that_do_not_fit_together_are_refused() {
    let (images, numbers) = (idx_images(10, 4, 4, 0), idx_labels(10, 5));
    let dir = tempfile::tempdir().unwrap();
    let try_with = |set: &IdxSet, names: Option<&[&str]>| {
        let out = dir.path().join("out");
        let result = pack_idx_bytes(set, names, &out, &PackOptions::default(), &mut |_| ());
        assert_eq!(out.exists(), result.is_ok(), "nothing is made from a bad source");
        let _ = fs::remove_dir_all(&out);
        result.map(|_| ()).map_err(|e| e.to_string())
    };
    let sound =
        IdxSet { train_images: &images, train_labels: &numbers, val_images: &images, val_labels: &numbers };
    try_with(&sound, None).unwrap();
    try_with(&sound, Some(&["a", "b", "c", "d", "e"])).unwrap();
    let error = try_with(&sound, Some(&["a", "b", "c"])).unwrap_err();
    assert!(error.contains("label 3 of image 3 is out of range"), "{error}");
    let short = idx_labels(9, 5);
    let error = try_with(&IdxSet { train_labels: &short, ..sound }, None).unwrap_err();
    assert!(error.contains("9 labels for 10 images"), "{error}");
    let more = idx_labels(10, 6);
    let error = try_with(&IdxSet { val_labels: &more, ..sound }, None).unwrap_err();
    assert!(error.contains("validation labels: label 5") && error.contains("out of range"), "{error}");
    let one = idx_labels(10, 1);
    let error = try_with(&IdxSet { train_labels: &one, val_labels: &one, ..sound }, None).unwrap_err();
    assert!(error.contains("one class"), "{error}");
    let mut gap = numbers.clone();
    gap[8 + 4] = 200;
    let error = try_with(&IdxSet { train_labels: &gap, ..sound }, None).unwrap_err();
    assert!(error.contains("up to 200"), "{error}");
    let error = try_with(&IdxSet { train_images: &numbers, ..sound }, None).unwrap_err();
    assert!(error.contains("labels, not of images"), "{error}");
    let error = try_with(&IdxSet { val_labels: &images, ..sound }, None).unwrap_err();
    assert!(error.contains("images, not of labels"), "{error}");
}

#[test]
fn image_file_detects_every_cut() {
    let bytes: Vec<u8> = (0..40 * 30 * 3).map(noise).collect();
    let pixels = Pixels { width: 40, height: 30, channels: 3, bytes };
    let jpeg = encode_jpeg(&pixels, 80).unwrap();
    let mut png = Vec::new();
    image::RgbImage::from_raw(40, 30, pixels.bytes.clone())
        .unwrap()
        .write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png)
        .unwrap();
    assert_eq!(decode_file(&png).unwrap().pixels, pixels);
    assert!(decode_file(&jpeg).unwrap().plain_jpeg);
    for length in 0..jpeg.len() {
        assert!(decode_file(&jpeg[..length]).is_err(), "JPEG cut to {length} of {}", jpeg.len());
    }
    // After the pixels only the end chunk of 12 bytes follows, which holds nothing.
    for length in 0..png.len() - 12 {
        assert!(decode_file(&png[..length]).is_err(), "PNG cut to {length} of {}", png.len());
    }
}

/// A shard of three samples.
static SMALL_SHARD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    pack_grey(dir.path(), 3, 3, 5, 1 << 20);
    fs::read(dir.path().join("train-00000.shard")).unwrap()
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn readers_never_panic_on_arbitrary_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..600), start in 0..6) {
        // Some start like real files, to pass the first check.
        let starts: [&[u8]; 6] = [
            b"", b"EFNSHARD\x01\0\0\0", b"{\"format\":\"effnet dataset\",\"version\":1", b"\x1f\x8b\x08",
            b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        ];
        let start = starts[start as usize];
        bytes.splice(0..start.len().min(bytes.len()), start.iter().copied());
        prop_assert!(check(&bytes).is_err());
        prop_assert!(Manifest::parse(&bytes).is_err());
        let _ = read_images(&bytes);
        let _ = read_labels(&bytes);
        let _ = decode_file(&bytes);
        let _ = decode_jpeg(&bytes, 8, 8, 3, &mut Vec::new());
    }

    /// A hostile shard: the checksum is right, the numbers are not. A shard that passes can be read to the end.
    #[test]
    fn shard_numbers_under_a_right_checksum_are_checked(
        at in 0_usize..64 + 3 * 40,
        value in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(1 << 32), Just(0), any::<u64>(), 0_u64..400],
    ) {
        let mut bytes = SMALL_SHARD.clone();
        let at = at / 4 * 4;
        let length = 8.min(64 + 3 * 40 - at);
        bytes[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
        let header: Header = bytemuck::pod_read_unaligned(&bytes[..64]);
        if let Some(index) = bytes.get(64..header.data_offset as usize) {
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&bytes[..60]);
            hasher.update(index);
            let crc = hasher.finalize();
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        }
        if check(&bytes).is_ok() {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("train-00000.shard");
            fs::write(&path, &bytes).unwrap();
            let shard = Shard::open(&path).unwrap();
            for position in 0..shard.samples() {
                let record: Record = shard.records()[position];
                prop_assert!(record.label < shard.header().classes);
                let _ = shard.sample(position);
            }
        }
    }

    /// A JPEG with changed bytes: an error or some picture of the stated size, never a panic.
    #[test]
    fn jpeg_with_changed_bytes_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let bytes = (0..24 * 24 * 3).map(noise).collect();
        let mut jpeg = encode_jpeg(&Pixels { width: 24, height: 24, channels: 3, bytes }, 90).unwrap();
        for (at, value) in changes {
            let at = at.index(jpeg.len());
            jpeg[at] = value;
        }
        let _ = decode_file(&jpeg);
        let mut out = Vec::new();
        if decode_jpeg(&jpeg, 24, 24, 3, &mut out).is_ok() {
            prop_assert_eq!(out.len(), 24 * 24 * 3);
        }
    }
}

#[test]
fn sample_with_a_right_checksum_but_no_jpeg_is_an_error() {
    use effnet::data::shard::{Encoding, Sample, ShardWriter};
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(dir.path(), Split::Train, 0, 2, 1).unwrap();
    let sample =
        Sample { id: 0, label: 1, width: 9, height: 9, channels: 3, encoding: Encoding::Jpeg, bytes: b"no" };
    writer.push(&sample).unwrap();
    writer.finish().unwrap();
    let shard = Shard::open(&dir.path().join("train-00000.shard")).unwrap();
    let stored = shard.sample(0).unwrap();
    assert!(decode_jpeg(stored.bytes, 9, 9, 3, &mut Vec::new()).is_err());
}
