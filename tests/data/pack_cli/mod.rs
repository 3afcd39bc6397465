//! The program `effnet-pack`, as a user runs it.

use std::collections::HashSet;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use crate::data_support::{flip, gzip, idx_images, idx_labels, noise};
use assert_cmd::Command;
use effnet::data::dataset::PARTIAL;
use effnet::data::{CropMode, Dataset, Split, evaluate_image};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgb, RgbImage, RgbaImage};
use tempfile::TempDir;

/// The result of a run of the program: exit status, stdout, stderr.
struct Ran {
    status: i32,
    out: String,
    err: String,
}

fn pack(arguments: &[&str]) -> Ran {
    let output = Command::cargo_bin("effnet-pack").unwrap().args(arguments).output().unwrap();
    Ran {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
fn pack_ok(arguments: &[&str]) -> String {
    let ran = pack(arguments);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    ran.out
}

/// One clear line on stderr, status 1, with all of the words in it.
#[track_caller]
fn pack_fails(arguments: &[&str], words: &[&str]) {
    let ran = pack(arguments);
    assert_eq!(ran.status, 1, "{}{}", ran.out, ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.starts_with("error: "), "{}", ran.err);
    for word in words {
        assert!(ran.err.contains(word), "`{word}` is not in: {}", ran.err);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn picture(width: u32, height: u32, salt: u64) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let at = u64::from(y * width + x) * 3 + salt * 1_000_003;
        Rgb([noise(at) / 2, (x * 255 / width) as u8, (y * 255 / height) as u8])
    })
}

fn save(path: &Path, image: impl Into<DynamicImage>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(path).unwrap();
}

fn jpeg_bytes(image: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Jpeg).unwrap();
    bytes
}

/// A folder of two classes: cats are PNG, dogs JPEG.
fn class_folder(root: &Path, each: u64) {
    for number in 0..each {
        let image = picture(40 + number as u32, 30, number);
        save(&root.join(format!("cat/{number:03}.png")), image.clone());
        save(&root.join(format!("dog/{number:03}.jpg")), image);
    }
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

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
    assert!(said.contains("1  files ignored"), "{said}");
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

/// A JPEG with an EXIF orientation; 6 means a quarter turn clockwise.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"\xff\xe1\0\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.push(orientation);
    exif.extend([0; 6]);
    assert_eq!(exif.len(), 0x24);
    [&jpeg[..2], &exif, &jpeg[2..]].concat()
}

