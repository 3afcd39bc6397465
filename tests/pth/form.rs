//! The container: which zip files are read, how much of them, and what is said of others.

use std::io::{self, Read, Seek, SeekFrom};

use super::write::*;
use super::*;

fn pickle() -> Vec<u8> {
    program(dictionary(&[("w", vector("0", 4))]))
}

fn sound() -> Vec<Entry> {
    entries(&pickle(), &[("0", &[1; 16])])
}

#[test]
fn first_bytes_tell_the_format() {
    let sound = zip(&sound());
    assert!(pth::is_pth(&sound) && pth::is_pth(&sound[..32]) && pth::is_pth(&sound[..4]));
    let legacy = fs::read(fixtures().join("legacy.pth")).unwrap();
    assert!(pth::is_pth(&legacy[..32]) && pth::is_pth(&legacy));
    for other in [&b""[..], b"PK", b"PK\x05\x06", b"\x80\x02}q\x00.", b"\x89PNG\r\n\x1a\n", &[0; 64]] {
        assert!(!pth::is_pth(other), "{other:?}");
    }
    assert_eq!(refused(b"\x89PNG"), "it is no zip file as torch.save writes it: it begins with other bytes");
    assert_eq!(refused(b""), "it is no zip file as torch.save writes it: it begins with other bytes");
}

/// The message for a sound file's entries, changed.
fn changed(change: impl FnOnce(&mut Vec<Entry>)) -> String {
    let mut entries = sound();
    change(&mut entries);
    let message = refused(&zip(&entries));
    let of_the_form = message.strip_prefix("it is no zip file as torch.save writes it: ");
    of_the_form.unwrap_or(&message).to_string()
}

#[test]
fn forms_that_are_not_read_are_named() {
    assert_eq!(read(&zip(&sound())).unwrap()["w"].bytes, [1; 16]);
    let big = changed(|entries| entries[1].data = b"big".to_vec());
    assert_eq!(big, "its order of bytes is \"big\", and only \"little\" is read");
    let version = changed(|entries| entries[3].data = b"11\n".to_vec());
    assert_eq!(version, "its format has version \"11\", which is not known");
    assert_eq!(changed(|entries| drop(entries.remove(0))), "it has no data.pkl");
    assert_eq!(changed(|entries| entries.push(Entry::new("b/data.pkl", b"."))), "it has several data.pkl");
    assert_eq!(changed(|entries| entries[2].flags = 1), "its entry a/data/0 is encrypted");
    let script = changed(|entries| entries.push(Entry::new("a/code/x.py", b"")));
    assert!(script.starts_with("it is a program of TorchScript"), "{script}");
    let duplicate = changed(|entries| entries.push(Entry::new("a/data/0", &[2; 16])));
    assert!(duplicate.contains("duplicate file names"), "{duplicate}");
    // Older versions of PyTorch write neither the order of bytes nor, at first, the version.
    let mut old = sound();
    old.retain(|entry| !["a/byteorder", "a/version"].contains(&entry.name.as_str()));
    read(&zip(&old)).unwrap();
}

#[test]
fn damaged_numbers_are_noticed() {
    for at in 0..16 {
        let mut file = zip(&sound());
        let start = file.windows(16).position(|window| window == [1; 16]).unwrap();
        file[start + at] ^= 4;
        assert!(
            refused(&file).ends_with("its entry data/0 is damaged: Invalid checksum"),
            "{}",
            refused(&file)
        );
    }
    // As torch.save writes without checksums.
    let mut entries = sound();
    entries[2].crc = Some(0);
    assert_eq!(read(&zip(&entries)).unwrap()["w"].bytes, [1; 16]);
}

#[test]
fn bombs_are_refused_without_their_memory() {
    let compressed = changed(|entries| {
        entries[2] =
            Entry { method: 8, size: Some(u32::MAX - 1), compressed: Some(16), ..entries[2].clone() };
    });
    assert_eq!(compressed, "its entry a/data/0 is compressed");
    let longer = changed(|entries| entries[2].size = Some(1 << 31));
    assert_eq!(longer, "its entries overlap");
    let two = changed(|entries| {
        entries[2] = Entry { size: Some(1 << 31), compressed: Some(16), ..entries[2].clone() };
    });
    assert_eq!(two, "its entry a/data/0 has two sizes");
    // Many entries that share one place: each within the file, all of them far larger.
    let mut entries = sound();
    let place = zip(&entries[..2]).windows(4).position(|window| window == b"PK\x01\x02").unwrap() as u32;
    entries[2].data = vec![1; 4096];
    for index in 1..100 {
        let name = format!("a/data/{index}");
        entries.push(Entry { name, place: Some(place), ..entries[2].clone() });
    }
    let file = zip(&entries);
    let (message, memory) = memory_of(|| refused(&file));
    assert!(message.ends_with("its entries overlap"), "{message}");
    assert!(memory < 1 << 20, "{memory} bytes");
    // Two alone.
    let two = changed(|entries| {
        entries.push(Entry { name: "a/data/1".into(), place: Some(place), ..entries[2].clone() })
    });
    assert_eq!(two, "its entries overlap");
}

