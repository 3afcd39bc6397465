//! The files that repeat the log for other programs: `log.csv`, and event files for TensorBoard. Both have exactly the
//! figures of `log.jsonl`, also after a run was resumed from a step before its last.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::common::data;
use crate::common::programs::{Ran, program, run};
use crate::common::shared_folder::until_exit;
use crate::common::training::{log_lines, train_program};
use effnet::train::events::LogLine;
use effnet::train::log;
use serde_json::Value;
use tempfile::TempDir;

/// Packed data.
static DATA: LazyLock<TempDir> = LazyLock::new(|| until_exit(data::packed()));

/// The run of 12 steps, with evaluations after 5, 10 and 12, and these flags.
fn command(out: &Path, more: &str) -> Command {
    let mut command =
        train_program(&DATA.path().join("data"), out, "--ema 0.9 --checkpoint-every 2 --keep 9");
    command.args(more.split_whitespace());
    command
}

fn resume(out: &Path, more: &str) -> Ran {
    let mut command = program("effnet-train");
    command.arg("--resume").arg("--out").arg(out).args(more.split_whitespace());
    run(command).good()
}

/// Goes back to an earlier checkpoint, as if the run had been killed some steps after it.
fn go_back(out: &Path, step: u64) {
    fs::copy(out.join(format!("checkpoint-{step:08}.bin")), out.join("checkpoint.bin")).unwrap();
}

/// The lines of the log as objects.
fn logged(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Compares each cell with the log.
#[track_caller]
fn expect_csv_of_the_log(out: &Path) {
    let mut reader = csv::Reader::from_path(out.join("log.csv")).unwrap();
    let names = reader.headers().unwrap().clone();
    let rows: Vec<csv::StringRecord> = reader.records().map(|row| row.unwrap()).collect();
    let lines = logged(out);
    assert_eq!(rows.len(), lines.len());
    for (row, line) in rows.iter().zip(&lines) {
        let line = line.as_object().unwrap();
        let kind = match () {
            () if line.contains_key("top1") => "evaluation",
            () if line.contains_key("lr") => "step",
            () => "extension",
        };
        let mut cells = 0;
        for (name, cell) in names.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
            let key = match name {
                "kind" => {
                    assert_eq!(cell, kind);
                    continue;
                }
                // Written only where it is true.
                "skipped" => {
                    assert_eq!(cell == "true", line.contains_key("skipped"));
                    continue;
                }
                other => other.strip_prefix("train_").or(other.strip_prefix("eval_")).unwrap_or(other),
            };
            assert_eq!(Some(cell.parse::<f64>().unwrap()), line[key].as_f64(), "{name} of {line:?}");
            cells += 1;
        }
        assert_eq!(cells, line.len(), "{row:?} and {line:?}");
    }
}

#[test]
fn log_csv_has_the_lines_of_the_log_also_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    let printed = run(command(&out, "--log-csv --clip-norm 5 --max-steps 9")).good().out;
    assert!(printed.contains("log as CSV: ") && printed.contains("log.csv"), "{printed}");
    assert_eq!(log_lines(&out), 9 + 1);
    expect_csv_of_the_log(&out);
    // A row that was cut short by a kill, and rows after the checkpoint, are gone. The flag is in recipe.toml.
    let whole = fs::read(out.join("log.csv")).unwrap();
    fs::write(out.join("log.csv"), &whole[..whole.len() - 7]).unwrap();
    go_back(&out, 4);
    resume(&out, "--max-steps 6");
    assert_eq!(log_lines(&out), 6 + 1);
    expect_csv_of_the_log(&out);
    resume(&out, "");
    expect_csv_of_the_log(&out);
    // A call without a step, too, makes the file anew.
    fs::write(out.join("log.csv"), "spoilt").unwrap();
    resume(&out, "");
    expect_csv_of_the_log(&out);
    resume(&out, "--extend 2.6");
    expect_csv_of_the_log(&out);
    let text = fs::read_to_string(out.join("log.csv")).unwrap();
    assert!(text.contains("\nextension,12,2.4,,") && text.contains(",2.4,2.6\n"), "{text}");
}