#[test]
fn unusual_images_are_made_plain_and_counted() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("images");
    class_folder(&source.join("train"), 2);
    class_folder(&source.join("val"), 1);
    let odd = source.join("train/odd");
    save(&source.join("val/odd/0.png"), picture(5, 5, 0));
    fs::create_dir_all(&odd).unwrap();
    fs::write(odd.join("a-cmyk.jpg"), include_bytes!("../fixtures/cmyk.jpg")).unwrap();
    fs::write(odd.join("b-palette.png"), include_bytes!("../fixtures/palette.png")).unwrap();
    let wide = image::ImageBuffer::<Luma<u16>, _>::from_fn(4, 3, |x, _| Luma([x as u16 * 257 * 50]));
    save(&odd.join("c-wide.png"), DynamicImage::ImageLuma16(wide));
    save(&odd.join("d-alpha.png"), RgbaImage::from_pixel(3, 3, image::Rgba([1, 2, 3, 40])));
    let upright = jpeg_bytes(&picture(40, 24, 1));
    fs::write(odd.join("e-turned.jpg"), with_orientation(&upright, 6)).unwrap();
    fs::write(odd.join("f-plain.jpg"), with_orientation(&upright, 1)).unwrap();
    // A JPEG with a PNG's name; large collections have such files.
    fs::write(odd.join("g-misnamed.png"), &upright).unwrap();

    let out = dir.path().join("out");
    let said = pack_ok(&[text(&source), text(&out), "--encoding", "raw"]);
    for line in ["1  CMYK", "1  16-bit", "1  palettes", "1  alpha", "1  turned"] {
        assert!(said.contains(line), "`{line}` is not in: {said}");
    }
    let dataset = Dataset::open(&out).unwrap();
    let sample = |index: usize| dataset.sample(Split::Train, 4 + index).unwrap();
    let cmyk = sample(0);
    assert_eq!((cmyk.width, cmyk.height, cmyk.channels), (16, 12, 3));
    assert!(
        cmyk.bytes.chunks(3).all(|p| p[0] > 250 && p[1] < 5 && p[2] < 5),
        "full magenta with full yellow is red"
    );
    assert_eq!(sample(1).bytes[..9], [10, 20, 30, 200, 100, 50, 0, 0, 255]);
    assert_eq!((sample(2).channels, &sample(2).bytes[..4]), (1, &[0, 50, 100, 150][..]));
    assert_eq!((sample(3).channels, &sample(3).bytes[..3]), (3, &[1, 2, 3][..]));
    let (turned, plain) = (sample(4), sample(5));
    assert_eq!((turned.width, turned.height, plain.width, plain.height), (24, 40, 40, 24));
    for y in 0..24 {
        for x in 0..40 {
            // A quarter turn clockwise: the lower left corner becomes the upper left one.
            let from = (y * 40 + x) * 3;
            let to = (x * 24 + 23 - y) * 3;
            assert_eq!(turned.bytes[to..to + 3], plain.bytes[from..from + 3]);
        }
    }
    assert_eq!(sample(6).bytes, plain.bytes);

    // As a JPEG, the turned one is encoded again, upright; the plain one is stored as the file.
    let out = dir.path().join("kept");
    pack_ok(&[text(&source), text(&out)]);
    let dataset = Dataset::open(&out).unwrap();
    let turned = dataset.sample(Split::Train, 8).unwrap();
    assert_eq!((turned.width, turned.height), (24, 40));
    assert!(turned.bytes.starts_with(&[0xff, 0xd8]) && !turned.bytes.windows(4).any(|w| w == b"Exif"));
    assert_eq!(dataset.sample(Split::Train, 9).unwrap().bytes, with_orientation(&upright, 1));

    // A single picture is turned upright for evaluation too.
    let a = evaluate_image(&odd.join("e-turned.jpg"), 32, CropMode::Resized).unwrap();
    let b = evaluate_image(&odd.join("f-plain.jpg"), 32, CropMode::Resized).unwrap();
    assert_eq!((a.len(), a == b), (32 * 32 * 3, false));
}

#[test]
fn broken_images_are_left_out_listed_and_counted() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("images");
    class_folder(&source.join("train"), 4);
    class_folder(&source.join("val"), 2);
    let cats = source.join("train/cat");
    let jpeg = jpeg_bytes(&picture(60, 60, 5));
    fs::write(cats.join("cut.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    fs::write(cats.join("empty.jpg"), "").unwrap();
    fs::write(cats.join("letter.jpg"), "Dear sir").unwrap();
    let png = fs::read(cats.join("000.png")).unwrap();
    let mut changed = png.clone();
    changed[png.len() / 2] ^= 0x55;
    fs::write(cats.join("changed.png"), changed).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere.png", cats.join("link.png")).unwrap();
    let broken = if cfg!(unix) { 5 } else { 4 };

    let out = dir.path().join("out");
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(said.contains(&format!("{broken}  broken images left out")), "{said}");
    for line in [
        "left out train/cat/cut.jpg: truncated JPEG",
        "left out train/cat/empty.jpg: empty file",
        "left out train/cat/letter.jpg: neither JPEG nor PNG",
        "left out train/cat/changed.png: damaged PNG",
    ] {
        assert!(said.contains(line), "`{line}` is not in: {said}");
    }
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.class_counts(Split::Train), [4, 4]);
    // Ids are those of the source's list, so that images left out do not change other samples' draws.
    let last = dataset.sample(Split::Train, 7).unwrap();
    assert_eq!(last.id, 7 + broken);
    assert!(pack_ok(&["--verify", text(&out)]).contains("all sound"));

    let json = pack_ok(&[text(&source), text(&out), "--force", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["broken"].as_array().unwrap().len() as u64, broken);
    assert_eq!((&value["train"]["images"], &value["classes"]), (&8.into(), &2.into()));

    // An empty class is a warning; an empty split is an error.
    for number in 0..4 {
        fs::write(source.join(format!("train/dog/{number:03}.jpg")), "x").unwrap();
    }
    let said = pack_ok(&[text(&source), text(&out), "--force"]);
    assert!(said.contains("warning: no training image of class `dog`"), "{said}");
    for entry in fs::read_dir(&cats).unwrap() {
        fs::write(entry.unwrap().path(), "x").unwrap();
    }
    pack_fails(&[text(&source), text(&out), "--force"], &["nothing remains of the train images"]);
    assert!(!out.join("dataset.json").exists());
}

/// Writes an IDX set of 30 and 10 images of 6 × 5.
fn idx_folder(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("train-images-idx3-ubyte.gz"), gzip(&idx_images(30, 5, 6, 1))).unwrap();
    fs::write(dir.join("train-labels-idx1-ubyte.gz"), gzip(&idx_labels(30, 10))).unwrap();
    fs::write(dir.join("t10k-images-idx3-ubyte"), idx_images(10, 5, 6, 2)).unwrap();
    fs::write(dir.join("t10k-labels.idx1-ubyte"), idx_labels(10, 10)).unwrap();
}

