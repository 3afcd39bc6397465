//! Tar files that are compressed by gzip.
//!
//! Such a file can only be read forwards. That is enough: a split's images are asked for in the order in which they lie in
//! the file, so packing reads it once for the list and once for each split. Nothing is unpacked to disk; a pack that was
//! killed goes on by reading past what it has.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use super::source::is_tar;

/// A compressed file's content, from its start on.
pub struct Forward {
    path: PathBuf,
    /// One member of the file, or none after the last.
    content: Option<GzDecoder<BufReader<File>>>,
    /// Bytes that were read.
    at: u64,
}

impl Forward {
    pub fn open(path: &Path) -> io::Result<Forward> {
        let file = BufReader::with_capacity(1 << 18, File::open(path)?);
        Ok(Forward { path: path.to_owned(), content: Some(GzDecoder::new(file)), at: 0 })
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
        while let Some(content) = &mut self.content {
            let read = content.read(to)?;
            self.at += read as u64;
            if read > 0 || to.is_empty() {
                return Ok(read);
            }
            self.content = self.content.take().map_or(Ok(None), |ended| next_member(ended.into_inner()))?;
        }
        Ok(0)
    }
}

/// What follows a member: another one or nothing. Zeros up to the file's end are nothing, as for gzip and tar: a tape or a
/// disk's blocks may have added them.
fn next_member(mut file: BufReader<File>) -> io::Result<Option<GzDecoder<BufReader<File>>>> {
    if file.fill_buf()?.first().is_some_and(|&byte| byte != 0) {
        return Ok(Some(GzDecoder::new(file)));
    }
    loop {
        let rest = file.fill_buf()?;
        if rest.is_empty() {
            return Ok(None);
        }
        if rest.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "bytes after the end that are not gzip's"));
        }
        let length = rest.len();
        file.consume(length);
    }
}

/// Whether a file is compressed by gzip.
pub fn is_gzip(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == [0x1f, 0x8b]
}

/// Whether a tar file is in a compressed one, by its content.
pub fn holds_tar(path: &Path) -> bool {
    let start = Forward::open(path).and_then(|mut content| content.read_at(0, 512));
    is_gzip(path) && start.is_ok_and(|start| is_tar(&start))
}

/// Whether a file is a compressed tar file by its name, which it may be without being one that can be read.
pub fn is_tar_name(path: &Path) -> bool {
    let plain = plain_name(path);
    plain != path && plain.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar"))
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
