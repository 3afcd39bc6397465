//! Validation images from elsewhere: a source of their own, a flat folder with a list; images in both splits; sizes.

use super::*;
use effnet::data::{Dataset, Split};

fn counts(out: &Path) -> [Vec<u64>; 2] {
    let dataset = Dataset::open(out).unwrap();
    Split::BOTH.map(|split| dataset.class_counts(split))
}

#[test]
fn validation_source_is_matched_by_class_name() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source, 5);
    save(&source.join("ape/a.png"), picture(4, 4, 9));
    let val = dir.path().join("val");
    for (class, count) in [("dog", 3), ("cat", 2), ("zebra", 1)] {
        (0..count).for_each(|n| save(&val.join(format!("{class}/{n}.png")), picture(20 + n, 9, 70)));
    }
    let said = pack_ok(&[text(&source), text(&out), "--val", text(&val)]);
    assert!(
        said.contains("1  image of a class without training images left out, such as zebra/0.png"),
        "{said}"
    );
    assert_eq!(Dataset::open(&out).unwrap().classes(), ["ape", "cat", "dog"]);
    assert_eq!(counts(&out), [[1, 5, 5], [0, 2, 3]]);
    let sample = Dataset::open(&out).unwrap();
    assert_eq!(sample.sample(Split::Val, 2).unwrap().width, 20, "the first dog");
    // The validation images are a part of what a pack is resumed by.
    fs::remove_file(val.join("dog/2.png")).unwrap();
    pack_ok(&[text(&source), text(&out), "--val", text(&val), "--force"]);
    assert_eq!(counts(&out)[1], [0, 2, 2]);
    pack_fails(&[text(&source), text(&out), "--val", "nowhere"], &["nowhere: no such file"]);
}

#[test]
fn flat_validation_folder_takes_a_list() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source.join("train"), 4);
    (0..5).for_each(|n| save(&source.join(format!("val/ILSVRC_{n}.JPEG")), picture(20 + n, 9, 70)));
    pack_fails(
        &[text(&source), text(&out)],
        &["images/val: 5 images and no class folders", "--val-list FILE"],
    );
    let list = dir.path().join("val.txt");
    for lines in [
        "ILSVRC_0.JPEG dog\nILSVRC_1.JPEG cat\nILSVRC_3.JPEG cat\nILSVRC_9.JPEG cat\nILSVRC_4.JPEG cow\n",
        "\u{feff}ILSVRC_0.JPEG,1\r\nval/ILSVRC_1.JPEG,0\r\nILSVRC_3.JPEG,0\r\nILSVRC_9.JPEG,0\r\nILSVRC_4.JPEG,2\r\n",
        "ImageId,PredictionString\nILSVRC_0,dog 1 2 3 4\nILSVRC_1,cat 1 2 3 4\nILSVRC_3,cat 1 2\nILSVRC_9,cat\nILSVRC_4,x\n",
    ] {
        fs::write(&list, lines).unwrap();
        let said = pack_ok(&[text(&source), text(&out), "--val-list", text(&list), "--force"]);
        assert_eq!(counts(&out), [[4, 4], [2, 1]], "{said}");
        assert!(said.contains("1  listed image that is not there, such as val/ILSVRC_9"), "{said}");
        assert!(
            said.contains("2  images without a usable label left out, such as val/ILSVRC_2.JPEG: not in"),
            "{said}"
        );
        let dataset = Dataset::open(&out).unwrap();
        assert_eq!(dataset.sample(Split::Val, 0).unwrap().label, 1, "in the order of names");
    }
    fs::write(&list, "a,b,c\n1,2,3\n").unwrap();
    pack_fails(
        &[text(&source), text(&out), "--val-list", text(&list)],
        &["val.txt: 3 columns", "`path` and `label`"],
    );
    let flat = dir.path().join("classes");
    class_folder(&flat, 2);
    pack_fails(&[text(&flat), text(&out), "--val-list", text(&list)], &["--val-list", "val/"]);
}

#[test]
fn images_in_both_splits_are_counted() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    class_folder(&source.join("train"), 4);
    class_folder(&source.join("val"), 2);
    fs::copy(source.join("train/cat/003.png"), source.join("val/dog/zzz.png")).unwrap();
    // The same image twice in training is no trouble for the score.
    fs::copy(source.join("train/cat/003.png"), source.join("train/cat/004.png")).unwrap();
    for number in 0..2 {
        // As large as the others, but of other content.
        save(&source.join(format!("val/cat/{number:03}.png")), picture(40 + number as u32, 30, 50 + number));
        save(&source.join(format!("val/dog/{number:03}.jpg")), picture(40 + number as u32, 30, 50 + number));
    }
    let said = pack_ok(&[text(&source), text(&out)]);
    let words =
        "warning: 1 validation image is a training image too, such as val/dog/zzz.png: train/cat/003.png";
    assert!(said.contains(words), "{said}");
    let value = pack(&[text(&source), text(&out), "--force", "--json"]).good().json();
    assert_eq!(value["duplicates"]["images"], 1);
}

#[test]
fn shorter_side_is_scaled_down() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    for class in ["a", "b"] {
        save(&source.join(format!("train/{class}/1.png")), picture(60, 30, 1));
        save(&source.join(format!("train/{class}/2.jpg")), picture(25, 75, 2));
        save(&source.join(format!("train/{class}/3.png")), picture(50, 20, 3));
        save(&source.join(format!("val/{class}/1.png")), picture(20, 9, 3));
    }
    let said = pack_ok(&[text(&source), text(&out), "--resize-shorter", "20"]);
    assert!(said.contains("4  scaled down"), "{said}");
    let dataset = Dataset::open(&out).unwrap();
    let size = |at| dataset.sample(Split::Train, at).map(|sample| (sample.width, sample.height)).unwrap();
    assert_eq!([size(0), size(1), size(2)], [(40, 20), (20, 60), (50, 20)]);
}