#[test]
fn idx_files_are_packed() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("idx"), dir.path().join("out"));
    idx_folder(&source);
    pack_ok(&[text(&source), text(&out)]);
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.classes().join(""), "0123456789");
    assert_eq!((dataset.samples(Split::Train), dataset.samples(Split::Val)), (30, 10));
    let sample = dataset.sample(Split::Train, 13).unwrap();
    assert_eq!((sample.label, sample.width, sample.height, sample.channels), (3, 6, 5, 1));
    assert_eq!(sample.bytes, &idx_images(30, 5, 6, 1)[16 + 13 * 30..][..30]);
    let mean = idx_images(30, 5, 6, 1)[16..].iter().map(|&v| f64::from(v)).sum::<f64>() / 900.0 / 255.0;
    assert!(dataset.normalise().mean.iter().all(|&m| (f64::from(m) - mean).abs() < 1e-6));

    fs::remove_file(source.join("t10k-labels.idx1-ubyte")).unwrap();
    pack_fails(&[text(&source), text(&dir.path().join("x"))], &["t10k-labels-idx1-ubyte"]);
    fs::write(source.join("t10k-labels-idx1-ubyte"), idx_labels(11, 10)).unwrap();
    pack_fails(&[text(&source), text(&dir.path().join("x"))], &["11 labels for 10 images"]);
    let whole = fs::read(source.join("train-images-idx3-ubyte.gz")).unwrap();
    fs::write(source.join("train-images-idx3-ubyte.gz"), &whole[..whole.len() - 30]).unwrap();
    pack_fails(&[text(&source), text(&dir.path().join("x"))], &["train-images-idx3-ubyte.gz", "truncated"]);
    assert!(!dir.path().join("x").exists());
}

#[test]
fn source_that_cannot_be_packed_is_named() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let at = |name: &str| dir.path().join(name);
    pack_fails(&[text(&at("nowhere")), text(&out)], &["nowhere", "no such file"]);
    fs::write(at("file"), "x").unwrap();
    pack_fails(&[text(&at("file")), text(&out)], &["file: not a directory"]);
    fs::create_dir(at("empty")).unwrap();
    pack_fails(&[text(&at("empty")), text(&out)], &["neither class folders nor the four IDX files"]);
    save(&at("single/cat/a.png"), picture(4, 4, 0));
    pack_fails(&[text(&at("single")), text(&out)], &["`cat` is the only class folder"]);
    class_folder(&at("hollow"), 2);
    fs::create_dir(at("hollow/cow")).unwrap();
    pack_fails(&[text(&at("hollow")), text(&out)], &["hollow/cow", "without a JPEG or PNG file"]);
    class_folder(&at("half/train"), 2);
    pack_fails(&[text(&at("half")), text(&out)], &["train/ has no val/"]);
    // Folder names of other conventions are not taken for classes.
    for name in ["train/cat", "train/dog", "valid/cat", "valid/dog", "test/cat", "test/dog"] {
        fs::create_dir_all(at("threefold").join(name)).unwrap();
    }
    pack_fails(&[text(&at("threefold")), text(&out)], &["rename valid/ to val/"]);
    let usage = pack(&["--threads", "many", "a", "b"]);
    assert_eq!((usage.status, usage.err.lines().count()), (2, 1), "{}", usage.err);
    class_folder(&at("uneven/train"), 2);
    class_folder(&at("uneven/val"), 2);
    save(&at("uneven/val/cow/a.png"), picture(4, 4, 0));
    pack_fails(&[text(&at("uneven")), text(&out)], &["class `cow` has no folder in train/"]);
    class_folder(&at("alone"), 1);
    pack_fails(&[text(&at("alone")), text(&out)], &["one image only"]);
    assert!(!out.exists(), "a bad source leaves no trace");
}

