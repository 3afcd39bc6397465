//! The demo works in any directory, and repeatedly.

use std::fs;
use std::path::Path;

use crate::common::programs::{program, run};

fn demo(dir: &Path, arguments: &[&str]) -> String {
    run(program("effnet-train").current_dir(dir).arg("--demo").args(arguments)).good().out
}

#[test]
fn demo_runs_beside_earlier_demos_and_resumes_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let first = demo(dir.path(), &["--max-steps", "3"]);
    assert!(first.contains("images: 10,000 training, 2,000 validation"), "{first}");
    assert!(first.contains("after step 3 of"), "{first}");
    let second = demo(dir.path(), &["--max-steps", "3"]);
    assert!(second.contains("runs/demo-2") && second.contains("stay as they are"), "{second}");
    let read = |run: &str| fs::read(dir.path().join(run).join("checkpoint.bin")).unwrap();
    assert!(read("runs/demo") == read("runs/demo-2"), "one seed, two results");

    // --resume continues the latest demo and needs no other flag.
    let resumed = demo(dir.path(), &["--resume", "--max-steps", "4"]);
    assert!(
        resumed.contains("run directory: runs/demo-2") && resumed.contains("after step 4 of"),
        "{resumed}"
    );
    assert!(read("runs/demo") != read("runs/demo-2"));

    // --force replaces the first demo and uses the images that are already there.
    let forced = demo(dir.path(), &["--force", "--max-steps", "3"]);
    assert!(forced.contains("run directory: runs/demo\n"), "{forced}");
    assert!(!dir.path().join("runs/demo-3").exists());
}

#[test]
fn demo_ends_with_a_result_and_three_commands() {
    let dir = tempfile::tempdir().unwrap();
    let out = demo(dir.path(), &["--epochs", "0.02", "--out", "my demo"]);
    for part in ["test accuracy: top-1 ", "curves: my demo/curves.svg", "run: finished", "next:"] {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
    let next = out.split("next:").nth(1).unwrap();
    for command in ["effnet-eval 'my demo/best.bin'", "effnet-pack ", "effnet-train --data "] {
        assert!(next.contains(command), "no {command:?} in\n{next}");
    }
    assert!(dir.path().join("my demo/best.bin").exists());
}

#[test]
fn demo_can_be_looked_at_before_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let out = demo(dir.path(), &["--augment", "rand-m9-n2", "--preview", "look.html"]);
    assert!(out.contains("training images: look.html"), "{out}");
    let page = fs::read_to_string(dir.path().join("look.html")).unwrap();
    assert_eq!(page.matches("<figure>").count(), 16);
    assert!(page.contains("rand-m9-n2") && page.contains("alt=\"T-shirt/top, in epoch 2\""));
    assert!(!page.contains("http"), "the page asks the network for something");
    // A run still begins there.
    assert!(demo(dir.path(), &["--max-steps", "1"]).contains("run directory: runs/demo\n"));
}
