//! Folders as people have them: names of splits, junk, links, strange names, the output inside the source.

use super::*;
use effnet::data::dataset::PARTIAL;
use effnet::data::pack::skipped::SKIPPED;
use effnet::data::{Dataset, Split};

fn skipped(out: &Path) -> Vec<serde_json::Value> {
    let lines = fs::read_to_string(out.join(SKIPPED)).unwrap_or_default();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The files that were left out for this reason.
fn skipped_as(out: &Path, kind: &str) -> Vec<String> {
    let of_kind = skipped(out).into_iter().filter(|line| line["kind"] == kind);
    of_kind.map(|line| line["file"].as_str().unwrap().to_string()).collect()
}

fn counts(out: &Path) -> [Vec<u64>; 2] {
    let dataset = Dataset::open(out).unwrap();
    Split::BOTH.map(|split| dataset.class_counts(split))
}

#[test]
fn folders_of_a_split_are_known_by_their_usual_names() {
    let names = [("Train", "Val"), ("training", "validation"), ("TRAIN", "valid"), ("train", "Test")];
    for (train, val) in names.into_iter().chain([("Training", "testing")]) {
        let dir = TempDir::new().unwrap();
        let (source, out) = (dir.path().join("images"), dir.path().join("out"));
        class_folder(&source.join(train), 3);
        class_folder(&source.join(val), 2);
        let said = pack_ok(&[text(&source), text(&out)]);
        assert!(said.contains(&format!("packed class folders in {train}/ and {val}/")), "{said}");
        assert_eq!(counts(&out), [[3, 3], [2, 2]], "{train} {val}");
        assert_eq!(Dataset::open(&out).unwrap().classes(), ["cat", "dog"]);
    }
    // A class may have such a name.
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("toys"), dir.path().join("out"));
    for class in ["train", "plane"] {
        (0..4).for_each(|n| save(&source.join(format!("{class}/{n}.png")), picture(5, 5, n)));
    }
    pack_ok(&[text(&source), text(&out)]);
    assert_eq!(Dataset::open(&out).unwrap().classes(), ["plane", "train"]);
}

fn test_counts(out: &Path) -> Vec<u64> {
    Dataset::open(out).unwrap().class_counts(Split::Test)
}

#[test]
fn test_images_are_a_third_part() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("my images"), dir.path().join("out"));
    for (part, each) in [("train", 3), ("val", 2), ("test", 1)] {
        class_folder(&source.join(part), each);
    }
    class_folder(&source.join("notes"), 1);
    save(&source.join("test/bird/1.png"), picture(9, 9, 99));
    save(&source.join("test/cat/unlike.png"), picture(9, 9, 98));
    fs::write(source.join("test/cat/broken.png"), "no").unwrap();
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(said.contains("packed class folders in train/, val/ and test/"), "{said}");
    assert!(said.contains("3  test images, "), "{said}");
    assert!(said.contains("4 validation images are training images too"), "{said}");
    assert!(said.contains("2 test images are training images too, such as test/cat/000.png"), "{said}");
    assert!(said.contains("class `bird` has no training image: left out"), "{said}");
    assert!(said.contains("notes/ is left out"), "{said}");
    assert_eq!((counts(&out), test_counts(&out)), ([vec![3, 3], vec![2, 2]], vec![2, 1]));
    assert_eq!(skipped_as(&out, "part"), ["notes"]);
    assert_eq!(skipped_as(&out, "class"), ["test/bird/1.png"]);
    assert_eq!(skipped_as(&out, "broken"), ["test/cat/broken.png"]);
    let info = pack_ok(&["--info", text(&out)]);
    assert!(
        info.contains("test 3 images, ") && info.contains("    train       val      test  class"),
        "{info}"
    );
    assert!(info.contains("        3         2         2  cat"), "{info}");
    let json = pack(&["--info", text(&out), "--json"]).good().json();
    assert_eq!(json["test"]["class_counts"], serde_json::json!([2, 1]));
    // A run goes on over a set that was packed again with test images.
    let without = dir.path().join("without");
    fs::rename(source.join("test"), dir.path().join("test")).unwrap();
    pack_ok(&[text(&source), text(&without)]);
    let fingerprint = |out: &Path| Dataset::open(out).unwrap().fingerprint();
    assert_eq!(fingerprint(&out), fingerprint(&without));
    let manifest = fs::read_to_string(without.join("dataset.json")).unwrap();
    assert!(!manifest.contains("test") && !without.join("test-00000.shard").exists(), "{manifest}");
    fs::rename(dir.path().join("test"), source.join("test")).unwrap();
    // Every byte of the test images is checked.
    let shard = out.join("test-00000.shard");
    flip(&shard, fs::metadata(&shard).unwrap().len() as usize - 9, 1);
    let ran = pack(&["--verify", text(&out)]);
    assert_eq!(ran.status, Some(1));
    assert!(ran.out.contains("test-00000.shard: sample") && ran.out.contains("1 damaged"), "{}", ran.out);
    // With validation images of their own, the test images of SOURCE stay.
    let val = dir.path().join("val");
    fs::rename(source.join("val"), &val).unwrap();
    let third = dir.path().join("given");
    pack_ok(&[text(&source), text(&third), "--val", text(&val)]);
    assert_eq!((counts(&third), test_counts(&third)), ([vec![3, 3], vec![2, 2]], vec![2, 1]));
    // Without any, they are taken.
    let said = pack_ok(&[text(&source), text(&third), "--force"]);
    assert!(said.contains("packed class folders in train/ and test/"), "{said}");
    assert_eq!((counts(&third), test_counts(&third)), ([vec![3, 3], vec![2, 1]], vec![0, 0]));
    assert!(!third.join("test-00000.shard").exists());
}