#[test]
fn output_is_not_overwritten_without_force() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source, 4);
    pack_ok(&[text(&source), text(&out)]);
    let before = files(&out);
    pack_fails(&[text(&source), text(&out)], &["holds a dataset already", "--force"]);
    assert!(files(&out) == before);
    // Even with --force, a source that cannot be packed changes nothing.
    pack_fails(&[text(&dir.path().join("nowhere")), text(&out), "--force"], &["no such file"]);
    assert!(files(&out) == before);
    fs::write(out.join("notes.txt"), "mine").unwrap();
    pack_ok(&[text(&source), text(&out), "--force", "--encoding", "raw"]);
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");

    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("notes.txt"), "mine").unwrap();
    pack_fails(&[text(&source), text(&taken)], &["not empty"]);
    pack_fails(&[text(&source), text(&taken.join("notes.txt"))], &["not a directory"]);
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 1);
}

#[test]
fn missing_or_empty_dataset_says_how_to_make_one() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("other")).unwrap();
    fs::write(at("other/file"), "x").unwrap();
    for (name, word) in [
        ("nowhere", "no such directory"),
        ("empty", "is empty"),
        ("other", "no dataset"),
        ("other/file", "not a directory"),
    ] {
        for option in ["--verify", "--info"] {
            pack_fails(
                &[option, text(&at(name))],
                &[name, word, "effnet-pack SOURCE", "--data synthetic", "--demo"],
            );
        }
    }
}

#[test]
fn verify_names_the_damaged_file_and_sample() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("idx"), dir.path().join("out"));
    idx_folder(&source);
    pack_ok(&[text(&source), text(&out)]);
    let shard = out.join("train-00000.shard");
    let size = fs::metadata(&shard).unwrap().len() as usize;
    flip(&shard, size - 30 * 30 + 12 * 30 + 7, 4);
    let ran = pack(&["--verify", text(&out)]);
    assert_eq!(ran.status, 1);
    assert!(
        ran.out.contains("train-00000.shard: sample 12:") && ran.out.contains("1 damaged"),
        "{}",
        ran.out
    );
    let ran = pack(&["--verify", text(&out), "--json"]);
    assert_eq!(ran.status, 1);
    let value: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((value["damage"].as_array().unwrap().len(), &value["samples"]), (1, &40.into()));

    fs::File::options().write(true).open(&shard).unwrap().set_len(size as u64 - 1).unwrap();
    let ran = pack(&["--verify", text(&out)]);
    assert_eq!(ran.status, 1);
    assert!(ran.out.contains("train-00000.shard") && ran.out.contains("truncated"), "{}", ran.out);
    pack_fails(&["--info", text(&out)], &["train-00000.shard", "truncated"]);
    fs::write(&shard, "foreign").unwrap();
    pack_fails(&["--info", text(&out)], &["train-00000.shard"]);
    flip(&out.join("dataset.json"), 40, 1);
    pack_fails(&["--verify", text(&out)], &["dataset.json"]);
}

#[test]
fn usage_errors_have_status_2() {
    for arguments in [
        &[][..],
        &["source"],
        &["source", "out", "--val-fraction", "0"],
        &["source", "out", "--val-fraction", "nan"],
        &["source", "out", "--encoding", "webp"],
        &["source", "out", "--quality", "0"],
        &["source", "out", "--quality", "101"],
        &["source", "out", "--max-side", "0"],
        &["source", "out", "--shard-size", "0"],
        &["source", "out", "--threads", "0"],
        &["--verify", "a", "--info", "b"],
        &["source", "out", "--verify", "a"],
        &["--frobnicate"],
    ] {
        let ran = pack(arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains("error:"), "{}", ran.err);
    }
    assert!(pack_ok(&["--help"]).contains("IDX"));
}