#[test]
fn log_csv_that_cannot_be_written_ends_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    fs::create_dir_all(out.join("log.csv/taken")).unwrap();
    let printed = run(command(&out, "--log-csv --max-steps 2")).good().out;
    let mut warnings = printed.lines().filter(|line| line.contains("log.csv: "));
    let warning = warnings.next().unwrap_or_else(|| panic!("{printed}"));
    assert!(warning.starts_with("warning: ") && warning.contains("log.jsonl has"), "{warning}");
    assert_eq!(warnings.next(), None, "it is said once");
    assert_eq!(log_lines(&out), 2);
    // A file that the run did not have from the start has all lines.
    fs::remove_dir_all(out.join("log.csv")).unwrap();
    let other = dir.path().join("other");
    run(command(&other, "--max-steps 6")).good();
    assert!(!other.join("log.csv").exists() && event_files(&other).is_empty());
    resume(&other, "--log-csv --tensorboard --max-steps 7");
    expect_csv_of_the_log(&other);
    expect_events_of_the_log(&other);
}

/// CRC-32C, bit by bit from its polynomial.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

/// The records of a TFRecord file, whose checksums are compared.
fn records(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).unwrap();
    let mut rest = &bytes[..];
    let mut records = Vec::new();
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at(count);
        rest = left;
        (taken.to_vec(), left.len())
    };
    let checked = |data: &[u8], sum: &[u8]| {
        let masked = u32::from_le_bytes(sum.try_into().unwrap()).wrapping_sub(0xa282_ead8);
        assert_eq!(masked.rotate_left(15), crc32c(data));
    };
    loop {
        let (length, _) = take(8);
        checked(&length, &take(4).0);
        let (data, _) = take(u64::from_le_bytes(length.try_into().unwrap()) as usize);
        let (sum, left) = take(4);
        checked(&data, &sum);
        records.push(data);
        if left == 0 {
            return records;
        }
    }
}

/// A field of a message in Protocol Buffers.
#[derive(Debug)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, with their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn number(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| *byte < 128).unwrap() + 1;
        let (taken, rest) = bytes.split_at(length);
        *bytes = rest;
        taken.iter().rev().fold(0, |number, &byte| number << 7 | u64::from(byte & 127))
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Number(number(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => number(&mut bytes) as usize,
            5 => 4,
            other => panic!("a field of kind {other}"),
        };
        let (taken, rest) = bytes.split_at(length);
        bytes = rest;
        fields.push((key >> 3, Field::Bytes(taken)));
    }
    fields
}

/// The field of this number; empty if there is none.
fn bytes_of(message: &[u8], number: u64) -> &[u8] {
    let found = fields(message).into_iter().find(|(own, _)| *own == number);
    found.map_or(&[], |(_, field)| if let Field::Bytes(bytes) = field { bytes } else { panic!("a number") })
}

fn number_of(message: &[u8], number: u64) -> u64 {
    let found = fields(message).into_iter().find(|(own, _)| *own == number);
    found.map_or(0, |(_, field)| if let Field::Number(value) = field { value } else { panic!("no number") })
}

/// The event files of a run, in the order of their names.
fn event_files(out: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
    files.sort();
    files
}

/// What TensorBoard has of a run: the bits of each scalar by tag and step, and the values of other kinds by tag.
#[derive(Default)]
struct Shown {
    scalars: BTreeMap<(String, u64), u32>,
    others: BTreeMap<String, Vec<u8>>,
    sessions: Vec<u64>,
}

