//! Folders and IDX files as sources.

use std::collections::HashSet;
use std::fs;

use super::*;
use crate::common::data::{gzip, idx_images, idx_labels};
use effnet::data::dataset::PARTIAL;
use effnet::data::{Dataset, Split};
use image::{GrayImage, Luma};

#[test]
fn split_folders_are_packed_as_they_are() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("packed"));
    class_folder(&source.join("train"), 5);
    class_folder(&source.join("val"), 2);
    save(&source.join("train/cat/deeper/x.PNG"), GrayImage::from_pixel(9, 8, Luma([99])));
    fs::write(source.join("train/cat/notes.txt"), "no image").unwrap();
    fs::write(source.join("train/cat/.hidden.png"), "no image").unwrap();
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(said.contains("11  training images") && said.contains("4  validation images"), "{said}");
    assert!(said.contains("1  file ignored, being no image by name (1 .txt)"), "{said}");
    assert!(said.contains("effnet-train --data"), "{said}");

    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.classes(), ["cat", "dog"]);
    assert_eq!(dataset.class_counts(Split::Train), [6, 5]);
    // Sorted names, label by folder; PNG as pixels, JPEG as the file.
    let cat = dataset.sample(Split::Train, 0).unwrap();
    assert_eq!((cat.label, cat.width, cat.height, cat.channels), (0, 40, 30, 3));
    assert_eq!(cat.bytes, picture(40, 30, 0).as_raw().as_slice());
    let grey = dataset.sample(Split::Train, 5).unwrap();
    assert_eq!((grey.width, grey.height, grey.channels, grey.bytes), (9, 8, 1, &[99; 72][..]));
    let dog = dataset.sample(Split::Train, 7).unwrap();
    assert_eq!((dog.label, dog.width), (1, 41));
    assert_eq!(dog.bytes, fs::read(source.join("train/dog/001.jpg")).unwrap());
    assert_eq!((dataset.sample(Split::Val, 3).unwrap().label, dataset.largest(Split::Train)), (1, (44, 30)));
    assert!(!out.join(PARTIAL).exists());
    assert!(pack_ok(&["--verify", text(&out)]).contains("all sound"));
    let info = pack_ok(&["--info", text(&out)]);
    assert!(info.contains("dog") && info.contains(&dataset.fingerprint()), "{info}");
}

#[test]
fn class_folders_are_split_by_class_and_reproducibly() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("images");
    class_folder(&source, 20);
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        pack_ok(&[&[text(&source), text(&out), "--val-fraction", "0.25"], more].concat());
        out
    };
    let one = run("one", &["--threads", "1"]);
    let two = run("two", &["--threads", "5"]);
    assert!(files(&one) == files(&two), "two packs of one source are equal byte for byte");
    let dataset = Dataset::open(&one).unwrap();
    assert_eq!(dataset.class_counts(Split::Train), [15, 15]);
    assert_eq!(dataset.class_counts(Split::Val), [5, 5]);
    // Every image is in one split, once: their widths tell them apart.
    let mut seen = HashSet::new();
    for split in Split::BOTH {
        for index in 0..dataset.samples(split) {
            let sample = dataset.sample(split, index).unwrap();
            assert!(seen.insert((sample.label, sample.width)));
        }
    }
    assert_eq!(seen.len(), 40);
    let other = Dataset::open(&run("other", &["--seed", "1"])).unwrap();
    assert_ne!(other.fingerprint(), dataset.fingerprint());
    assert_eq!(other.class_counts(Split::Val), [5, 5]);
}

#[test]
fn pack_follows_encoding_size_and_shard_options() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("images");
    class_folder(&source, 6);
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        pack_ok(&[&[text(&source), text(&out)], more].concat());
        Dataset::open(&out).unwrap()
    };
    use effnet::data::shard::Encoding;
    let encodings = |dataset: &Dataset| -> Vec<Encoding> {
        (0..dataset.samples(Split::Train))
            .map(|i| dataset.sample(Split::Train, i).unwrap().encoding)
            .collect()
    };
    assert!(encodings(&run("raw", &["--encoding", "raw"])).iter().all(|e| *e == Encoding::Raw));
    let jpeg = run("jpeg", &["--encoding", "jpeg"]);
    assert!(encodings(&jpeg).iter().all(|e| *e == Encoding::Jpeg));
    let small = run("small", &["--encoding", "jpeg", "--quality", "20"]);
    assert!(small.manifest().train.bytes < jpeg.manifest().train.bytes);
    let reduced = run("reduced", &["--max-side", "20"]);
    assert_eq!(reduced.largest(Split::Train).0, 20);
    assert!(encodings(&reduced).contains(&Encoding::Raw) && encodings(&reduced).contains(&Encoding::Jpeg));

    // 80 images of 150 × 100 × 3 are 3.4 MiB: four shards.
    let many = dir.path().join("many");
    for number in 0..45 {
        save(&many.join(format!("a/{number:02}.png")), picture(150, 100, number));
        save(&many.join(format!("b/{number:02}.png")), picture(150, 100, 100 + number));
    }
    let out = dir.path().join("sharded");
    pack_ok(&[text(&many), text(&out), "--shard-size", "1"]);
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!((dataset.samples(Split::Train), dataset.manifest().train.shards.len()), (80, 4));
    assert!(dataset.manifest().train.shards.iter().all(|shard| shard.bytes < (1 << 20) + (1 << 16)));
    assert_eq!(dataset.sample(Split::Train, 79).unwrap().label, 1);
    let mean = dataset.normalise().mean;
    assert!((mean[1] - 0.497).abs() < 0.01 && (mean[0] - 0.25).abs() < 0.01, "{mean:?}");
    let deviation = dataset.normalise().deviation;
    assert!((deviation[1] - 0.288).abs() < 0.01, "{deviation:?}");
}

