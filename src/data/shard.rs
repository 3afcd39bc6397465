//! The shard: a file of samples with an index in front, read through a memory map.
//!
//! ```text
//! header   64 bytes                        magic, version, counts, lengths, CRC of header and index
//! index    40 bytes a sample               where it lies, its size, label, id, CRC
//! (zeros   40 bytes a source image that turned out broken: the index is reserved before images are decoded)
//! samples  one after the other, no gaps    raw rows of 1 or 3 bytes a pixel, or a JPEG file
//! ```
//!
//! Everything is little-endian and of fixed width, so that the index is used in the mapped file. The header holds the
//! file's length and the samples follow each other without gaps, so that truncation, an appended byte and a changed
//! byte are all detected: before the samples by the header's CRC, in a sample by the sample's CRC.
//!
//! A map stays valid only while the file keeps its length: if another program truncates a shard *while it is being
//! read*, the process ends with SIGBUS, as with every memory map. This program never writes to a finished shard.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};
use memmap2::{Advice, Mmap};

use super::{DataError, Split};
use crate::files::{Disk, Draft};

#[cfg(target_endian = "big")]
compile_error!("shards are mapped as they lie on disk, little-endian; a big-endian host would misread them");

pub const MAGIC: [u8; 8] = *b"EFNSHARD";
pub const VERSION: u32 = 1;
/// Longest side of a stored image; JPEG knows no larger one.
pub const MAX_SIDE: u32 = 65_535;

/// Bytes that Linux reads for one piece of advice, by default; of a longer range it may leave out the rest.
const ADVISED: usize = 128 << 10;

const HEADER: usize = size_of::<Header>();
const RECORD: usize = size_of::<Record>();

/// The first 64 bytes of a shard.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    /// 0 training, 1 validation.
    pub split: u32,
    /// The number in the file's name.
    pub number: u32,
    /// Labels are below this.
    pub classes: u32,
    pub samples: u64,
    /// Where the first sample starts.
    pub data_offset: u64,
    pub file_length: u64,
    pub reserved: [u8; 12],
    /// CRC-32 of the 60 bytes before it and of everything between it and `data_offset`.
    pub crc: u32,
}

/// One sample's entry in the index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Record {
    /// From the start of the file.
    pub offset: u64,
    /// Number of the image among its split's source images; random draws for the sample are indexed by it.
    pub id: u64,
    pub length: u32,
    pub width: u32,
    pub height: u32,
    pub label: u32,
    /// CRC-32 of the sample's bytes.
    pub crc: u32,
    /// 1 grey, 3 RGB.
    pub channels: u8,
    /// See [`Encoding`].
    pub encoding: u8,
    pub reserved: [u8; 2],
}

/// How a sample's bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Encoding {
    /// Height rows of width pixels of channels bytes.
    Raw = 0,
    /// A baseline or progressive JPEG file of 1 or 3 components, upright.
    Jpeg = 1,
}

/// One stored image, or one to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    pub id: u64,
    pub label: u32,
    pub width: u32,
    pub height: u32,
    pub channels: u8,
    pub encoding: Encoding,
    pub bytes: &'a [u8],
}

/// File name of a shard.
pub fn file_name(split: Split, number: u32) -> String {
    format!("{split}-{number:05}.shard")
}

