//! A set larger than the memory that the process may use. The loader reads it through a shared map, so an epoch
//! succeeds under a limit on the process's own (anonymous, writable) memory.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::Command;

use crate::common::data::{self, LOADER};
use effnet::data::{CropMode, Loader, LoaderConfig, Split};
use rustix::process::{Resource, Rlimit, setrlimit};

const LIMIT: usize = 40 << 20;
const VARIABLE: &str = "EFFNET_TEST_MEMORY_SET";

/// Private memory in bytes, from /proc/self/status.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// Runs as its own process, started by the test below; otherwise it does nothing.
#[test]
fn epoch_under_the_limit() {
    let Some(dir) = std::env::var_os(VARIABLE).map(PathBuf::from) else { return };
    let limit = Rlimit { current: Some(LIMIT as u64), maximum: Some(LIMIT as u64) };
    setrlimit(Resource::Data, limit).unwrap();
    let mut too_much: Vec<u8> = Vec::new();
    assert!(too_much.try_reserve_exact(LIMIT).is_err(), "the limit has no effect");

    let source = data::open(&dir);
    let steps = source.samples(Split::Train) as u64 / 8;
    let sizes = LoaderConfig { batch: 8, resolution: 64, crop: CropMode::Resized, ..LOADER };
    let config = LoaderConfig { steps, threads: 2, ahead: 2, ..sizes };
    let mut loader = Loader::start(source, config).unwrap();
    let mut images = 0;
    while let Some(batch) = loader.next().unwrap() {
        images += batch.images;
        assert!(anonymous() < LIMIT);
        loader.recycle(batch);
    }
    println!("{images} images under the limit");
}

#[test]
fn set_larger_than_memory_is_read() {
    let dir = tempfile::tempdir().unwrap();
    // 320 images of 512 × 512: 80 MiB in ten shards, twice the limit.
    let summary = data::pack_grey(dir.path(), 320, 5, 512, 8 << 20);
    assert!(summary.train.bytes >= 2 * LIMIT as u64 && summary.train.shards >= 10);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::epoch_under_the_limit", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("320 images under the limit"), "{output:?}");
}
