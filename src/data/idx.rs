//! IDX files, as MNIST-layout sets have them, plain or gzipped.
//!
//! ```text
//! images: 00 00 08 03, count, rows, columns   (big-endian, 32 bits each), then count × rows × columns bytes
//! labels: 00 00 08 01, count, then count bytes
//! ```
//!
//! A file is first read once to its end ([`Images::survey`], [`labels`]), to make sure that it is complete before
//! anything is written; then it is streamed.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::DataError;
use super::shard::MAX_SIDE;

/// The bytes of one IDX file: on disk or in memory.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    File(&'a Path),
    /// A name for messages, and the content.
    Bytes(&'a str, &'a [u8]),
}

impl<'a> Input<'a> {
    pub fn name(&self) -> PathBuf {
        match self {
            Input::File(path) => path.to_path_buf(),
            Input::Bytes(name, _) => PathBuf::from(name),
        }
    }

    /// Unpacks while reading if the content starts like gzip.
    fn open(&self) -> Result<Box<dyn Read + 'a>, DataError> {
        let mut raw: Box<dyn Read + 'a> = match *self {
            Input::File(path) => Box::new(BufReader::new(File::open(path).map_err(DataError::io(path))?)),
            Input::Bytes(_, bytes) => Box::new(bytes),
        };
        let mut start = Vec::new();
        raw.by_ref().take(2).read_to_end(&mut start).map_err(DataError::io(self.name()))?;
        let zipped = start == [0x1f, 0x8b];
        let whole = io::Cursor::new(start).chain(raw);
        Ok(if zipped { Box::new(BufReader::new(MultiGzDecoder::new(whole))) } else { Box::new(whole) })
    }

    fn problem(&self, problem: impl Into<String>) -> DataError {
        DataError::Source { path: self.name(), problem: problem.into() }
    }

    /// The error for a read that failed: the file ended early, or its gzip data is damaged.
    fn read_error(&self, error: io::Error) -> DataError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.problem("truncated: it ends before its last item"),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                self.problem(format!("damaged gzip data ({error})"))
            }
            _ => DataError::Io { path: self.name(), error },
        }
    }
}

/// An IDX file of images, being read.
pub struct Images<'a> {
    input: Input<'a>,
    reader: Box<dyn Read + 'a>,
    pub count: u64,
    pub rows: u32,
    pub columns: u32,
    next: u64,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survey {
    pub count: u64,
    pub rows: u32,
    pub columns: u32,
    /// CRC-32 of the pixels.
    pub crc: u32,
}

impl<'a> Images<'a> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`DataError::Source`] for a file that holds no images, or none of a possible size.
    pub fn open(input: Input<'a>) -> Result<Images<'a>, DataError> {
        let mut reader = input.open()?;
        let magic = read_u32(&mut reader, &input)?;
        if magic != 0x0000_0803 {
            let what = if magic == 0x0000_0801 {
                "an IDX file of labels, not of images"
            } else {
                "no IDX file of images"
            };
            return Err(input.problem(format!("{what} (it starts with {magic:08x}, not 00000803)")));
        }
        let count = read_u32(&mut reader, &input)?;
        let rows = read_u32(&mut reader, &input)?;
        let columns = read_u32(&mut reader, &input)?;
        if count == 0 || !(1..=MAX_SIDE).contains(&rows) || !(1..=MAX_SIDE).contains(&columns) {
            return Err(input.problem(format!("{count} images of {columns}x{rows} pixels: damaged header")));
        }
        Ok(Images { input, reader, count: count.into(), rows, columns, next: 0 })
    }

    /// Pixels of one image.
    pub fn area(&self) -> usize {
        self.rows as usize * self.columns as usize
    }

    /// Reads all of the file: it must hold exactly what its header says.
    pub fn survey(input: Input<'a>) -> Result<Survey, DataError> {
        let mut images = Images::open(input)?;
        let expected = images.count * images.area() as u64;
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            let read = match images.reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(input.read_error(e)),
            };
            hasher.update(&buffer[..read]);
            total += read as u64;
            if total > expected {
                return Err(
                    input.problem("it goes on after its last image: damaged header or another format")
                );
            }
        }
        if total < expected {
            let whole = total / images.area() as u64;
            return Err(
                input.problem(format!("truncated: {whole} images where its header says {}", images.count))
            );
        }
        let Images { count, rows, columns, .. } = images;
        Ok(Survey { count, rows, columns, crc: hasher.finalize() })
    }

    /// Number of the image that [`Images::read`] gives next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Reads the next image.
    pub fn read(&mut self) -> Result<Vec<u8>, DataError> {
        let mut pixels = vec![0; self.area()];
        self.reader.read_exact(&mut pixels).map_err(|e| self.input.read_error(e))?;
        self.next += 1;
        Ok(pixels)
    }

    /// Skips images.
    pub fn skip(&mut self, images: u64) -> Result<(), DataError> {
        let bytes = images * self.area() as u64;
        let skipped = io::copy(&mut self.reader.by_ref().take(bytes), &mut io::sink())
            .map_err(|e| self.input.read_error(e))?;
        if skipped != bytes {
            return Err(self.input.read_error(io::ErrorKind::UnexpectedEof.into()));
        }
        self.next += images;
        Ok(())
    }
}

/// Reads a file of labels.
///
/// # Errors
/// [`DataError::Source`] for a wrong magic or length.
pub fn labels(input: Input) -> Result<Vec<u8>, DataError> {
    let mut reader = input.open()?;
    let magic = read_u32(&mut reader, &input)?;
    if magic != 0x0000_0801 {
        let what = if magic == 0x0000_0803 {
            "an IDX file of images, not of labels"
        } else {
            "no IDX file of labels"
        };
        return Err(input.problem(format!("{what} (it starts with {magic:08x}, not 00000801)")));
    }
    let count = read_u32(&mut reader, &input)?;
    let mut labels = Vec::new(); // not sized by the header, which may be damaged
    reader.take(u64::from(count) + 1).read_to_end(&mut labels).map_err(|e| input.read_error(e))?;
    match labels.len() as u64 {
        found if found < u64::from(count) => {
            Err(input.problem(format!("truncated: {found} labels where its header says {count}")))
        }
        found if found > u64::from(count) => {
            Err(input.problem("it goes on after its last label: damaged header or another format"))
        }
        0 => Err(input.problem("no labels in it")),
        _ => Ok(labels),
    }
}

fn read_u32(reader: &mut dyn Read, input: &Input) -> Result<u32, DataError> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => input.problem("too short for an IDX file: truncated"),
        _ => input.read_error(e),
    })?;
    Ok(u32::from_be_bytes(bytes))
}