/// Checks everything except the samples' bytes: header, index, their CRC, file length, order and range of every
/// record. A shard that passes can be indexed without further checks.
pub fn check(bytes: &[u8]) -> Result<Header, String> {
    if bytes.len() < HEADER {
        return Err(format!("{} bytes are too few for a shard: truncated, or no shard at all", bytes.len()));
    }
    let header: Header = bytemuck::pod_read_unaligned(&bytes[..HEADER]);
    if header.magic != MAGIC {
        return Err("not a shard (it does not start with EFNSHARD)".into());
    }
    if header.version != VERSION {
        return Err(format!("shard version {}; this program reads version {VERSION}", header.version));
    }
    if header.file_length != bytes.len() as u64 {
        return Err(format!(
            "the file has {} bytes, its header says {}: truncated or altered",
            bytes.len(),
            header.file_length
        ));
    }
    let index_end = header.samples.checked_mul(RECORD as u64).and_then(|n| n.checked_add(HEADER as u64));
    if !index_end.is_some_and(|end| end <= header.data_offset && header.data_offset <= header.file_length) {
        return Err("the header's lengths contradict each other: damaged header".into());
    }
    if header_crc(&bytes[..header.data_offset as usize]) != header.crc {
        return Err("header and index do not match their checksum: damaged header or index".into());
    }
    if header.split as usize >= Split::ALL.len() {
        return Err(format!("split {} is neither training nor validation nor test", header.split));
    }
    let mut next = header.data_offset;
    for position in 0..header.samples as usize {
        let at = HEADER + position * RECORD;
        let record: Record = bytemuck::pod_read_unaligned(&bytes[at..at + RECORD]);
        check_record(&record, &header, next).map_err(|problem| format!("sample {position}: {problem}"))?;
        next += u64::from(record.length);
    }
    if next != header.file_length {
        return Err("the samples do not fill the file".into());
    }
    Ok(header)
}

/// CRC-32 of header and index, without the CRC's own four bytes.
fn header_crc(front: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&front[..HEADER - 4]);
    hasher.update(&front[HEADER..]);
    hasher.finalize()
}

fn check_record(record: &Record, header: &Header, expected_offset: u64) -> Result<(), String> {
    if record.offset != expected_offset || header.file_length - record.offset < u64::from(record.length) {
        return Err("lies outside its place in the file".into());
    }
    if record.label >= header.classes {
        return Err(format!("label {} is out of range: there are {} classes", record.label, header.classes));
    }
    let sides = 1..=MAX_SIDE;
    if !sides.contains(&record.width) || !sides.contains(&record.height) {
        return Err(format!("impossible size {}x{}", record.width, record.height));
    }
    if !matches!(record.channels, 1 | 3) {
        return Err(format!("{} channels; 1 or 3 are possible", record.channels));
    }
    match record.encoding {
        0 => {
            let pixels = u64::from(record.width) * u64::from(record.height) * u64::from(record.channels);
            if pixels != u64::from(record.length) {
                return Err(format!("{} bytes where its size needs {pixels}", record.length));
            }
        }
        1 => {}
        other => return Err(format!("unknown encoding {other}")),
    }
    Ok(())
}

/// A mapped shard whose header and index are sound.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl Shard {
    /// Maps a shard and checks header, index and length. Samples are checked when they are read.
    pub fn open(path: &Path) -> Result<Shard, DataError> {
        let file = File::open(path).map_err(DataError::io(path))?;
        let damaged = |problem: String| DataError::Damaged { file: path.to_owned(), problem };
        let metadata = file.metadata().map_err(DataError::io(path))?;
        if !metadata.is_file() {
            return Err(damaged("not a file".into()));
        }
        if metadata.len() < HEADER as u64 {
            // An empty file cannot be mapped.
            return Err(damaged(format!("{} bytes are too few for a shard: truncated", metadata.len())));
        }
        // SAFETY: the map is read-only; the module's text says what happens if another program truncates the file.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path))?;
        let header = check(&map).map_err(damaged)?;
        Ok(Shard { path: path.to_owned(), map, header })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn samples(&self) -> usize {
        self.header.samples as usize
    }

    /// The index, in the mapped file.
    pub fn records(&self) -> &[Record] {
        // The map starts at a page, and header and records are multiples of eight bytes: the cast cannot fail.
        bytemuck::cast_slice(&self.map[HEADER..HEADER + self.samples() * RECORD])
    }

    /// The sample at `position`, its bytes compared with their checksum.
    ///
    /// # Panics
    /// If `position` is not below [`Shard::samples`].
    pub fn sample(&self, position: usize) -> Result<Sample<'_>, DataError> {
        let record = &self.records()[position];
        let start = record.offset as usize;
        let bytes = &self.map[start..start + record.length as usize];
        if crc32fast::hash(bytes) != record.crc {
            return Err(self.damaged_sample(position, "its bytes do not match their checksum".into()));
        }
        let encoding = if record.encoding == 0 { Encoding::Raw } else { Encoding::Jpeg };
        let Record { id, label, width, height, channels, .. } = *record;
        Ok(Sample { id, label, width, height, channels, encoding, bytes })
    }

    /// The error for a sample whose bytes cannot be used.
    pub fn damaged_sample(&self, position: usize, problem: String) -> DataError {
        DataError::DamagedSample { file: self.path.clone(), sample: position as u64, problem }
    }

    /// Tells the system that samples will be read in random order, so that it does not fill the page cache with
    /// neighbours that nobody needs. [`Shard::will_need`] fetches samples instead.
    pub fn advise_random(&self) {
        let _ = self.map.advise(Advice::Random); // advice only: a refusal costs time, not correctness
    }

    /// Starts reading samples into the page cache.
    pub fn will_need(&self, positions: Range<usize>) {
        let Some(records) = self.records().get(positions).filter(|records| !records.is_empty()) else {
            return;
        };
        let last = records[records.len() - 1];
        let (start, end) = (records[0].offset as usize, last.offset as usize + last.length as usize);
        for at in (start..end).step_by(ADVISED) {
            let _ = self.map.advise_range(Advice::WillNeed, at, ADVISED.min(end - at));
        }
    }
}