#[test]
fn parts_are_packed_alone_and_with_others() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("my images");
    for (part, each) in [("train", 3), ("val", 2), ("test", 1)] {
        class_folder(&source.join(part), each);
    }
    let other = dir.path().join("other");
    pack_ok(&[
        &format!("{}/train", text(&source)),
        text(&other),
        "--val",
        &format!("{}/test", text(&source)),
    ]);
    assert_eq!(counts(&other), [[3, 3], [1, 1]]);
    // Training images alone are split, with a notice.
    let alone = dir.path().join("alone");
    class_folder(&alone.join("train"), 10);
    fs::create_dir_all(alone.join("test")).unwrap();
    save(&alone.join("test/1.png"), picture(4, 4, 1));
    let third = dir.path().join("third");
    let said = pack_ok(&[text(&alone), text(&third)]);
    assert!(said.contains("10 % of the training images of each class are taken"), "{said}");
    assert!(said.contains("test/ is left out, because it has no class folders"), "{said}");
    assert_eq!(counts(&third), [[9, 9], [1, 1]]);
    // Of test images that are all broken there is no part.
    let broken = dir.path().join("broken");
    ["train", "val"].into_iter().for_each(|part| class_folder(&broken.join(part), 2));
    fs::create_dir_all(broken.join("test/cat")).unwrap();
    fs::write(broken.join("test/cat/1.png"), "no").unwrap();
    let fourth = dir.path().join("fourth");
    let said = pack_ok(&[text(&broken), text(&fourth)]);
    assert!(said.contains("notice: no test image could be read"), "{said}");
    assert_eq!((counts(&fourth), test_counts(&fourth)), ([vec![2, 2], vec![2, 2]], vec![0, 0]));
    pack_ok(&["--verify", text(&fourth)]);
}

#[test]
fn junk_is_ignored_by_name_and_counted() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source, 4);
    for junk in
        ["__MACOSX/cat/a.png", "@eaDir/b.png", ".ipynb_checkpoints/c.png", "cat/@eaDir/d.png", ".git/e.png"]
    {
        save(&source.join(junk), picture(4, 4, 1));
    }
    for file in
        ["cat/Thumbs.db", "cat/._000.png", ".DS_Store", "cat/a.txt", "dog/b.mp4", "dog/c.TXT", "dog/README"]
    {
        fs::write(source.join(file), "x").unwrap();
    }
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(
        said.contains("8  files and folders of systems and programs ignored, such as .DS_Store"),
        "{said}"
    );
    let words = "4  files ignored, being no images by name (2 .txt, 1 .mp4, 1 without ending), such as cat/a.txt: no image";
    assert!(said.contains(words), "{said}");
    assert!(said.contains(&format!("listed in {}/skipped.jsonl", text(&out))), "{said}");
    assert_eq!(skipped(&out).len(), 12);
    assert_eq!(counts(&out), [[4, 4].map(|n| n - 1), [1, 1]]);
    let value = pack(&[text(&source), text(&out), "--force", "--json"]).good().json();
    assert_eq!(value["skipped"].as_array().unwrap(), &skipped(&out));
    assert_eq!((&value["ignored"], &value["source"]), (&12.into(), &"class folders".into()));
    // Nothing is left out of the next set, and no old list stays.
    let clean = dir.path().join("clean");
    class_folder(&clean, 2);
    pack_ok(&[text(&clean), text(&out), "--force"]);
    assert!(!out.join(SKIPPED).exists());
}

#[test]
fn class_without_images_is_a_notice() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source, 4);
    fs::create_dir(source.join("ape")).unwrap();
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(said.contains("notice: class `ape` has no training image: left out"), "{said}");
    assert_eq!(Dataset::open(&out).unwrap().classes(), ["cat", "dog"]);
    assert_eq!(counts(&out), [[3, 3], [1, 1]]);

    // In a split, one class may be missing in val/; one that only val/ has cannot be learnt.
    let split = dir.path().join("split");
    class_folder(&split.join("train"), 3);
    save(&split.join("val/dog/a.png"), picture(4, 4, 0));
    save(&split.join("val/bee/a.png"), picture(4, 4, 0));
    let said = pack_ok(&[text(&split), text(&out), "--force"]);
    assert!(said.contains("notice: class `cat` has no image in val/"), "{said}");
    assert!(
        said.contains("1  image of a class without training images left out, such as val/bee/a.png"),
        "{said}"
    );
    assert_eq!(counts(&out), [[3, 3], [0, 1]]);
}

