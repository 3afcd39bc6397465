//! Event files as TensorBoard reads them: TFRecords of `Event` messages.
//!
//! A TFRecord is the length of its data (u64), a checksum of these eight bytes, the data, and a checksum of the data; all
//! numbers are little-endian. The checksum is CRC-32C, turned right by 15 bits plus a constant, so that a checksum over
//! data that holds checksums stays meaningful (TensorFlow's `tsl/lib/hash/crc32c.h`, `lib/io/record_writer.h`). Of the
//! messages (`event.proto`, `summary.proto` and `tensor.proto` in `tensorboard/compat/proto`) the fields that are
//! written here are declared, with their numbers.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use prost::{Message, Oneof};

/// The first record of a file says this.
const VERSION: &str = "brain.Event:2";

#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    #[prost(int64, tag = "2")]
    pub step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

/// A session begins: what earlier files have from this step on is void.
pub const SESSION_START: i32 = 1;

#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    #[prost(message, repeated, tag = "1")]
    pub value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Value {
    #[prost(string, tag = "1")]
    pub tag: String,
    #[prost(message, optional, tag = "9")]
    pub metadata: Option<Metadata>,
    #[prost(oneof = "Content", tags = "2, 4, 8")]
    pub content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Content {
    #[prost(float, tag = "2")]
    Scalar(f32),
    #[prost(message, tag = "4")]
    Image(Image),
    #[prost(message, tag = "8")]
    Tensor(Tensor),
}

#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    #[prost(message, optional, tag = "1")]
    pub plugin: Option<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(int32, tag = "1")]
    pub height: i32,
    #[prost(int32, tag = "2")]
    pub width: i32,
    /// 3 is RGB.
    #[prost(int32, tag = "3")]
    pub colorspace: i32,
    #[prost(bytes = "vec", tag = "4")]
    pub encoded: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int32, tag = "1")]
    pub dtype: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "2")]
    pub dim: Vec<Dim>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Dim {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

/// The type of a tensor of strings.
const STRINGS: i32 = 7;

impl Value {
    /// A number. TensorBoard has them in single precision.
    pub fn scalar(tag: &str, value: f64) -> Value {
        Value { tag: tag.into(), metadata: None, content: Some(Content::Scalar(value as f32)) }
    }

    /// Text in Markdown, for the text plugin.
    pub fn text(tag: &str, text: String) -> Value {
        let shape = Some(Shape { dim: vec![Dim { size: 1 }] });
        let tensor = Tensor { dtype: STRINGS, shape, strings: vec![text.into_bytes()] };
        let metadata = Some(Metadata { plugin: Some(Plugin { name: "text".into() }) });
        Value { tag: tag.into(), metadata, content: Some(Content::Tensor(tensor)) }
    }

    /// A PNG of an RGB image.
    pub fn image(tag: &str, (width, height): (u32, u32), png: Vec<u8>) -> Value {
        let image = Image { height: height as i32, width: width as i32, colorspace: 3, encoded: png };
        Value { tag: tag.into(), metadata: None, content: Some(Content::Image(image)) }
    }
}

/// A record of these data.
pub fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let parts = [&length[..], &masked(&length), data, &masked(data)];
    parts.concat()
}

