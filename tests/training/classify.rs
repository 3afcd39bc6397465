//! `effnet-eval` with many images: folders, forms of the output, its file, and how it ends early.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::evaluate::{bad, eval, good, path, text};
use crate::common::data;
use crate::common::programs::{Ran, ended, program, signal, wait_for};
use effnet::data::loader::evaluation_steps;
use effnet::data::{CropMode, Form, Loader, LoaderConfig, Share, evaluate_image};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

/// An image of noise, of its own for each number.
fn image(number: u64) -> image::RgbImage {
    image::RgbImage::from_fn(40, 33, |x, y| {
        let place = (number << 24) + u64::from(y * 40 + x) * 3;
        image::Rgb([0, 1, 2].map(|channel| data::noise(place + channel)))
    })
}

/// Names in the order of their bytes: `-` and `.` come before `/`, capitals before small letters.
const NAMES: [&str; 7] =
    ["B.png", "a-b/c.png", "a.png", "a/deep/er/x.webp", "a/z.bmp", "b, \"c\".png", "c.PNG"];

/// A folder of seven images, and of what is none.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (number, name) in (0..).zip(NAMES) {
        data::save(&dir.path().join(name), image(number));
    }
    fs::write(dir.path().join("notes.txt"), "no image").unwrap();
    fs::write(dir.path().join(".hidden.png"), "no image").unwrap();
    fs::create_dir(dir.path().join(".hidden")).unwrap();
    data::save(&dir.path().join(".hidden/h.png"), image(9));
    symlink(dir.path(), dir.path().join("a/loop")).unwrap();
    dir
}

fn images_of(lines: &str) -> Vec<PathBuf> {
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.map(|line| PathBuf::from(line["image"].as_str().unwrap())).collect()
}

#[test]
fn folder_is_classified_in_the_order_of_its_paths() {
    let dir = folder();
    let checkpoint = path("run/checkpoint.bin");
    let ran = eval(&[text(&checkpoint), text(dir.path()), "--json"]).good();
    let names: Vec<PathBuf> = NAMES.iter().map(|name| dir.path().join(name)).collect();
    assert_eq!(images_of(&ran.out), names);
    for note in
        ["1 file ignored, being no image by name (1 .txt)", "2 files and folders of systems", "1 link"]
    {
        assert!(ran.err.contains(note), "{}", ran.err);
    }
    // Files and folders in the order of the arguments, files whatever their names.
    let odd = dir.path().join("notes.png.txt");
    fs::copy(&names[0], &odd).unwrap();
    let deep = dir.path().join("a/deep");
    let out = good(&[text(&checkpoint), text(&odd), text(&deep), text(&names[2]), "--json"]);
    assert_eq!(images_of(&out), [odd, names[3].clone(), names[2].clone()]);
    // A folder without images is an error; of the arguments none is classified.
    bad(&[text(&checkpoint), text(&names[0]), text(&path("run"))], &["run", "no image"]);
}

/// The same bits for each image, whatever is in a batch with it.
#[test]
fn classes_of_an_image_do_not_depend_on_its_batch() {
    let dir = folder();
    let checkpoint = path("run/checkpoint.bin");
    let ran = |batch: &str, threads: &str| {
        let batch = ["--batch-size", batch, "--threads", threads, "--loader-threads", threads];
        good(&[&[text(&checkpoint), text(dir.path()), "--json"], &batch[..]].concat())
    };
    let alone = ran("1", "1");
    assert_eq!(alone.lines().count(), NAMES.len());
    for (batch, threads) in [("1", "3"), ("2", "1"), ("5", "2"), ("7", "3"), ("32", "2")] {
        assert_eq!(ran(batch, threads), alone, "batches of {batch}");
    }
    let single = dir.path().join(NAMES[3]);
    let line = good(&[text(&checkpoint), text(&single), "--json"]);
    assert_eq!(line.lines().next(), alone.lines().nth(3));
}

