//! `--bench`: it measures the stages of the loader on a packed set.

use super::*;

/// Images of a part; a batch of 64 takes each four times.
const IMAGES: u64 = 16;

#[test]
fn bench_counts_the_images_and_bytes_of_every_stage() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("packed"));
    class_folder(&source.join("train"), IMAGES / 2);
    class_folder(&source.join("val"), 1);
    pack_ok(&[text(&source), text(&out)]);
    let bench = |shorter: &str| -> serde_json::Value {
        let size = ["--resolution", "32", "--augment", "trivial", "--resize-shorter", shorter];
        let others = ["--bench", text(&out), "--json", "--threads", "2", "--seconds", "1"];
        serde_json::from_str(&pack_ok(&[&others[..], &size].concat())).unwrap()
    };
    let found = bench("20");
    assert_eq!((&found["resolution"], &found["threads"]), (&32.into(), &2.into()), "{found}");
    let rows = found["rows"].as_array().unwrap();
    let number = |row: usize, key: &str| rows[row][key].as_f64().unwrap();
    let dataset = effnet::data::Dataset::open(&out).unwrap();
    let stored: u64 =
        dataset.records(effnet::data::Split::Train).map(|record| u64::from(record.length)).sum();
    // Every width comes twice. Images of (40 + n)×30 are scaled to (40 + n) · ⅔ × 20.
    let widths = || (0..IMAGES / 2).map(|n| 40 + n);
    let decoded: u64 = widths().map(|width| 2 * width * 30 * 3).sum();
    let scaled: u64 = widths().map(|width| 2 * (width as f64 * 2.0 / 3.0).round() as u64 * 20 * 3).sum();
    let squares = IMAGES * 32 * 32 * 3;
    for (row, (stage, bytes)) in [
        ("read and check", Some(stored)),
        ("decode", Some(decoded)),
        ("crop and resize", Some(squares)),
        ("edits", Some(squares)),
        ("together", Some(squares)),
        ("whole batches, for a CPU", Some(squares)),
        ("whole batches, for a GPU", None), // cropped, as random numbers have it
        ("scale down, as packing does", Some(scaled)),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(rows[row]["stage"], stage);
        let (images, seconds) = (number(row, "images"), number(row, "seconds"));
        assert!(images >= 64.0 && images % 64.0 == 0.0 && seconds > 0.0, "{found}");
        let rate = number(row, "gigabytes_per_second") * 1e9 * seconds / 2.0 / images;
        let expected = bytes.map_or(rate.max(1.0), |bytes| bytes as f64 / IMAGES as f64);
        assert!((rate / expected - 1.0).abs() < 1e-9, "{stage}: {rate} bytes an image, not {expected}");
        // Clocks of the system may be coarse.
        assert!(number(row, "cpu_seconds") < 1.05 * seconds + 0.02, "{found}");
    }
    assert_eq!(rows.len(), 8);
    // Two threads of about a second each.
    assert!(number(4, "seconds") > 0.5 && number(5, "seconds") >= 2.0, "{found}");

    // No image is scaled to a shorter side of 30: there is nothing to measure.
    let found = bench("30");
    let stages: Vec<&str> =
        found["rows"].as_array().unwrap().iter().map(|row| row["stage"].as_str().unwrap()).collect();
    assert!(stages.len() == 7 && !stages.contains(&"scale down, as packing does"), "{stages:?}");
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
