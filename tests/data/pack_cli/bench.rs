//! `--bench`: it measures the stages of the loader on a packed set.

use super::*;

#[test]
fn bench_reports_stages_that_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("packed"));
    class_folder(&source, 6);
    pack_ok(&[text(&source), text(&out)]);
    let arguments = ["--bench", text(&out), "--resolution", "32", "--augment", "trivial", "--threads", "2"];
    let arguments = [&arguments[..], &["--seconds", "1", "--resize-shorter", "20"]].concat();
    let printed = pack_ok(&[&arguments[..], &["--json"]].concat());
    let found: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&found["resolution"], &found["threads"]), (&32.into(), &2.into()), "{printed}");
    let rows = found["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["stage"].as_str().unwrap()).collect();
    let stages = ["read and check", "decode", "crop and resize", "edits"];
    let others =
        ["together", "whole batches, for a CPU", "whole batches, for a GPU", "scale down, as packing does"];
    assert_eq!(names, [&stages[..], &others].concat());
    let number = |row: usize, key: &str| rows[row][key].as_f64().unwrap();
    for key in ["seconds", "cpu_seconds"] {
        let sum: f64 = (0..4).map(|row| number(row, key)).sum();
        assert!((sum / number(4, key) - 1.0).abs() < 1e-9, "{printed}");
    }
    let seconds = number(4, "seconds");
    // No image took part in one stage only, and no thread-second is counted twice.
    for row in 0..rows.len() {
        let rate = number(row, "images") / number(row, "seconds");
        assert!((number(row, "a_core") / rate - 1.0).abs() < 1e-9, "{printed}");
        assert!((number(row, "in_all") / rate - 2.0).abs() < 1e-9, "{printed}");
        assert!(number(row, "gigabytes_per_second") > 0.0, "{printed}");
        // Clocks of the system may be coarse.
        assert!(number(row, "cpu_seconds") < 1.05 * number(row, "seconds") + 0.02, "{printed}");
    }
    assert!((0..5).all(|row| number(row, "images") == number(0, "images")), "{printed}");
    // Two threads of about a second each.
    assert!(seconds > 0.5 && number(5, "seconds") >= 2.0, "{printed}");
}

#[test]
fn bench_prints_a_table_for_people() {
    let dir = tempfile::tempdir().unwrap();
    idx_folder(&dir.path().join("idx"), 20, 4, [28, 28]);
    let (source, out) = (dir.path().join("idx"), dir.path().join("packed"));
    pack_ok(&[text(&source), text(&out)]);
    let table = pack_ok(&["--bench", text(&out), "--resolution", "32", "--threads", "1", "--seconds", "1"]);
    assert!(
        table.starts_with("20 training images of 0.8 kB, to 32×32, augment none, 1 thread\n\n| stage |"),
        "{table}"
    );
    assert_eq!(table.lines().filter(|line| line.matches('|').count() == 7).count(), 9, "{table}");
    pack(&["--bench", text(&source)]).refused(1, &["no dataset"]);
    pack(&["--resolution", "32", text(&source), text(&out)]).refused(2, &["--resolution"]);
    pack(&["--bench", text(&out), "--augment", "wild"]).refused(2, &["wild"]);
}
