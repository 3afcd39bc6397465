//! Packs that are killed, stopped, or find the disk full.
#![cfg(target_os = "linux")]

use std::os::unix::process::CommandExt;

use super::containers::{as_list, as_parquet, as_tar, cifar_image, photos};
use super::*;
use crate::common::programs::ended;
use effnet::data::dataset::PARTIAL;
use effnet::data::pack::{PackOptions, pack as pack_library};
use parquet::basic::Compression;

/// A pack that is killed and started again, each time a little later, ends with the bytes of an undisturbed pack. The
/// moments of the kills are left to chance; the test checks what must hold at any moment.
#[test]
fn killed_pack_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("idx");
    idx_folder(&source, 400, 40, [160, 160]);
    killed_and_continued(dir.path(), &source);
}

#[test]
fn killed_pack_of_tar_files_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("tars");
    let photos = photos(70, 150, 100);
    for (number, part) in photos.chunks(50).enumerate() {
        as_tar(&source.join(format!("{number}.tar")), part);
    }
    killed_and_continued(dir.path(), &source);
}

#[test]
fn killed_pack_of_compressed_tar_files_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("tars");
    for (number, part) in photos(70, 150, 100).chunks(50).enumerate() {
        let path = source.join(format!("{number}.tar.gz"));
        as_tar(&path, part);
        let plain = fs::read(&path).unwrap();
        fs::write(&path, gzip(&plain)).unwrap();
    }
    killed_and_continued(dir.path(), &source);
}

#[test]
fn killed_pack_of_parquet_files_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("parquets");
    let photos = photos(70, 150, 100);
    for (number, part) in photos.chunks(50).enumerate() {
        as_parquet(&source.join(format!("{number}.parquet")), part, None, Compression::SNAPPY);
    }
    killed_and_continued(dir.path(), &source);
}

#[test]
fn killed_pack_of_a_list_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("lists/all.csv");
    as_list(&source, &photos(70, 150, 100));
    killed_and_continued(dir.path(), &source);
}

#[test]
fn killed_pack_of_cifar_continues_and_ends_the_same() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("cifar");
    fs::create_dir(&source).unwrap();
    let names = (1..=5).map(|batch| format!("data_batch_{batch}.bin")).chain(["test_batch.bin".into()]);
    for (batch, name) in (0..).zip(names) {
        let images = (0..200).flat_map(|number| cifar_image(&[number as u8 % 10], batch * 1000 + number));
        fs::write(source.join(name), images.collect::<Vec<u8>>()).unwrap();
    }
    killed_and_continued(dir.path(), &source);
}

fn killed_and_continued(dir: &Path, source: &Path) {
    let (whole, killed) = (dir.join("whole"), dir.join("killed"));
    let arguments = |out: &Path| {
        [text(source), text(out), "--shard-size", "1", "--threads", "1", "--encoding", "raw"]
            .map(String::from)
    };
    pack_ok(&arguments(&whole).each_ref().map(String::as_str));

    let (mut kills, mut resumed) = (0, 0);
    for delay in (1..).map(|attempt| attempt * 5) {
        let mut child = program("effnet-pack").args(arguments(&killed)).arg("--json").spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        let _ = child.kill();
        let ran = ended(child);
        if ran.status == Some(0) {
            resumed = ran.json()["resumed_shards"].as_u64().unwrap();
            break;
        }
        assert_eq!(ran.status, None, "killed, not failed");
        kills += 1;
        if killed.join("dataset.json").exists() {
            break; // killed after the work was done
        }
    }
    let mut found = files(&killed);
    found.retain(|(name, _)| name != PARTIAL); // may remain after a kill between the last two steps
    assert!(found == files(&whole), "after {kills} kills, {resumed} shards kept");
}

/// An interrupted pack keeps its finished shards; a pack with other options or another source does not use them.
#[test]
fn finished_shards_are_kept_only_for_the_same_plan() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("images"), dir.path().join("out"));
    for number in 0..60 {
        save(&source.join(format!("a/{number:02}.png")), picture(150, 100, number));
        save(&source.join(format!("b/{number:02}.png")), picture(150, 100, 100 + number));
    }
    let options = PackOptions { shard_bytes: 1 << 20, threads: 1, ..PackOptions::default() };
    let stopped = std::panic::catch_unwind(|| {
        let _ =
            pack_library(&source, &out, &options, &mut |progress| assert!(progress.done < 60, "stop here"));
    });
    assert!(stopped.is_err());
    assert!(out.join(PARTIAL).exists() && out.join("train-00000.shard").exists());
    pack_fails(&["--info", text(&out)], &["interrupted"]);
    pack_fails(&[text(&source), text(&out), "--shard-size", "2"], &["unfinished pack", "--force"]);
    // A finished shard that is damaged is made again.
    flip(&out.join("train-00001.shard"), 70, 1);
    let ran = pack(&[text(&source), text(&out), "--shard-size", "1", "--json"]).good();
    assert_eq!(ran.json()["resumed_shards"], 1, "{}", ran.out);
    let fresh = dir.path().join("fresh");
    pack_ok(&[text(&source), text(&fresh), "--shard-size", "1"]);
    assert!(files(&fresh) == files(&out));
}

/// A full disk gives one line, and nothing that looks complete.
#[test]
fn full_disk_is_one_clear_line() {
    let dir = TempDir::new().unwrap();
    let (source, out) = (dir.path().join("idx"), dir.path().join("out"));
    idx_folder(&source, 200, 10, [100, 100]);
    let mut command = program("effnet-pack");
    command.args([text(&source), text(&out)]);
    // SAFETY: both calls are async-signal-safe and touch only the child that is about to run the program.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN); // so that the write fails with an error
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        });
    }
    run(command).refused(1, &["train-00000.shard"]);
    assert!(!out.join("dataset.json").exists() && !out.join("train-00000.shard").exists());
    // When there is room again, the pack continues.
    pack_ok(&[text(&source), text(&out)]);
}
