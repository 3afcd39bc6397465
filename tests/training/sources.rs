//! Images that are not packed, and sets of three parts, as `effnet-train` and `effnet-eval` take them.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::common::data::{self, save};
use crate::common::programs::{Ran, ended, program, run, signal, wait_for};
use image::{Rgb, RgbImage};
use rustix::process::Signal;

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
    eval("--split tests").refused(2, &["use train, val or test"]);
    let old = data::packed();
    call("effnet-train", old.path(), &format!("--data data {STEP} --out run")).good();
    call("effnet-eval", old.path(), "run/checkpoint.bin --split test")
        .refused(1, &["data: the set has no test images"]);
}

/// Images that a run's own data are found again, others are packed, and what is neither is answered.
#[test]
fn images_that_are_not_packed_are_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    photos(&dir.path().join("photos"), 8, 1);
    photos(&dir.path().join("more"), 4, 2);
    let cmyk = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cmyk.jpg");
    fs::copy(cmyk, dir.path().join("more/cat/9.jpg")).unwrap();
    let eval = |at: &Path, flags: &str| call("effnet-eval", at, flags);
    call("effnet-train", dir.path(), &format!("--data photos {STEP} --out runs/a")).good();
    let own = eval(dir.path(), "runs/a/checkpoint.bin --json").good();
    let again = eval(dir.path(), "runs/a/checkpoint.bin --data photos --json").good();
    assert!(again.err.starts_with("photos is packed already: runs/packed/photos-"), "{}", again.err);
    let figures = |ran: &Ran| ["top1", "loss", "images"].map(|key| ran.json()[key].clone());
    assert_eq!(figures(&own), figures(&again));
    // From the run's folder too.
    let inside = eval(&dir.path().join("runs/a"), "checkpoint.bin --data ../../photos").good();
    assert!(inside.err.contains("is packed already: ../packed/photos-"), "{}", inside.err);
    let more = eval(dir.path(), "runs/a/checkpoint.bin --data more --split train").good();
    assert!(more.err.contains("more (class folders) is packed to runs/packed/more-"), "{}", more.err);
    let anew = ": 9 images; 1 JPEG file encoded anew at quality 95 (turned, CMYK or of a rare kind)\n";
    assert!(more.err.contains(anew), "{}", more.err);
    assert!(more.err.contains("is not the data that this checkpoint was trained on"), "{}", more.err);
    assert!(more.out.contains(", 7 images of train"), "{}", more.out);
    eval(dir.path(), "runs/a/checkpoint.bin --data gone")
        .refused(1, &["gone: no such directory; `effnet-pack SOURCE gone` makes one"]);
    call("effnet-train", dir.path(), "--data gone")
        .refused(1, &["`effnet-pack SOURCE gone` makes one", "`--data synthetic` or `effnet-train --demo`"]);
}

#[test]
fn plan_of_images_that_are_not_packed_is_for_their_classes() {
    let dir = tempfile::tempdir().unwrap();
    photos(&dir.path().join("photos"), 80, 1);
    let train = |flags: &str| call("effnet-train", dir.path(), &format!("{flags} --device cpu")).good();
    let parameters =
        |data: &str| train(&format!("--summary --json --data {data}")).json()["parameters"].clone();
    let plan = train("--dry-run --data photos").out;
    let line =
        "photos (class folders) is not packed: planned for 2 classes and 144 training images as listed";
    assert!(plan.contains(line) && plan.contains("at least 224 pixels a side"), "{plan}");
    assert!(plan.contains("chosen for 144 training images"), "{plan}");
    assert!(!dir.path().join("runs").exists(), "a plan packs nothing");
    let nothing = train("--dry-run --data none").out;
    assert!(
        nothing.contains("none: no such directory; planned for 1000 classes, as ImageNet has"),
        "{nothing}"
    );
    let before = parameters("photos");
    assert_ne!(before, parameters("none"));
    // The same as of the packed set.
    call("effnet-pack", dir.path(), "photos data").good();
    assert_eq!(before, parameters("data"));
    call("effnet-train", dir.path(), &format!("--data photos {STEP} --out runs/a")).good();
    let packed = train("--dry-run --data photos").out;
    assert!(
        packed.contains("none larger than 40 pixels: padded") && !packed.contains("not packed"),
        "{packed}"
    );
}

/// Many large photographs, of which each takes a while; the same file under many names.
fn many(folder: &Path) {
    let photo = RgbImage::from_fn(2400, 1800, |x, y| Rgb([x as u8, y as u8, (x / 9 + y) as u8]));
    save(&folder.join("cat/0.jpg"), photo);
    fs::create_dir(folder.join("dog")).unwrap();
    for number in 1..60 {
        let class = ["cat", "dog"][number % 2];
        fs::hard_link(folder.join("cat/0.jpg"), folder.join(format!("{class}/{number}.jpg"))).unwrap();
    }
}

#[test]
fn signal_while_images_are_packed_ends_at_once_and_the_pack_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    many(&dir.path().join("photos"));
    let begun = || {
        let stores = fs::read_dir(dir.path().join("runs/packed")).into_iter().flatten().flatten();
        stores.into_iter().any(|store| store.path().join("pack.partial.json").exists())
    };
    for ranks in [" --ranks 2", ""] {
        let _ = fs::remove_dir_all(dir.path().join("runs"));
        let flags = format!("--data photos {STEP}{ranks} --out runs/a");
        let mut child =
            program("effnet-train").current_dir(dir.path()).args(flags.split_whitespace()).spawn().unwrap();
        assert!(wait_for(&mut child, Duration::from_secs(60), begun));
        signal(child.id() as i32, Signal::INT);
        let ran = ended(child);
        assert_eq!(ran.status, Some(130), "{}", ran.printed());
        assert_eq!(ran.err, "stopping: what is packed stays, and the same command goes on with it\n");
        assert!(
            ran.out.contains("packing is stopped; the same command goes on with runs/packed/"),
            "{}",
            ran.out
        );
        assert!(begun() && !dir.path().join("runs/a").exists());
    }
    let done = call("effnet-train", dir.path(), &format!("--data photos {STEP} --out runs/a")).good().out;
    assert!(done.contains("60 images") && !begun(), "{done}");
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