#[test]
fn broken_image_does_not_stop_the_others() {
    let dir = folder();
    let checkpoint = path("run/checkpoint.bin");
    let whole = good(&[text(&checkpoint), text(dir.path()), "--json"]);
    fs::write(dir.path().join("a/a.jpg"), b"\xff\xd8\xff no image").unwrap();
    symlink("nowhere", dir.path().join("d.png")).unwrap();
    let out = dir.path().join("out.jsonl");
    for batch in ["1", "4", "9"] {
        let arguments = [text(&checkpoint), text(dir.path()), "--batch-size", batch, "--out", text(&out)];
        let Ran { status, err, out: printed } = eval(&arguments);
        assert_eq!(status, Some(1), "{err}");
        let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 3, "{err}");
        assert!(errors[0].contains("a/a.jpg") && errors[1].contains("d.png"), "{err}");
        assert_eq!(errors[2], "error: 2 of 9 images could not be read");
        assert!(printed.contains("out.jsonl: 7 images, "), "{printed}");
        assert_eq!(fs::read_to_string(&out).unwrap(), whole, "{batch}");
    }
}

#[test]
fn csv_has_the_classes_and_probabilities_of_json() {
    let dir = folder();
    let checkpoint = path("run/checkpoint.bin");
    let csv = good(&[text(&checkpoint), text(dir.path()), "--csv", "--topk", "3"]);
    let json = good(&[text(&checkpoint), text(dir.path()), "--json", "--topk", "3"]);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let header = reader.headers().unwrap().clone();
    let names = "image class_1 probability_1 class_2 probability_2 class_3 probability_3";
    assert_eq!(header.iter().collect::<Vec<_>>(), names.split(' ').collect::<Vec<_>>());
    let mut rows = 0;
    for (row, line) in reader.records().zip(json.lines()) {
        let (row, line) = (row.unwrap(), serde_json::from_str::<Value>(line).unwrap());
        assert_eq!(line["image"], row[0]);
        let classes = line["classes"].as_array().unwrap();
        assert_eq!((classes.len(), row.len()), (3, 7));
        for (number, class) in classes.iter().enumerate() {
            assert_eq!(class["class"], row[1 + 2 * number]);
            assert_eq!(class["probability"].as_f64(), Some(row[2 + 2 * number].parse().unwrap()));
        }
        rows += 1;
    }
    assert_eq!(rows, NAMES.len());

    // The ending of the file says the form. More classes than there are are cut, and a line says so.
    let file = dir.path().join("out.csv");
    fs::write(&file, "old").unwrap();
    let ran = eval(&[text(&checkpoint), text(dir.path()), "--out", text(&file), "--topk", "9"]).good();
    assert!(ran.err.contains("--topk 9: there are 5 classes"), "{}", ran.err);
    assert!(ran.out.contains("out.csv: 7 images, "), "{}", ran.out);
    let all = fs::read_to_string(&file).unwrap();
    assert!(all.lines().next().unwrap().ends_with("class_5,probability_5"), "{all}");
    assert_eq!(all.lines().count(), 1 + NAMES.len());
    let as_json = good(&[text(&checkpoint), text(dir.path()), "--out", text(&file), "--json"]);
    assert!(as_json.contains("out.csv") && fs::read_to_string(&file).unwrap().starts_with('{'));
}

#[test]
fn output_that_would_replace_something_is_refused() {
    let dir = folder();
    let (checkpoint, images) = (path("run/checkpoint.bin"), text(dir.path()));
    let refused = |out: &Path, part: &str| {
        bad(&[text(&checkpoint), "--out", text(out), text(&dir.path().join(NAMES[0]))], &[part])
    };
    refused(dir.path(), "is a folder");
    refused(&checkpoint, "is a checkpoint");
    refused(&dir.path().join(NAMES[0]), "name of an image");
    refused(&dir.path().join("missing/out.csv"), "missing/out.csv");
    for wrong in
        [&["--topk", "0"][..], &["--csv", "--json"], &["--out", "x.csv", "--export", "y.safetensors"]]
    {
        assert_eq!(eval(&[&[text(&checkpoint), images], wrong].concat()).status, Some(2), "{wrong:?}");
    }
    // They say nothing about an evaluation.
    for wrong in [&["--topk", "2"][..], &["--csv"], &["--out", "x.csv"]] {
        assert_eq!(eval(&[&[text(&checkpoint)], wrong].concat()).status, Some(2), "{wrong:?}");
    }
}

