//! Tar files that are compressed by gzip.
//!
//! Such a file can only be read forwards. That is enough: a split's images are asked for in the order in which they lie in
//! the file, so packing reads it once for the list and once for each split. Nothing is unpacked to disk; a pack that was
//! killed goes on by reading past what it has.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::source::is_tar;

/// A compressed file's content, from its start on.
pub struct Forward {
    path: PathBuf,
    content: MultiGzDecoder<BufReader<File>>,
    /// Bytes that were read.
    at: u64,
}

impl Forward {
    pub fn open(path: &Path) -> io::Result<Forward> {
        let file = BufReader::with_capacity(1 << 18, File::open(path)?);
        Ok(Forward { path: path.to_owned(), content: MultiGzDecoder::new(file), at: 0 })
    }

    /// Reads to the end, where the checksum is compared. Returns the content's length.
    pub fn finish(mut self) -> io::Result<u64> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.at)
    }

    /// Bytes from any place; those before the last one that was read cost a new start.
    pub fn read_at(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        if offset < self.at {
            *self = Forward::open(&self.path)?;
        }
        let skip = offset - self.at;
        io::copy(&mut self.by_ref().take(skip), &mut io::sink())?;
        let mut bytes = vec![0; length as usize];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Read for Forward {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(to)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Whether a file is compressed by gzip.
pub fn is_gzip(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == [0x1f, 0x8b]
}

/// Whether a tar file is in a compressed one.
pub fn holds_tar(path: &Path) -> bool {
    let start = Forward::open(path).and_then(|mut content| content.read_at(0, 512));
    is_gzip(path) && start.is_ok_and(|start| is_tar(&start))
}

/// The name without the ending of compression: `x.tar` of `x.tar.gz` and of `x.tgz`.
pub fn plain_name(path: &Path) -> PathBuf {
    let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
    match ending.to_str() {
        Some("gz") => path.with_extension(""),
        Some("tgz") => path.with_extension("tar"),
        _ => path.to_owned(),
    }
}