#[test]
fn lists_of_entries_are_bounded() {
    // 4 million empty entries in 200 MB: what is read of them is bounded.
    let entry = Entry::new("x", b"");
    let one = zip(std::slice::from_ref(&entry));
    let directory = &one[one.windows(4).position(|window| window == b"PK\x01\x02").unwrap()..one.len() - 22];
    let mut file = zip(&sound());
    let start = file.len() as u64;
    let count = (80 << 20) / directory.len();
    file.extend(directory.repeat(count));
    let end = file.len() as u64;
    file.extend(b"PK\x06\x06");
    file.extend(44_u64.to_le_bytes());
    file.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for field in [count as u64, count as u64, end - start, start] {
        file.extend(field.to_le_bytes());
    }
    file.extend(b"PK\x06\x07\0\0\0\0");
    file.extend(end.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([0xff; 12]);
    file.extend([0; 2]);
    let (message, memory) = memory_of(|| refused(&file));
    assert!(message.ends_with("its list of entries is too long"), "{message}");
    println!("{} MiB", memory >> 20);
    assert!(memory < 1 << 30, "{memory} bytes");
}

/// Counts what is read of a file, and fails at a place.
struct Watched {
    file: Cursor<Vec<u8>>,
    read: usize,
    broken: Option<u64>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.broken.is_some_and(|broken| self.file.position() >= broken) {
            return Err(io::Error::other("the disk is broken"));
        }
        let count = self.file.read(buffer)?;
        self.read += count;
        Ok(count)
    }
}

impl Seek for Watched {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[test]
fn storages_are_read_once_and_only_if_they_are_needed() {
    const COUNT: usize = 1 << 18;
    let counter = storage("LongStorage", "1", COUNT as i64);
    let hooks = call(global("collections", "OrderedDict"), &[]);
    let arguments = [counter, integer(0), integers(&[COUNT as i64]), integers(&[1]), b"\x89".to_vec(), hooks];
    let counter = call(global("torch._utils", "_rebuild_tensor_v2"), &arguments);
    let (rows, whole) = (view("0", COUNT as i64, 0, &[512, 512], &[512, 1]), vector("0", COUNT as i64));
    let pickle = program(dictionary(&[("rows", rows), ("whole", whole), ("counter", counter)]));
    let floats: Vec<u8> = (0..COUNT).flat_map(|number| (number as f32).to_le_bytes()).collect();
    let file = archive(&pickle, &[("0", &floats), ("1", &vec![0; COUNT * 8]), ("2", &[0; COUNT])]);
    let length = file.len() as u64;
    let mut watched = Watched { file: Cursor::new(file), read: 0, broken: None };
    let (tensors, memory) = memory_of(|| pth::read(&mut watched, length).unwrap());
    assert_eq!((&tensors["rows"].bytes, &tensors["whole"].bytes), (&floats, &floats));
    assert_eq!((tensors["counter"].bytes.len(), &tensors["counter"].shape[..]), (0, &[COUNT][..]));
    // Beside the storage: the ends of the file and the headers, with what a buffer reads around them.
    assert!((floats.len()..floats.len() + (256 << 10)).contains(&watched.read), "{} bytes", watched.read);
    // Two tensors, one of them made of the bytes that were read.
    assert!(memory < 2 * floats.len() + (64 << 10), "{memory} bytes");
}

#[test]
fn errors_of_the_disk_are_told_as_they_are() {
    let file = zip(&sound());
    let length = file.len() as u64;
    for broken in [0, 10, 100] {
        let mut watched = Watched { file: Cursor::new(file.clone()), read: 0, broken: Some(broken) };
        let error = pth::read(&mut watched, length).unwrap_err();
        assert!(matches!(error, PthError::Io(_)) && error.to_string() == "the disk is broken", "{error}");
    }
}