/// A folder of so many images that they take long, one after the other.
fn many(dir: &Path) {
    data::save(&dir.join("0.png"), image(0));
    (1..4000).for_each(|number| fs::hard_link(dir.join("0.png"), dir.join(format!("{number}.png"))).unwrap());
}

#[test]
fn interrupt_ends_the_classification_without_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (images, out) = (dir.path().join("images"), dir.path().join("out.csv"));
    many(&images);
    let mut command = program("effnet-eval");
    command.arg(path("run/checkpoint.bin")).arg(&images).args(["--batch-size", "1", "--out", text(&out)]);
    let mut child = command.spawn().unwrap();
    // The file is begun after the handler of signals.
    let begun = dir.path().join("out.csv.tmp");
    assert!(wait_for(&mut child, Duration::from_secs(60), || begun.exists()), "{:?}", ended(child));
    signal(child.id() as i32, Signal::INT);
    let Ran { status, err, .. } = ended(child);
    assert_eq!(status, Some(130), "{err}");
    assert!(err.starts_with("stopping: ") && err.lines().count() == 2, "{err}");
    assert!(err.contains("of 4000 images; ") && err.contains("is not written"), "{err}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "neither the file nor its beginning");
}

#[test]
fn closed_pipe_ends_the_classification_without_an_error() {
    let dir = tempfile::tempdir().unwrap();
    many(dir.path());
    let mut command = program("effnet-eval");
    let mut child = command.arg(path("run/checkpoint.bin")).arg(dir.path()).arg("--csv").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("image,class_1,"));
    assert!(lines.next().unwrap().unwrap().contains("0.png,"));
    drop(lines);
    let Ran { status, err, .. } = ended(child);
    assert_eq!((status, err.as_str()), (Some(0), ""));
}

/// The loader's squares are those of a single image, and a broken file's is black.
#[test]
fn loader_of_files_gives_each_file_its_square() {
    let dir = folder();
    let mut files: Vec<PathBuf> = NAMES.iter().map(|name| dir.path().join(name)).collect();
    let broken = dir.path().join("broken.png");
    fs::write(&broken, "no image").unwrap();
    files.insert(3, broken);
    let files: Arc<[PathBuf]> = files.into();
    for form in [Form::Squares, Form::Raw { images: 3 }] {
        let steps = evaluation_steps(files.len(), 3, Share::WHOLE);
        let config =
            LoaderConfig { batch: 3, crop: CropMode::Resized, form, steps, threads: 2, ..data::LOADER };
        let mut loader = Loader::start_with_files(files.clone(), config).unwrap();
        let mut number = 0;
        while let Some(batch) = loader.next().unwrap() {
            for at in 0..batch.images {
                let square = batch.pixels.get(at * 32 * 32 * 3..(at + 1) * 32 * 32 * 3).unwrap();
                match batch.broken.iter().find(|(broken, _)| *broken == at) {
                    Some((_, problem)) => {
                        assert!(number == 3 && problem.contains("broken.png"), "{number}: {problem}");
                        assert!(form != Form::Squares || square.iter().all(|&byte| byte == 0));
                    }
                    None if form == Form::Squares => {
                        assert!(square == evaluate_image(&files[number], 32, CropMode::Resized).unwrap());
                    }
                    None => {}
                }
                number += 1;
            }
            assert_eq!(batch.broken.len(), usize::from((number - batch.images..number).contains(&3)));
            loader.recycle(batch);
        }
        assert_eq!(number, files.len());
    }
}
