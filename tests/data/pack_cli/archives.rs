//! Tar files that are damaged, cut short, padded or there twice.

use super::containers::{as_tar, photos};
use super::*;

/// What follows a compressed file's name when it cannot be read.
const DAMAGED: &str = "damaged or cut short";

#[test]
fn damaged_tar_file_is_named() {
    let dir = TempDir::new().unwrap();
    let (out, at) = (dir.path().join("out"), |name: &str| dir.path().join(name));
    let photos = photos(4, 20, 20);
    as_tar(&at("a.tar"), &photos);
    let tar = fs::read(at("a.tar")).unwrap();
    // Cut in a member or in a header, one line says so.
    let sizes = photos.iter().map(|photo| 512 + photo.bytes.len().next_multiple_of(512));
    let starts: Vec<usize> = sizes.scan(0, |at, size| Some(std::mem::replace(at, *at + size))).collect();
    for (start, more) in [(starts[1], 700), (starts[3], 100), (starts[7], 513), (starts[6], 511)] {
        fs::write(at("cut.tar"), &tar[..start + more]).unwrap();
        pack_fails(&[text(&at("cut.tar")), text(&out)], &["cut.tar: ", "cut short"]);
    }
    // A size that lies, in a header that is sound otherwise.
    let mut header = tar::Header::new_gnu();
    header.set_path("a/b.png").unwrap();
    header.set_size(1 << 40);
    header.set_cksum();
    fs::write(at("lie.tar"), [header.as_bytes().as_slice(), &[0; 2048]].concat()).unwrap();
    pack_fails(&[text(&at("lie.tar")), text(&out)], &["lie.tar: cut short: it ends in a/b.png"]);
    fs::write(at("half.tar"), &tar[..512 + photos[0].bytes.len().next_multiple_of(512)]).unwrap();
    pack_fails(&[text(&at("half.tar")), text(&out)], &["`cat` is the only class"]);
}

/// Cut anywhere, or with a byte changed, which its checksum shows.
#[test]
fn damaged_compressed_tar_file_is_named() {
    let dir = TempDir::new().unwrap();
    let (out, at) = (dir.path().join("out"), |name: &str| dir.path().join(name));
    as_tar(&at("a.tar"), &photos(4, 20, 20));
    let compressed = gzip(&fs::read(at("a.tar")).unwrap());
    for share in 1..16 {
        fs::write(at("cut.tgz"), &compressed[..compressed.len() * share / 16]).unwrap();
        pack_fails(&[text(&at("cut.tgz")), text(&out)], &["cut.tgz: damaged or cut short"]);
        let mut changed = compressed.clone();
        changed[compressed.len() * share / 16] ^= 0x10;
        fs::write(at("changed.tgz"), changed).unwrap();
        pack(&[text(&at("changed.tgz")), text(&out)]).refused(1, &["changed.tgz: "]);
    }
}

/// Beside a good archive, and alone: one that cannot be read is never left out without a word.
#[test]
fn compressed_tar_file_without_a_sound_start_is_named() {
    let dir = TempDir::new().unwrap();
    let (out, set) = (dir.path().join("out"), dir.path().join("set"));
    as_tar(&set.join("a.tar"), &photos(4, 20, 20));
    let good = gzip(&fs::read(set.join("a.tar")).unwrap());
    let start = |change: usize| -> Vec<u8> {
        let mut changed = good.clone();
        changed[change] ^= 0x10;
        changed
    };
    for name in ["b.tar.gz", "b.tgz", "b.TAR.GZ"] {
        for (bytes, alone) in [
            (vec![], "an empty file"),
            (good[..7].to_vec(), DAMAGED),
            (good[..40].to_vec(), DAMAGED),
            (start(0), DAMAGED),
            (start(2), DAMAGED),
            (start(30), DAMAGED),
            (gzip(&[]), "nothing in it"),
            (vec![0; 4096], DAMAGED),
            (b"<html><p>Not found, sorry</p></html>".to_vec(), DAMAGED),
        ] {
            let path = set.join(name);
            fs::write(&path, &bytes).unwrap();
            let length = bytes.len();
            eprintln!("{name} of {length} bytes");
            pack_fails(&[text(&set), text(&out)], &[name, DAMAGED]);
            pack_fails(&[text(&path), text(&out)], &[name, alone]);
            fs::remove_file(path).unwrap();
        }
    }
    // Some programs unpack what they fetch and keep its name.
    fs::rename(set.join("a.tar"), set.join("a.tar.gz")).unwrap();
    assert!(pack_ok(&[text(&set), text(&out)]).contains("packed a tar file"));
}

#[test]
fn compressed_tar_file_may_end_in_zeros_and_in_nothing_else() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    as_tar(&at("a.tar"), &photos(4, 20, 20));
    let tar = fs::read(at("a.tar")).unwrap();
    pack_ok(&[text(&at("a.tar")), text(&at("expected"))]);
    // In two members, as parallel compressors make it; the padding is longer than what is read at once.
    let good = [gzip(&tar[..3000]), gzip(&tar[3000..])].concat();
    for padding in [0, 1, 511, 600_000] {
        fs::write(at("a.tgz"), [&good[..], &vec![0; padding]].concat()).unwrap();
        pack_ok(&[text(&at("a.tgz")), text(&at("out")), "--force"]);
        assert!(files(&at("out")) == files(&at("expected")), "{padding}");
    }
    for more in [b"x".to_vec(), [vec![0; 400_000], vec![1]].concat(), [vec![0; 8], good.clone()].concat()] {
        fs::write(at("a.tgz"), [&good[..], &more].concat()).unwrap();
        pack_fails(&[text(&at("a.tgz")), text(&at("never"))], &["a.tgz: damaged or cut short after"]);
    }
}

#[test]
fn archive_that_is_there_plain_and_compressed_counts_once() {
    let dir = TempDir::new().unwrap();
    let (set, at) = (dir.path().join("set"), |name: &str| dir.path().join(name));
    let photos = photos(6, 20, 20);
    as_tar(&set.join("x.tar"), &photos[..6]);
    as_tar(&set.join("y.tar"), &photos[6..]);
    pack_ok(&[text(&set), text(&at("expected"))]);
    for (plain, compressed) in [("x.tar", "x.tar.gz"), ("x.tar", "x.tgz"), ("y.tar", "y.tgz")] {
        fs::write(set.join(compressed), gzip(&fs::read(set.join(plain)).unwrap())).unwrap();
    }
    let said = pack_ok(&[text(&set), text(&at("out"))]);
    assert!(said.contains("packed 2 tar files"), "{said}");
    for (name, kept) in [("x.tar.gz", "x.tar"), ("x.tgz", "x.tar"), ("y.tgz", "y.tar")] {
        assert!(said.contains(&format!("notice: {name} is left out: {kept} is there too")), "{said}");
    }
    assert!(files(&at("out")) == files(&at("expected")));
}