#[test]
fn idx_files_are_packed() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("idx"), dir.path().join("out"));
    idx_folder(&source, 30, 10, [5, 6]);
    // Zipped, and by the other form of the name.
    for name in ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"] {
        let bytes = fs::read(source.join(name)).unwrap();
        fs::write(source.join(format!("{name}.gz")), gzip(&bytes)).unwrap();
        fs::remove_file(source.join(name)).unwrap();
    }
    fs::rename(source.join("t10k-labels-idx1-ubyte"), source.join("t10k-labels.idx1-ubyte")).unwrap();
    pack_ok(&[text(&source), text(&out)]);
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.classes().join(""), "0123456789");
    assert_eq!((dataset.samples(Split::Train), dataset.samples(Split::Val)), (30, 10));
    let sample = dataset.sample(Split::Train, 13).unwrap();
    assert_eq!((sample.label, sample.width, sample.height, sample.channels), (3, 6, 5, 1));
    assert_eq!(sample.bytes, &idx_images(30, 5, 6, 1)[16 + 13 * 30..][..30]);
    let mean = idx_images(30, 5, 6, 1)[16..].iter().map(|&v| f64::from(v)).sum::<f64>() / 900.0 / 255.0;
    assert!(dataset.normalise().mean.iter().all(|&m| (f64::from(m) - mean).abs() < 1e-6));

    let other = dir.path().join("x");
    fs::remove_file(source.join("t10k-labels.idx1-ubyte")).unwrap();
    pack_fails(&[text(&source), text(&other)], &["t10k-labels-idx1-ubyte"]);
    fs::write(source.join("t10k-labels-idx1-ubyte"), idx_labels(11, 10)).unwrap();
    pack_fails(&[text(&source), text(&other)], &["11 labels for 10 images"]);
    let whole = fs::read(source.join("train-images-idx3-ubyte.gz")).unwrap();
    fs::write(source.join("train-images-idx3-ubyte.gz"), &whole[..whole.len() - 30]).unwrap();
    pack_fails(&[text(&source), text(&other)], &["train-images-idx3-ubyte.gz", "truncated"]);
    assert!(!other.exists());
}

#[test]
fn source_that_cannot_be_packed_is_named() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let at = |name: &str| dir.path().join(name);
    pack_fails(&[text(&at("nowhere")), text(&out)], &["nowhere", "no such file"]);
    fs::write(at("file"), "x").unwrap();
    pack_fails(&[text(&at("file")), text(&out)], &["file: ", "not known", "takes a folder of class folders"]);
    fs::create_dir(at("empty")).unwrap();
    pack_fails(&[text(&at("empty")), text(&out)], &["empty: no images in it", "class folders", "MNIST"]);
    save(&at("single/cat/a.png"), picture(4, 4, 0));
    pack_fails(&[text(&at("single")), text(&out)], &["`cat` is the only class", "two are needed"]);
    class_folder(&at("other/train"), 2);
    class_folder(&at("other/check"), 2);
    pack_fails(&[text(&at("other")), text(&out)], &["rename check/ to val/"]);
    for name in ["train/cat", "train/dog", "valid/cat", "valid/dog", "test/cat", "test/dog"] {
        fs::create_dir_all(at("threefold").join(name)).unwrap();
    }
    pack_fails(&[text(&at("threefold")), text(&out)], &["no training images in its classes"]);
    class_folder(&at("twice/train"), 2);
    class_folder(&at("twice/Training"), 2);
    pack_fails(&[text(&at("twice")), text(&out)], &["Training/ and train/ mean the same part"]);
    save(&at("flat/Train/1.png"), picture(4, 4, 0));
    save(&at("flat/test/1.png"), picture(4, 4, 0));
    pack_fails(&[text(&at("flat")), text(&out)], &["Train/ and test/ have no class folders", "CSV"]);
    class_folder(&at("untrained/val"), 2);
    pack_fails(&[text(&at("untrained")), text(&out)], &["val/ has no train/ beside it"]);
    let usage = pack(&["--threads", "many", "a", "b"]);
    assert_eq!((usage.status, usage.err.lines().count()), (Some(2), 1), "{}", usage.err);
    class_folder(&at("alone"), 1);
    pack_fails(&[text(&at("alone")), text(&out)], &["one image only"]);
    assert!(!out.exists(), "a bad source leaves no trace");
}