/// To open a pipe would wait for its other end.
#[cfg(unix)]
#[test]
fn pipes_are_not_read() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source, 4);
    let pipe = source.join("cat/pipe.png");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(said.contains("such as cat/pipe.png: a pipe, a socket or a device"), "{said}");
    pack_fails(&[text(&pipe), text(&out)], &["neither a file nor a folder"]);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_lead_nowhere_twice() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source, 4);
    let real = dir.path().join("real");
    class_folder(&real, 3);
    symlink(real.join("cat"), source.join("cat/more")).unwrap();
    symlink(real.join("cat"), source.join("cat/most")).unwrap();
    symlink("..", source.join("dog/up")).unwrap();
    symlink(".", source.join("dog/here")).unwrap();
    symlink(real.join("dog"), source.join("wolf")).unwrap();
    let said = pack_ok(&[text(&source), text(&out), "--val-fraction", "0.01"]);
    // dog/up holds all: the cats and wolves there are dogs too, because their folder says so; dogs are read once.
    let dataset = Dataset::open(&out).unwrap();
    assert_eq!(dataset.classes(), ["cat", "dog", "wolf"]);
    let [train, val] = counts(&out);
    let all: Vec<u64> = train.iter().zip(&val).map(|(a, b)| a + b).collect();
    assert_eq!(all, [4 + 3, 4 + 7 + 3, 3], "{said}");
    let links = skipped_as(&out, "link");
    assert!(links.contains(&"cat/most".into()) && links.contains(&"dog/here".into()), "{links:?}");
    assert!(said.contains("links not followed"), "{said}");
    assert!(said.contains("training images too"), "images under two classes are the same: {said}");
}

#[test]
fn output_inside_the_source_is_no_class() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("images");
    class_folder(&source, 4);
    let out = source.join("out");
    // An interrupted pack, and then one to the end, and another.
    fs::create_dir(&out).unwrap();
    fs::write(out.join(format!("{PARTIAL}.tmp")), "").unwrap();
    for (to, count) in [(out.clone(), 1), (source.join("cat/second"), 1), (dir.path().join("third"), 2)] {
        let said = pack_ok(&[text(&source), text(&to)]);
        assert_eq!(Dataset::open(&to).unwrap().classes(), ["cat", "dog"]);
        assert_eq!(
            (counts(&to), skipped_as(&to, "packed").len()),
            ([vec![3, 3], vec![1, 1]], count),
            "{said}"
        );
    }
    pack_fails(&[text(&source), text(&source), "--force"], &["SOURCE and OUT are the same"]);
    let inside = source.join("cat");
    pack_fails(&[text(&source), text(&inside), "--force"], &["images/cat: lies in SOURCE and holds images"]);
    assert!(!inside.join(PARTIAL).exists() && !source.join(PARTIAL).exists());
}

#[cfg(unix)]
#[test]
fn names_are_escaped_and_commands_quoted() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("my photos"), dir.path().join("my 'data'"));
    for class in ["new\nline", "esc\u{1b}[31m", "caf\u{e9} \u{1f600}"] {
        (0..3).for_each(|n| save(&source.join(class).join(format!("{n}.png")), picture(5, 5, n)));
    }
    fs::write(source.join("new\nline/bad\u{1b}[2J.png"), "x").unwrap();
    fs::write(source.join("new\nline/a\u{7}.txt"), "x").unwrap();
    fs::create_dir(source.join("empty\r")).unwrap();
    let said = pack_ok(&[text(&source), text(&out)]);
    assert!(!said.chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
    assert!(said.contains(r"left out new\nline/bad\u{1b}[2J.png: ") && said.contains(r"`empty\r`"), "{said}");
    let quoted = format!(r"effnet-train --data '{}/my '\''data'\'''", text(dir.path()));
    assert!(said.contains(&quoted), "{said}");
    let info = pack_ok(&["--info", text(&out)]);
    assert!(
        info.contains(r"esc\u{1b}[31m")
            && info.contains(r"new\nline")
            && info.contains("caf\u{e9} \u{1f600}"),
        "{info}"
    );
    assert!(!info.chars().any(|c| c.is_control() && c != '\n'), "{info:?}");
    let value = pack(&[text(&source), text(&out), "--force", "--json"]).good().json();
    assert_eq!(value["broken"][0]["file"], "new\nline/bad\u{1b}[2J.png", "JSON has the name itself");

    // A class must have a name in UTF-8; other files and directories need none.
    let bad = OsStr::from_bytes(b"bad\xff");
    fs::write(source.join("new\nline").join(OsStr::from_bytes(b"\xfe.png")), "x").unwrap();
    let odd_out = dir.path().join(bad);
    let ran = run(program("effnet-pack").arg(&source).arg(&odd_out).arg("--json")).good();
    assert_eq!(ran.json()["broken"].as_array().unwrap().len(), 2);
    fs::create_dir(source.join(bad)).unwrap();
    pack_fails(
        &[text(&source), text(&out), "--force"],
        &["bad\u{fffd}: a class folder's name must be UTF-8"],
    );
}