/// A pack that is killed and started again, each time a little later, ends with the bytes of an undisturbed pack. The
/// moments of the kills are left to chance; the test checks what must hold at any moment.
#[cfg(unix)]
#[test]
fn killed_pack_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("idx");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("train-images-idx3-ubyte"), idx_images(400, 160, 160, 1)).unwrap();
    fs::write(source.join("train-labels-idx1-ubyte"), idx_labels(400, 4)).unwrap();
    fs::write(source.join("t10k-images-idx3-ubyte"), idx_images(40, 160, 160, 2)).unwrap();
    fs::write(source.join("t10k-labels-idx1-ubyte"), idx_labels(40, 4)).unwrap();
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let arguments =
        |out: &Path| [text(&source), text(out), "--shard-size", "1", "--threads", "1"].map(String::from);
    pack_ok(&arguments(&whole).each_ref().map(String::as_str));

    let (mut kills, mut resumed) = (0, 0);
    for delay in (1..).map(|attempt| attempt * 5) {
        let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("effnet-pack"))
            .args(arguments(&killed))
            .arg("--json")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            resumed = summary["resumed_shards"].as_u64().unwrap();
            break;
        }
        assert_eq!(output.status.code(), None, "killed, not failed");
        kills += 1;
        if killed.join("dataset.json").exists() {
            break; // killed after the work was done
        }
    }
    let mut found = files(&killed);
    found.retain(|(name, _)| name != PARTIAL); // may remain after a kill between the last two steps
    assert!(found == files(&whole), "after {kills} kills, {resumed} shards kept");
}

/// An interrupted pack keeps its finished shards; a pack with other options or another source does not use them.
#[test]
fn finished_shards_are_kept_only_for_the_same_plan() {
    use effnet::data::pack::{PackOptions, pack as pack_library};
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    for number in 0..60 {
        save(&source.join(format!("a/{number:02}.png")), picture(150, 100, number));
        save(&source.join(format!("b/{number:02}.png")), picture(150, 100, 100 + number));
    }
    let options = PackOptions { shard_bytes: 1 << 20, threads: 1, ..PackOptions::default() };
    let stopped = std::panic::catch_unwind(|| {
        let _ =
            pack_library(&source, &out, &options, &mut |progress| assert!(progress.done < 60, "stop here"));
    });
    assert!(stopped.is_err());
    assert!(out.join(PARTIAL).exists() && out.join("train-00000.shard").exists());
    pack_fails(&["--info", text(&out)], &["interrupted"]);
    pack_fails(&[text(&source), text(&out), "--shard-size", "2"], &["unfinished pack", "--force"]);
    // A finished shard that is damaged is made again.
    flip(&out.join("train-00001.shard"), 70, 1);
    let json = pack_ok(&[text(&source), text(&out), "--shard-size", "1", "--json"]);
    let summary: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(summary["resumed_shards"], 1, "{json}");
    let fresh = dir.path().join("fresh");
    pack_ok(&[text(&source), text(&fresh), "--shard-size", "1"]);
    assert!(files(&fresh) == files(&out));
}

/// A full disk gives one line, and nothing that looks complete.
#[cfg(target_os = "linux")]
#[test]
fn full_disk_is_one_clear_line() {
    use std::os::unix::process::CommandExt;
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("idx"), dir.path().join("out"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("train-images-idx3-ubyte"), idx_images(200, 100, 100, 1)).unwrap();
    fs::write(source.join("train-labels-idx1-ubyte"), idx_labels(200, 4)).unwrap();
    fs::write(source.join("t10k-images-idx3-ubyte"), idx_images(4, 100, 100, 2)).unwrap();
    fs::write(source.join("t10k-labels-idx1-ubyte"), idx_labels(4, 4)).unwrap();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("effnet-pack"));
    command.args([text(&source), text(&out)]);
    // SAFETY: both calls are async-signal-safe and touch only the child that is about to run the program.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN); // so that the write fails with an error
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), err.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("train-00000.shard"), "{err}");
    assert!(!out.join("dataset.json").exists() && !out.join("train-00000.shard").exists());
    // When there is room again, the pack continues.
    pack_ok(&[text(&source), text(&out)]);
}