fn masked(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Whether a file of this name is an event file of this program.
pub fn is_event_file(name: &str) -> bool {
    time_of(name).is_some()
}

/// The time in the name of an event file of this program.
fn time_of(name: &str) -> Option<u64> {
    let rest = name.strip_prefix("events.out.tfevents.")?.strip_suffix(".effnet")?;
    rest.split('.').next()?.parse().ok()
}

/// An open event file. Each event is written in one system call.
pub struct EventFile {
    pub path: PathBuf,
    file: File,
}

impl EventFile {
    /// The event files in a folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn existing(folder: &Path) -> io::Result<Vec<String>> {
        let names = folder.read_dir()?.map(|entry| entry.map(|entry| entry.file_name()));
        let names = names.filter_map(|name| name.map(|name| name.into_string().ok()).transpose());
        names.filter(|name| name.as_ref().map_or(true, |name| is_event_file(name))).collect()
    }

    /// Begins an event file in a folder. TensorBoard reads the files of a folder by falling age, as their names say it, so
    /// its time is later than that of each of the `existing` ones.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(folder: &Path, existing: &[String]) -> io::Result<EventFile> {
        let latest = existing.iter().filter_map(|name| time_of(name)).max();
        let time = (seconds() as u64).max(latest.map_or(0, |time| time + 1));
        let system = rustix::system::uname();
        let host = system.nodename().to_string_lossy().replace('/', "-");
        let pid = std::process::id();
        let path = folder.join(format!("events.out.tfevents.{time:010}.{host}.{pid}.effnet"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mut file = EventFile { path, file };
        file.write(0, What::FileVersion(VERSION.into()))?;
        Ok(file)
    }

    /// Appends an event of now.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&mut self, step: u64, what: What) -> io::Result<()> {
        let event = Event { wall_time: seconds(), step: step as i64, what: Some(what) };
        self.file.write_all(&record(&event.encode_to_vec()))
    }

    /// Forces the events to disk.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// Since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of RFC 3720, B.4, and the usual one for checksums; masked by hand.
    #[test]
    fn checksums_are_masked_crc32c() {
        let rising: Vec<u8> = (0..32).collect();
        for (data, crc, expected) in [
            (&[0; 32][..], 0x8a91_36aa_u32, 0x0fd7_fffa_u32),
            (&[0xff; 32], 0x62a8_ab43, 0xf909_b029),
            (&rising, 0x46dd_794e, 0x951f_7892),
            (b"123456789", 0xe306_9283, 0xc78a_b0e5),
        ] {
            assert_eq!(crc32c::crc32c(data), crc);
            assert_eq!(masked(data), expected.to_le_bytes());
        }
    }

    /// The bytes of a message, written down from the definition of Protocol Buffers: a field's number and kind, then its
    /// value.
    #[test]
    fn messages_have_the_bytes_of_their_definition() {
        let summary = Summary { value: vec![Value::scalar("a/b", 1.5)] };
        let event = Event { wall_time: 2.0, step: 300, what: Some(What::Summary(summary)) };
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0, 0x40][..], // 1: double 2.0
            &[0x10, 0xac, 0x02],                    // 2: varint 300
            &[0x2a, 12],                            // 5: Summary of 12 bytes
            &[0x0a, 10],                            // 1: Value of 10 bytes
            &[0x0a, 3, b'a', b'/', b'b'],           // 1: tag
            &[0x15, 0, 0, 0xc0, 0x3f],              // 2: float 1.5
        ]
        .concat();
        assert_eq!(event.encode_to_vec(), expected);

        let start = What::SessionLog(SessionLog { status: SESSION_START });
        let event = Event { wall_time: 0.0, step: 7, what: Some(start) };
        assert_eq!(event.encode_to_vec(), [0x10, 7, 0x3a, 2, 0x08, 1]);

        let text = Value::text("t", "hi".into());
        let expected = [
            &[0x0a, 1, b't'][..],         // 1: tag
            &[0x42, 12],                  // 8: tensor of 12 bytes
            &[0x08, 7],                   // 1: DT_STRING
            &[0x12, 4, 0x12, 2, 0x08, 1], // 2: shape, 2: dimension, 1: size 1
            &[0x42, 2, b'h', b'i'],       // 8: string
            &[0x4a, 8, 0x0a, 6, 0x0a, 4], // 9: metadata, 1: plugin, 1: name
            b"text",
        ]
        .concat();
        assert_eq!(text.encode_to_vec(), expected);

        let image = Value::image("i", (5, 6), vec![9]);
        assert_eq!(image.encode_to_vec(), [0x0a, 1, b'i', 0x22, 9, 0x08, 6, 0x10, 5, 0x18, 3, 0x22, 1, 9]);
    }

    #[test]
    fn names_tell_event_files_of_this_program() {
        assert_eq!(time_of("events.out.tfevents.1700000000.a.host.name.12.effnet"), Some(1_700_000_000));
        for other in ["events.out.tfevents.17.host.12.0", "events.out.tfevents.x.h.1.effnet", "log.jsonl"] {
            assert!(!is_event_file(other), "{other}");
        }
    }

    #[test]
    fn event_file_is_later_than_the_files_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = EventFile::create(dir.path(), &[]).unwrap();
        let second = EventFile::create(dir.path(), &EventFile::existing(dir.path()).unwrap()).unwrap();
        assert!(first.path < second.path, "{} and {}", first.path.display(), second.path.display());
        assert_eq!(EventFile::existing(dir.path()).unwrap().len(), 2);
    }
}
