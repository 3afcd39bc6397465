//! Images that are unusual or broken.

use std::path::PathBuf;

use super::*;
use effnet::data::shard::Encoding;
use effnet::data::{CropMode, Dataset, Split, evaluate_image};
use image::{Luma, RgbaImage};

/// A JPEG with an EXIF orientation; 6 means a quarter turn clockwise.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let mut exif = b"\xff\xe1\0\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.push(orientation);
    exif.extend([0; 6]);
    assert_eq!(exif.len(), 0x24);
    [&jpeg[..2], &exif, &jpeg[2..]].concat()
}

/// A folder with images of unusual forms in the class `odd`, and the JPEG of which two are made.
fn unusual_images() -> (TempDir, PathBuf, Vec<u8>) {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("images");
    class_folder(&source.join("train"), 2);
    class_folder(&source.join("val"), 1);
    let odd = source.join("train/odd");
    save(&source.join("val/odd/0.png"), picture(5, 5, 0));
    fs::create_dir_all(&odd).unwrap();
    fs::write(odd.join("a-cmyk.jpg"), include_bytes!("../../fixtures/cmyk.jpg")).unwrap();
    fs::write(odd.join("b-palette.png"), include_bytes!("../../fixtures/palette.png")).unwrap();
    let wide = image::ImageBuffer::<Luma<u16>, _>::from_fn(4, 3, |x, _| Luma([x as u16 * 257 * 50]));
    save(&odd.join("c-wide.png"), DynamicImage::ImageLuma16(wide));
    save(&odd.join("d-alpha.png"), RgbaImage::from_pixel(3, 3, image::Rgba([1, 2, 3, 40])));
    let upright = jpeg_bytes(&picture(40, 24, 1));
    fs::write(odd.join("e-turned.jpg"), with_orientation(&upright, 6)).unwrap();
    fs::write(odd.join("f-plain.jpg"), with_orientation(&upright, 1)).unwrap();
    // A JPEG with a PNG's name; large collections have such files.
    fs::write(odd.join("g-misnamed.png"), &upright).unwrap();
    (dir, source, upright)
}

#[test]
fn unusual_images_are_made_plain_and_counted() {
    let (dir, source, _) = unusual_images();
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
}

/// As a JPEG, the turned image is encoded again, upright; the plain one is stored as the file. A single image is turned
/// for evaluation too.
#[test]
fn turned_image_is_stored_and_evaluated_upright() {
    let (dir, source, upright) = unusual_images();
    let out = dir.path().join("kept");
    let said = pack_ok(&[text(&source), text(&out), "--quality", "94"]);
    assert!(said.contains("2  JPEG files encoded anew at quality 94 (turned, CMYK"), "{said}");
    let help = pack_ok(&["--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        help.contains("turns, CMYK and rare ones are encoded anew, with --quality, unless raw"),
        "{help}"
    );
    assert!(help.contains("Quality of JPEG files that are written here [default: 95]"), "{help}");
    for (encoding, anew) in [("raw", 0), ("jpeg", 2)] {
        let other = dir.path().join(encoding);
        let summary = pack(&[text(&source), text(&other), "--encoding", encoding, "--json"]).good().json();
        assert_eq!(summary["converted"]["encoded_anew"], anew, "--encoding {encoding}");
    }
    let dataset = Dataset::open(&out).unwrap();
    let turned = dataset.sample(Split::Train, 8).unwrap();
    assert_eq!((turned.width, turned.height), (24, 40));
    assert!(turned.bytes.starts_with(&[0xff, 0xd8]) && !turned.bytes.windows(4).any(|w| w == b"Exif"));
    assert_eq!(dataset.sample(Split::Train, 9).unwrap().bytes, with_orientation(&upright, 1));

    let odd = source.join("train/odd");
    let a = evaluate_image(&odd.join("e-turned.jpg"), 32, CropMode::Resized).unwrap();
    let b = evaluate_image(&odd.join("f-plain.jpg"), 32, CropMode::Resized).unwrap();
    assert_eq!((a.len(), a == b), (32 * 32 * 3, false));
}

/// Their content tells what files are: also WebP under a JPEG's name. What is no JPEG is stored as pixels.
#[test]
fn images_of_other_kinds_and_jpegs_in_several_scans_are_packed() {
    let fixture = |name: &str| {
        fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images").join(name)).unwrap()
    };
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source.join("train"), 1);
    class_folder(&source.join("val"), 1);
    for (name, kind) in [("1.jpg", "lossy.webp"), ("2.jpeg", "rgb.tif"), ("3.jpg", "scans-each-420.jpg")] {
        fs::write(source.join("train/dog").join(name), fixture(kind)).unwrap();
    }
    fs::write(source.join("train/dog/4.jpg"), b"\0\0\0\x18ftypheic\0\0\0\0mif1heic").unwrap();
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(said.contains("left out train/dog/4.jpg: HEIC, which is not read; convert it"), "{said}");
    assert!(said.contains("1  JPEG files encoded anew at quality 95"), "{said}");
    let dataset = Dataset::open(&out).unwrap();
    for (index, name, allowed) in [(2, "lossy.webp", 1), (3, "rgb.tif", 0), (4, "scans-each-420.jpg", 24)] {
        let expected =
            image::load_from_memory(&fixture(&format!("{name}.expected.png"))).unwrap().into_rgb8();
        let sample = dataset.sample(Split::Train, index).unwrap();
        assert_eq!(sample.encoding == Encoding::Jpeg, index == 4, "{name}");
        let pixels = match sample.encoding {
            Encoding::Raw => sample.bytes.to_vec(),
            Encoding::Jpeg => image::load_from_memory(sample.bytes).unwrap().into_rgb8().into_raw(),
        };
        let difference = expected.iter().zip(&pixels).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        assert!(difference <= allowed && pixels.len() == expected.len(), "{name}: {difference}");
    }
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
        "left out train/cat/letter.jpg: text, no image",
        "left out train/cat/changed.png: damaged PNG: a checksum does not fit its data",
    ] {
        assert!(said.contains(line), "`{line}` is not in: {said}");
    }
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.class_counts(Split::Train), [4, 4]);
    // Ids are those of the source's list, so that images left out do not change other samples' draws.
    let last = dataset.sample(Split::Train, 7).unwrap();
    assert_eq!(last.id, 7 + broken);
    assert!(pack_ok(&["--verify", text(&out)]).contains("all sound"));

    let value = pack(&[text(&source), text(&out), "--force", "--json"]).good().json();
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
