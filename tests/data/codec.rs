//! Image files of unusual kinds against what Pillow decodes, and damaged ones. `tools/make_image_fixtures.py` made
//! `tests/fixtures/images`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::data::noise;
use effnet::data::codec::{Pixels, decode_file, decode_file_to_reduce, decode_jpeg, encode_jpeg};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images")
}

/// Name, bytes and what must come of it, of each fixture whose name starts so.
fn fixtures(start: &str) -> Vec<(String, Vec<u8>, Pixels)> {
    let mut names: Vec<String> =
        fs::read_dir(folder()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.retain(|name| name.starts_with(start) && !name.ends_with(".expected.png"));
    assert!(!names.is_empty(), "no fixtures {start}*");
    let read = |name: String| {
        let expected = fs::read(folder().join(format!("{name}.expected.png"))).unwrap();
        (name.clone(), fs::read(folder().join(name)).unwrap(), decode_file(&expected).unwrap().pixels)
    };
    names.into_iter().map(read).collect()
}

/// The largest difference of two images of one size; grey counts as RGB.
fn difference(a: &Pixels, b: &Pixels) -> u8 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let rgb = |image: &Pixels| -> Vec<u8> {
        image
            .bytes
            .chunks(image.channels.into())
            .flat_map(|p| [p[0], p[p.len() / 2], p[p.len() - 1]])
            .collect()
    };
    rgb(a).into_iter().zip(rgb(b)).map(|(a, b)| a.abs_diff(b)).max().unwrap()
}

