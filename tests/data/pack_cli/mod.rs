//! The program `effnet-pack`, as a user runs it.

mod archives;
mod bench;
mod containers;
mod folders;
mod images;
mod interrupted;
mod sources;
mod streaming;
mod validation;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use crate::common::data::{flip, gzip, idx_folder, noise, save};
use crate::common::programs::{Ran, program, run};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use tempfile::TempDir;

fn pack(arguments: &[&str]) -> Ran {
    run(program("effnet-pack").args(arguments))
}

#[track_caller]
fn pack_ok(arguments: &[&str]) -> String {
    pack(arguments).good().out
}

#[track_caller]
fn pack_fails(arguments: &[&str], words: &[&str]) {
    pack(arguments).refused(1, words);
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
    fs::create_dir(at("begun")).unwrap();
    fs::write(at("begun/pack.partial.json"), "x").unwrap();
    fs::create_dir(at("run")).unwrap();
    fs::write(at("run/checkpoint.bin"), "x").unwrap();
    let [to, from] =
        ["`effnet-pack SOURCE {}` makes one", "if images lie there, `effnet-pack {} OUT` packs them"];
    for (name, word, way) in [
        ("nowhere", "no such directory", to),
        ("empty", "is empty", to),
        ("other", "no dataset", from),
        ("other/file", "not a directory", from),
        ("begun", "packing was interrupted", "run the same `effnet-pack` again"),
        ("run", "no dataset", "it is the folder of a run, whose recipe.toml names its data"),
    ] {
        for option in ["--verify", "--info", "--bench"] {
            let way = way.replace("{}", text(&at(name)));
            pack_fails(&[option, text(&at(name))], &[name, word, &way]);
        }
    }
}

#[test]
fn verify_names_the_damaged_file_and_sample() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("idx"), dir.path().join("out"));
    idx_folder(&source, 30, 10, [5, 6]);
    pack_ok(&[text(&source), text(&out)]);
    let shard = out.join("train-00000.shard");
    let size = fs::metadata(&shard).unwrap().len() as usize;
    flip(&shard, size - 30 * 30 + 12 * 30 + 7, 4);
    let ran = pack(&["--verify", text(&out)]);
    assert_eq!(ran.status, Some(1));
    assert!(
        ran.out.contains("train-00000.shard: sample 12:") && ran.out.contains("1 damaged"),
        "{}",
        ran.out
    );
    let ran = pack(&["--verify", text(&out), "--json"]);
    assert_eq!(ran.status, Some(1));
    let value = ran.json();
    assert_eq!((value["damage"].as_array().unwrap().len(), &value["samples"]), (1, &40.into()));

    fs::File::options().write(true).open(&shard).unwrap().set_len(size as u64 - 1).unwrap();
    let ran = pack(&["--verify", text(&out)]);
    assert_eq!(ran.status, Some(1));
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
        &["source", "out", "--resize-shorter", "0"],
        &["source", "out", "--val", "a", "--val-list", "b"],
        &["source", "out", "--shard-size", "0"],
        &["source", "out", "--threads", "0"],
        &["--verify", "a", "--info", "b"],
        &["source", "out", "--verify", "a"],
        &["--frobnicate"],
    ] {
        let ran = pack(arguments);
        assert_eq!(ran.status, Some(2), "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains("error:"), "{}", ran.err);
    }
    assert!(pack_ok(&["--help"]).contains("IDX"));
}