fn shown(out: &Path) -> Shown {
    let mut shown = Shown::default();
    for file in event_files(out) {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.ends_with(".effnet") && name.split('.').count() >= 6, "{name}");
        for (number, event) in records(&file).iter().enumerate() {
            let time = f64::from_le_bytes(bytes_of(event, 1).try_into().unwrap());
            assert!(time > 1.7e9 && time < 1e11);
            assert_eq!(bytes_of(event, 3), if number == 0 { &b"brain.Event:2"[..] } else { b"" });
            let step = number_of(event, 2);
            let session = bytes_of(event, 7);
            if !session.is_empty() {
                assert_eq!(number_of(session, 1), 1, "a session begins");
                shown.sessions.push(step);
                shown.scalars.retain(|(_, at), _| *at < step);
            }
            for (_, value) in fields(bytes_of(event, 5)) {
                let Field::Bytes(value) = value else { panic!("a number") };
                let tag = String::from_utf8(bytes_of(value, 1).to_vec()).unwrap();
                match bytes_of(value, 2) {
                    &[a, b, c, d] => {
                        shown.scalars.insert((tag, step), u32::from_le_bytes([a, b, c, d]));
                    }
                    _ => assert!(shown.others.insert(tag, value.to_vec()).is_none()),
                }
            }
        }
    }
    shown
}

/// Compares each scalar with the log.
#[track_caller]
fn expect_events_of_the_log(out: &Path) -> Shown {
    let shown = shown(out);
    let mut expected = BTreeMap::new();
    for (line, record) in logged(out).iter().zip(log::read(&out.join("log.jsonl")).unwrap()) {
        let kind = match record {
            LogLine::Step(_) => "train",
            LogLine::Evaluation(_) => "eval",
            LogLine::Extension(_) => continue,
        };
        for (key, value) in line.as_object().unwrap() {
            if !["step", "epoch", "images", "skipped"].contains(&key.as_str()) {
                let value = value.as_f64().unwrap() as f32;
                expected.insert((format!("{kind}/{key}"), record.step()), value.to_bits());
            }
        }
    }
    assert!(shown.scalars == expected, "{:?}\n{expected:?}", shown.scalars);
    shown
}

#[test]
fn tensorboard_has_the_figures_of_the_log_also_after_a_resume() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("run");
    run(command(&out, "--tensorboard --clip-norm 5 --max-steps 9")).good();
    assert_eq!(event_files(&out).len(), 1);
    let shown = expect_events_of_the_log(&out);
    assert!(shown.scalars.contains_key(&("train/gradient_norm".into(), 9)));
    assert!(shown.scalars.contains_key(&("eval/ema_loss".into(), 5)));
    let tags: Vec<&str> = shown.others.keys().map(String::as_str).collect();
    assert_eq!((tags, shown.sessions), (vec!["images", "recipe", "run"], vec![]));
    for (tag, part) in [("run", "| seed | 11 |"), ("recipe", "    batch-size = 8\n")] {
        let value = &shown.others[tag];
        // The metadata name the plugin; the tensor is one text.
        assert_eq!(bytes_of(bytes_of(bytes_of(value, 9), 1), 1), b"text");
        let tensor = bytes_of(value, 8);
        assert_eq!((number_of(tensor, 1), number_of(bytes_of(bytes_of(tensor, 2), 2), 1)), (7, 1));
        let text = std::str::from_utf8(bytes_of(tensor, 8)).unwrap();
        assert!(text.contains(part), "{text}");
    }
    // Sixteen images of 32×32, four times as large.
    let image = bytes_of(&shown.others["images"], 4);
    assert_eq!([1, 2, 3].map(|number| number_of(image, number)), [512, 512, 3]);
    let decoded = image::load_from_memory(bytes_of(image, 4)).unwrap();
    assert_eq!((decoded.width(), decoded.height()), (512, 512));

    go_back(&out, 4);
    resume(&out, "--max-steps 6");
    let shown = expect_events_of_the_log(&out);
    assert_eq!((event_files(&out).len(), shown.sessions), (2, vec![5]));
    resume(&out, "");
    let shown = expect_events_of_the_log(&out);
    assert_eq!((event_files(&out).len(), shown.sessions), (3, vec![5, 7]));
    // A call without a step has nothing to say.
    resume(&out, "");
    assert_eq!(event_files(&out).len(), 3);

    // The files of a run that is replaced are gone.
    fs::write(out.join("events.out.tfevents.1.host.2.0"), "of another program").unwrap();
    run(command(&out, "--force --max-steps 1")).good();
    assert!(!out.join("log.csv").exists());
    assert_eq!(event_files(&out), [out.join("events.out.tfevents.1.host.2.0")]);
}