#[test]
fn image_files_of_all_kinds_are_read_as_by_pillow() {
    let mut wrong = Vec::new();
    for (name, bytes, expected) in fixtures("") {
        match decode_file(&bytes) {
            Err(problem) => wrong.push(format!("{name}: {problem}")),
            Ok(decoded) => {
                let difference = difference(&decoded.pixels, &expected);
                let allowed = if name.ends_with(".jpg") || name.starts_with("jpeg") { 4 } else { 1 };
                if difference > allowed {
                    wrong.push(format!("{name}: differs by {difference}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Shards of earlier versions hold such files as they are.
#[test]
fn jpeg_in_several_scans_is_read_by_the_loader_too_but_not_stored() {
    for start in ["scans-", "coarse", "colours-jfif", "colours-rgb"] {
        for (name, bytes, expected) in fixtures(start) {
            let mut out = Vec::new();
            decode_jpeg(&bytes, expected.width, expected.height, 3, &mut out).unwrap();
            let read = Pixels { bytes: out, ..expected.clone() };
            assert!(difference(&read, &expected) <= 4, "{name}");
            assert_eq!(decode_file(&bytes).unwrap().plain_jpeg, name.contains("scans-one"), "{name}");
        }
    }
}

#[test]
fn kinds_that_are_not_read_are_named() {
    let tiff = fs::read(folder().join("rgb.tif")).unwrap();
    // Of the numbers in the directory, 262 is the photometric interpretation; 3 means a palette.
    let at = tiff.windows(8).position(|w| w[..8] == [6, 1, 3, 0, 1, 0, 0, 0]).unwrap() + 8;
    let palette = [&tiff[..at], &[3], &tiff[at + 1..]].concat();
    let problem = decode_file(&palette).err().unwrap();
    assert!(problem.contains("TIFF of a rare kind") && problem.contains("convert it"), "{problem}");
    // The entry of the planes' order (284) becomes one of the bits' order (266).
    let at = tiff.windows(8).position(|w| w[..8] == [0x1c, 1, 3, 0, 1, 0, 0, 0]).unwrap();
    let reversed = [&tiff[..at], &[10, 1, 3, 0, 1, 0, 0, 0, 2], &tiff[at + 9..]].concat();
    let problem = decode_file(&reversed).err().unwrap();
    assert!(problem.contains("reverse order") && problem.contains("convert it"), "{problem}");
    let problem = decode_file(b"\x1f\x8b\x08\0\0\0").err().unwrap();
    assert!(problem.contains("gzip"), "{problem}");
}

#[test]
fn conversions_of_other_kinds_are_counted() {
    let counted = |name: &str| {
        let c = decode_file(&fs::read(folder().join(name)).unwrap()).unwrap().conversions;
        [c.cmyk, c.sixteen_bit, c.palette, c.alpha, c.rotated]
    };
    assert_eq!(counted("cmyk.tif"), [1, 0, 0, 0, 0]);
    assert_eq!(counted("wide.tif"), [0, 1, 0, 0, 0]);
    assert_eq!(counted("palette.bmp"), [0, 0, 1, 0, 0]);
    assert_eq!(counted("alpha-palette.png"), [0, 0, 1, 1, 0]);
    assert_eq!(counted("alpha.webp"), [0, 0, 0, 1, 0]);
    assert_eq!(counted("turned.webp"), [0, 0, 0, 0, 1]);
    assert_eq!(counted("turned-prefix.webp"), [0, 0, 0, 0, 1]);
    assert_eq!(counted("turned.tif"), [0, 0, 0, 0, 1]);
    assert_eq!(counted("rgb.tif"), [0; 5]);
}

/// A JPEG of a picture with detail, and where the data of its scan start.
fn detailed_jpeg() -> (Vec<u8>, usize) {
    let pixel = |at: u64| (noise(at) / 4).wrapping_add((at / 3 % 96) as u8);
    let bytes = (0..96 * 64 * 3).map(pixel).collect();
    let jpeg = encode_jpeg(&Pixels { width: 96, height: 64, channels: 3, bytes }, 90).unwrap();
    let start = jpeg.windows(2).position(|w| w == [0xff, 0xda]).unwrap() + 14;
    (jpeg, start)
}

#[track_caller]
fn left_out(jpeg: &[u8], words: &[&str]) {
    let problem = decode_file(jpeg).err().expect("a damaged file is left out");
    assert!(words.iter().any(|word| problem.contains(word)), "{problem}");
}

/// From blocks with hardly a coefficient to blocks with all of them, in short codes and in long ones.
#[test]
fn jpeg_of_every_quality_is_whole() {
    for quality in 1..=100 {
        for loudness in [0, 3, 40, 255] {
            let pixel = |at: u64| (at / 3 % 200) as u8 / 2 + (u64::from(noise(at)) * loudness / 512) as u8;
            let bytes = (0..57 * 43 * 3).map(pixel).collect();
            let jpeg = encode_jpeg(&Pixels { width: 57, height: 43, channels: 3, bytes }, quality).unwrap();
            assert!(decode_file(&jpeg).is_ok_and(|d| d.plain_jpeg), "quality {quality}, noise {loudness}");
            left_out(&[&jpeg[..jpeg.len() - 6], &[0xff, 0xd9]].concat(), &["its data end after"]);
        }
    }
}

#[test]
fn jpeg_cut_and_closed_is_left_out() {
    let (jpeg, start) = detailed_jpeg();
    decode_file(&jpeg).unwrap();
    for length in start..jpeg.len() - 2 {
        left_out(&[&jpeg[..length], &[0xff, 0xd9]].concat(), &["its data end after"]);
    }
    for (_, jpeg, _) in [fixtures("progressive"), fixtures("scans-")].concat() {
        let start = jpeg.windows(2).position(|w| w == [0xff, 0xda]).unwrap() + 14;
        for length in start..jpeg.len() - 2 {
            let cut = [&jpeg[..length], &[0xff, 0xd9]].concat();
            assert!(decode_file(&cut).is_err(), "cut to {length} of {}", jpeg.len());
        }
    }
}

#[test]
fn jpeg_with_a_hole_zeros_or_noise_is_left_out() {
    let (jpeg, start) = detailed_jpeg();
    let (mut tried, mut passed) = (0, 0);
    for at in (start..jpeg.len() - 300).step_by(41) {
        for length in [100, 200, 299] {
            let (before, after) = (&jpeg[..at], &jpeg[at + length..]);
            let random: Vec<u8> = (0..length as u64).map(|i| noise(i + at as u64 * 1000) & 0x7f).collect();
            for filling in [&[][..], &vec![0; length], &random] {
                tried += 1;
                passed += usize::from(decode_file(&[before, filling, after].concat()).is_ok());
            }
        }
    }
    // Damage that leaves the right number of valid codes cannot be seen: a hole of about an MCU, sometimes.
    assert!(tried > 500 && passed * 20 <= tried, "{passed} of {tried} passed");
}

#[test]
fn jpeg_with_missing_or_exchanged_restart_markers_is_left_out() {
    for name in ["scans-one-restart.jpg", "scans-each-restart.jpg", "progressive-restart.jpg"] {
        let jpeg = fs::read(folder().join(name)).unwrap();
        let markers: Vec<usize> = (0..jpeg.len() - 1)
            .filter(|&at| jpeg[at] == 0xff && (0xd0..0xd8).contains(&jpeg[at + 1]))
            .collect();
        assert!(markers.len() >= 5, "{name}");
        for &at in &markers {
            let words = ["restart marker", "its data end after", "make no sense", "left over"];
            left_out(&[&jpeg[..at], &jpeg[at + 2..]].concat(), &words);
            let mut exchanged = jpeg.clone();
            exchanged[at + 1] ^= 1;
            left_out(&exchanged, &["restart marker"]);
        }
    }
}

#[test]
fn jpeg_with_data_left_over_is_left_out_unless_they_are_filler() {
    let (jpeg, _) = detailed_jpeg();
    let end = jpeg.len() - 2;
    left_out(&[&jpeg[..end], &[0x12, 0x34], &jpeg[end..]].concat(), &["data are left over"]);
    decode_file(&[&jpeg[..end], &[0; 6], &jpeg[end..]].concat()).unwrap();
    decode_file(&[&jpeg[..end], &[0xff; 3], &jpeg[end..]].concat()).unwrap();
    decode_file(&[&jpeg[..], b"after the end"].concat()).unwrap();
}

#[test]
fn jpeg_without_a_scan_of_every_colour_is_left_out() {
    let jpeg = fs::read(folder().join("scans-each-422.jpg")).unwrap();
    let last = (0..jpeg.len() - 1).rfind(|&at| jpeg[at..].starts_with(&[0xff, 0xda])).unwrap();
    left_out(&[&jpeg[..last], &[0xff, 0xd9]].concat(), &["some of its scans are missing"]);
}

/// A grey JPEG in which every block is two bits: no change of the DC coefficient, and no other one.
fn blank_jpeg(marker: u8, width: u16, height: u16) -> Vec<u8> {
    let segment = |marker: u8, body: &[u8]| {
        [&[0xff, marker][..], &(body.len() as u16 + 2).to_be_bytes(), body].concat()
    };
    let ([w1, w2], [h1, h2]) = (width.to_be_bytes(), height.to_be_bytes());
    let table = |kind: u8| [&[kind, 1][..], &[0; 15], &[0]].concat();
    let bits = usize::from(width).div_ceil(8) * usize::from(height).div_ceil(8) * 2;
    [
        &[0xff, 0xd8][..],
        &segment(0xdb, &[&[0][..], &[1; 64]].concat()),
        &segment(marker, &[8, h1, h2, w1, w2, 1, 1, 0x11, 0]),
        &segment(0xc4, &[table(0x00), table(0x10)].concat()),
        &segment(0xda, &[1, 1, 0, 0, 63, 0]),
        &vec![0; bits.div_ceil(8)],
        &[0xff, 0xd9],
    ]
    .concat()
}

#[test]
fn huge_jpeg_is_reduced_or_its_limit_is_named() {
    let jpeg = blank_jpeg(0xc0, 12_001, 12_000);
    let problem = decode_file(&jpeg).err().unwrap();
    assert!(problem.contains("12001x12000") && problem.contains("--max-side"), "{problem}");
    for (longest, size) in [(100, (1501, 1500)), (1501, (1501, 1500)), (1502, (3001, 3000))] {
        let decoded = decode_file_to_reduce(&jpeg, Some(longest), Vec::new()).unwrap();
        let Pixels { width, height, channels, bytes } = decoded.pixels;
        assert_eq!((width, height, channels), (size.0, size.1, 1));
        assert!(bytes.iter().all(|&grey| grey == 128));
        assert_eq!((decoded.conversions.scaled_down, decoded.plain_jpeg), (1, false));
    }
    // All coefficients of a progressive file are held at once.
    let problem =
        decode_file_to_reduce(&blank_jpeg(0xc2, 60_000, 60_000), Some(100), Vec::new()).err().unwrap();
    assert!(problem.contains("60000x60000") && problem.contains("scale it down"), "{problem}");
}

/// A few bytes changed, taken out or put in: an error, or an image of the size that it says.
#[test]
fn damaged_files_of_all_kinds_never_panic() {
    let mut draws = (0_u64..).map(|at| noise(at) as usize | (noise(at + (1 << 40)) as usize) << 8);
    let mut draw = |below: usize| draws.next().unwrap() % below.max(1);
    let (mut tried, mut read) = (0, 0);
    for (name, bytes, _) in fixtures("") {
        for _ in 0..500 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + draw(3) {
                // Half of the damage is in the headers.
                let range = if draw(2) == 0 { bytes.len().min(64) } else { bytes.len() };
                let at = draw(range);
                match draw(4) {
                    0 => bytes.truncate(at + 1),
                    1 => _ = bytes.splice(at..(at + 1 + draw(9)).min(bytes.len()), []),
                    2 => bytes.insert(at, draw(256) as u8),
                    _ => bytes[at] = [0, 0xff, draw(256) as u8][draw(3)],
                }
                bytes.push(0);
            }
            tried += 1;
            if let Ok(decoded) = decode_file(&bytes) {
                read += 1;
                let Pixels { width, height, channels, bytes } = decoded.pixels;
                assert_eq!(bytes.len(), (width * height * u32::from(channels)) as usize, "{name}");
            }
        }
    }
    // Damage of all depths: some is refused at once, some not noticed.
    assert!(read * 20 > tried && read * 2 < tried, "{read} of {tried} were read");
}
