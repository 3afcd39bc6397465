//! A source larger than the memory that the program may use.
#![cfg(target_os = "linux")]

use std::os::unix::process::CommandExt;

use super::containers::{Photo, as_parquet, as_tar};
use super::*;
use parquet::basic::Compression;

const LIMIT: u64 = 128 << 20;

/// Packs under a limit on the process's own memory. Groups of 32 MiB are held, as files and as pixels.
#[track_caller]
fn pack_in_little_memory(source: &Path, out: &Path, flags: &[&str]) {
    let mut command = program("effnet-pack");
    command.args([text(source), text(out), "--threads", "1", "--shard-size", "64"]).args(flags);
    // SAFETY: the call is async-signal-safe and touches only the child that is about to run the program.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
            libc::setrlimit(libc::RLIMIT_DATA, &limit);
            Ok(())
        });
    }
    run(command).good();
    assert!(pack_ok(&["--info", text(out)]).contains("train 234 images"));
}

#[test]
fn source_larger_than_memory_is_packed() {
    let dir = TempDir::new().unwrap();
    // Pixels that no format makes smaller: 0.75 MiB an image, 260 times.
    let image =
        RgbImage::from_fn(512, 512, |x, y| Rgb([0, 1, 2].map(|c| noise(u64::from((y * 512 + x) * 3 + c)))));
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    let photos: Vec<Photo> = (0..260)
        .map(|number| Photo {
            class: ["cat", "dog"][number % 2],
            name: format!("{number:03}.png"),
            bytes: bytes.clone(),
        })
        .collect();
    assert!(260 * bytes.len() as u64 > LIMIT * 3 / 2);
    as_tar(&dir.path().join("a.tar"), &photos);
    as_parquet(&dir.path().join("a.parquet"), &photos, None, Compression::UNCOMPRESSED);
    fs::write(dir.path().join("a.tgz"), gzip(&fs::read(dir.path().join("a.tar")).unwrap())).unwrap();
    drop(photos);
    // Images that are stored small are held as they are in the source, until they are decoded.
    let small = &["--encoding", "raw", "--resize-shorter", "32"][..];
    for (name, flags) in [("a.tar", &[][..]), ("a.parquet", &[]), ("a.tgz", small), ("a.parquet", small)] {
        let out = dir.path().join(format!("{name}-out"));
        pack_in_little_memory(&dir.path().join(name), &out, flags);
        fs::remove_dir_all(out).unwrap();
    }
}