/// Writes a shard under a temporary name; [`ShardWriter::finish`] gives it its own.
pub struct ShardWriter {
    path: PathBuf,
    file: BufWriter<Draft<'static>>,
    header: Header,
    records: Vec<Record>,
    next: u64,
}

impl ShardWriter {
    /// Starts `dir/SPLIT-NUMBER.shard` with room in the index for `room` samples.
    pub fn create(
        dir: &Path,
        split: Split,
        number: u32,
        classes: u32,
        room: usize,
    ) -> Result<Self, DataError> {
        let path = dir.join(file_name(split, number));
        let data_offset = (HEADER + room * RECORD) as u64;
        let mut file = BufWriter::with_capacity(1 << 20, Draft::create(&Disk, &path)?);
        file.seek(SeekFrom::Start(data_offset)).map_err(DataError::io(&path))?;
        Ok(ShardWriter {
            path,
            file,
            header: Header {
                magic: MAGIC,
                version: VERSION,
                split: split as u32,
                number,
                classes,
                samples: 0,
                data_offset,
                file_length: 0,
                reserved: [0; 12],
                crc: 0,
            },
            records: Vec::with_capacity(room),
            next: data_offset,
        })
    }

    /// Appends a sample.
    ///
    /// # Panics
    /// If the index has no room left.
    pub fn push(&mut self, sample: &Sample) -> Result<(), DataError> {
        let room = (self.header.data_offset as usize - HEADER) / RECORD;
        assert!(self.records.len() < room, "the shard's index is full");
        let record = Record {
            offset: self.next,
            id: sample.id,
            length: u32::try_from(sample.bytes.len())
                .map_err(|_| DataError::Invalid(format!("sample {} has 4 GiB or more", sample.id)))?,
            width: sample.width,
            height: sample.height,
            label: sample.label,
            crc: crc32fast::hash(sample.bytes),
            channels: sample.channels,
            encoding: sample.encoding as u8,
            reserved: [0; 2],
        };
        self.file.write_all(sample.bytes).map_err(DataError::io(&self.path))?;
        self.next += sample.bytes.len() as u64;
        self.records.push(record);
        Ok(())
    }

    pub fn samples(&self) -> usize {
        self.records.len()
    }

    /// Writes header and index, and gives the shard its name. Returns the header as written.
    pub fn finish(mut self) -> Result<Header, DataError> {
        self.header.samples = self.records.len() as u64;
        self.header.file_length = self.next;
        let mut front = vec![0; self.header.data_offset as usize];
        front[..HEADER].copy_from_slice(bytemuck::bytes_of(&self.header));
        let index: &[u8] = bytemuck::cast_slice(&self.records);
        front[HEADER..HEADER + index.len()].copy_from_slice(index);
        self.header.crc = header_crc(&front);
        front[HEADER - 4..HEADER].copy_from_slice(&self.header.crc.to_le_bytes());
        let ShardWriter { path, mut file, header, .. } = self;
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&front));
        let draft = written.and_then(|()| file.into_inner().map_err(io::IntoInnerError::into_error));
        draft.map_err(DataError::io(path))?.commit()?;
        Ok(header)
    }
}
