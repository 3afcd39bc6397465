//! Images that are not packed, and sets of three parts, as `effnet-train` and `effnet-eval` take them.
#![cfg(unix)]

use std::path::Path;

use crate::common::data::{self, save};
use crate::common::programs::{Ran, program, run};
use image::{Rgb, RgbImage};

fn call(name: &str, dir: &Path, flags: &str) -> Ran {
    run(program(name).current_dir(dir).args(flags.split_whitespace()))
}

/// A step of a small run on the CPU.
const STEP: &str = "--device cpu --resolution 32 --batch-size 4 --max-steps 1";

/// Class folders of two classes.
fn photos(root: &Path, each: u8, salt: u8) {
    for number in 0..each {
        for (class, shade) in [("cat", 40), ("dog", 200)] {
            let colour = Rgb([shade, 255 - shade, number.wrapping_mul(9) ^ salt]);
            save(&root.join(format!("{class}/{number}.png")), RgbImage::from_pixel(40, 36, colour));
        }
    }
}

#[test]
fn test_images_are_evaluated_like_those_of_validation() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (part, each, salt) in [("train", 6, 1), ("val", 2, 2), ("test", 3, 3)] {
        photos(&at("photos").join(part), each, salt);
    }
    let out = call("effnet-train", dir.path(), &format!("--data photos {STEP} --out runs/a")).good().out;
    assert!(
        out.contains("(class folders in train/, val/ and test/) is packed") && out.contains("22 images"),
        "{out}"
    );
    let eval = |flags: &str| call("effnet-eval", dir.path(), &format!("runs/a/checkpoint.bin {flags}"));
    let test = eval("--split test --json").good();
    assert_eq!(test.json()["images"], 6);
    assert!(eval("--split test").good().out.contains(", 6 images of test"));
    // The same figures as of a set with these images as validation.
    call("effnet-pack", dir.path(), "photos/train second --val photos/test").good();
    let second = eval("--data second --json").good();
    let figures = |ran: &Ran| ["top1", "top5", "loss", "images"].map(|key| ran.json()[key].clone());
    assert_eq!(figures(&test), figures(&second));
    assert_ne!(figures(&test), figures(&eval("--json").good()));
    let parts = ["second: the set has no test images", "effnet-pack SOURCE OUT", "--data OUT"];
    eval("--data second --split test").refused_after(1, "is not the data that this checkpoint", &parts);
    eval("--split tests").refused(2, &["train, val, test"]);
    let old = data::packed();
    call("effnet-train", old.path(), &format!("--data data {STEP} --out run")).good();
    call("effnet-eval", old.path(), "run/checkpoint.bin --split test")
        .refused(1, &["data: the set has no test images"]);
}

impl Ran {
    /// [`Ran::refused`], perhaps after a warning.
    #[track_caller]
    fn refused_after(mut self, status: i32, warning: &str, parts: &[&str]) {
        self.err =
            self.err.lines().filter(|line| !line.contains(warning)).map(|line| format!("{line}\n")).collect();
        self.refused(status, parts);
    }
}
