//! `effnet-eval --explain`: the picture of what speaks for a class.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::evaluate::{bad, eval, good, path, text};
use crate::common::data;
use crate::common::training::saved;
use effnet::data::{CropMode, evaluate_image};
use effnet::ops::Weights;
use effnet::train::TrainError;
use effnet::train::classify::Classifying;
use effnet::train::device::Cpu;
use effnet::train::evaluator::Evaluator;
use effnet::train::heat_map::picture;
use serde_json::Value;

/// Stripes of a width of their own for each number.
fn save_stripes(path: &Path, number: u32) {
    let of =
        |x: u32, y: u32| [x * 6, (x / (2 + number) % 2) * 200, (y * 5) ^ number].map(|value| value as u8);
    data::save(path, image::RgbImage::from_fn(40, 33, |x, y| image::Rgb(of(x, y))));
}

fn pixels(file: &Path) -> image::RgbImage {
    image::open(file).unwrap().into_rgb8()
}

/// The maps of images by the trained network: for each class, their mean and the bias are the logit.
#[test]
fn maps_of_a_trained_network_have_the_logits_as_their_means() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..5).map(|number| dir.path().join(format!("{number}.png"))).collect();
    (0..).zip(&files).for_each(|(number, file)| save_stripes(file, number));
    let checkpoint = saved(&path("run"));
    let bias = &checkpoint.state.parameters;
    let table = effnet::model::ParamTable::new(&checkpoint.architecture);
    let bias = &bias[table.get("classifier.bias").unwrap().offset..];
    let mut evaluator = Evaluator::new(&checkpoint, 2, Cpu::new(2, "as asked")).unwrap();
    let stop = AtomicBool::new(false);
    let how = Classifying { weights: Weights::Raw, threads: 2, maps: true, stop: &stop };
    let mut compared = 0;
    let done = evaluator.classify(&files.into(), &how, &mut |_, seen| {
        let seen = seen.unwrap();
        for (class, &logit) in seen.logits.iter().enumerate() {
            let map = seen.map(class).unwrap();
            let mean = map.iter().sum::<f64>() / map.len() as f64 + f64::from(bias[class]);
            // The CPU adds 1280 products in f32: each rounding is 6e-8 of a sum that is of the logits' size.
            assert!((mean - f64::from(logit)).abs() < 1e-5 * (1.0 + mean.abs()), "{mean} and {logit}");
            compared += 1;
        }
        Ok::<(), TrainError>(())
    });
    assert_eq!((done.unwrap(), compared), (5, 25));
}

#[test]
fn picture_of_an_image_is_its_square_beside_its_map() {
    let dir = tempfile::tempdir().unwrap();
    let (image, out) = (dir.path().join("a.png"), dir.path().join("why.png"));
    save_stripes(&image, 1);
    let checkpoint = path("run/checkpoint.bin");
    let plain = good(&[text(&checkpoint), text(&image), "--json"]);
    let plain: Value = serde_json::from_str(&plain).unwrap();
    let best = plain["classes"][0]["class"].as_str().unwrap();
    let printed = good(&[text(&checkpoint), text(&image), "--json", "--explain", text(&out)]);
    let explained: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(explained["classes"], plain["classes"]);
    assert_eq!(explained["explanation"]["class"], best);
    assert_eq!(explained["explanation"]["file"], text(&out));
    // The left half is what the network saw, each pixel eight times as large.
    let drawn = pixels(&out);
    assert_eq!(drawn.dimensions(), (2 * 256 + 8, 256));
    let square = evaluate_image(&image, 32, CropMode::Pad).unwrap();
    for (x, y) in (0..256).flat_map(|x| (0..256).map(move |y| (x, y))) {
        let at = (y / 8 * 32 + x / 8) as usize * 3;
        assert_eq!(drawn.get_pixel(x, y).0, square[at..at + 3]);
    }
    // At 32x32 the map has one place, so there is nothing to compare, and the right half is the image again.
    assert!(drawn == picture(&square, &[1.0]));

    let other = (0..5).map(|class| class.to_string()).find(|class| class != best).unwrap();
    let arguments = [text(&checkpoint), text(&image), "--explain", text(&out), "--explain-class", &other];
    assert!(good(&arguments).contains(&format!("  what speaks for {other}: {}", out.display())));
}

#[test]
fn pictures_of_a_folder_have_the_paths_of_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let (images, out) = (dir.path().join("images"), dir.path().join("why/maps"));
    let names = ["a.bmp", "a.png", "deep/a.png"];
    (0..).zip(names).for_each(|(number, name)| save_stripes(&images.join(name), number));
    let checkpoint = path("run/checkpoint.bin");
    let printed = good(&[text(&checkpoint), text(&images), "--explain", text(&out), "--batch-size", "2"]);
    for name in names {
        let picture = out.join(format!("{name}.png"));
        assert!(printed.contains(&format!(": {}\n", picture.display())), "{printed}");
        let square = evaluate_image(&images.join(name), 32, CropMode::Pad).unwrap();
        assert!(pixels(&picture) == effnet::train::heat_map::picture(&square, &[1.0]), "{name}");
    }
    // A broken image has no picture, and the others have theirs.
    fs::write(images.join("a.bmp"), "no image").unwrap();
    fs::remove_dir_all(&out).unwrap();
    assert_eq!(eval(&[text(&checkpoint), text(&images), "--explain", text(&out)]).status, Some(1));
    assert!(!out.join("a.bmp.png").exists() && out.join("a.png.png").exists());
    // With a folder that is there, one image goes into it too.
    good(&[text(&checkpoint), text(&images.join("a.png")), "--explain", text(dir.path())]);
    assert!(dir.path().join("a.png.png").exists());
}

#[test]
fn explanation_that_cannot_be_made_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|folder| dir.path().join(folder).join("a.png"));
    [&one, &two].into_iter().for_each(|file| save_stripes(file, 0));
    let checkpoint = path("run/checkpoint.bin");
    let refused =
        |arguments: &[&str], parts: &[&str]| bad(&[&[text(&checkpoint)], arguments].concat(), parts);
    let out = dir.path().join("out");
    refused(&[text(&one), "--explain", text(&out)], &["out", ".png"]);
    refused(&[text(&one), "--explain", text(&one)], &["a.png", "is one of the images"]);
    refused(&[text(&one), text(&two), "--explain", text(&one)], &["is a file", "a folder"]);
    refused(&[text(&one), text(&two), "--explain", text(&out)], &["one/a.png", "two/a.png", "out/a.png.png"]);
    let class = ["--explain-class", "dog"];
    refused(
        &[&[text(&one), "--explain", "x.png"], &class[..]].concat(),
        &["dog", "no such class", "0, 1, 2, 3, 4"],
    );
    for wrong in [&["--explain", "x.png"][..], &[text(&one), "--explain-class", "1"]] {
        assert_eq!(eval(&[&[text(&checkpoint)], wrong].concat()).status, Some(2), "{wrong:?}");
    }
    assert!(!out.exists());
}
