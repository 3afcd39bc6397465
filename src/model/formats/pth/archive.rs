//! The container: a zip file with one folder, whose entries are not compressed.

use std::cell::Cell;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::rc::Rc;

use zip::read::{ArchiveOffset, Config, ZipReadOptions};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::error::{PthError, shown};

/// Bytes that are read to find the entries. A list of 100,000 tensors has fewer than 20 MB.
const DIRECTORY_BYTES: u64 = 32 << 20;

/// A reader that fails when it has read more bytes than it may.
struct Limited<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 && !buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its list of entries is too long"));
        }
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// A file of torch.save whose list of entries is sound.
pub struct Archive<'a, R: Read + Seek> {
    zip: ZipArchive<Limited<BufReader<&'a mut R>>>,
    /// The folder of all entries, with a slash.
    folder: String,
}

impl<'a, R: Read + Seek> Archive<'a, R> {
    /// Opens a file.
    ///
    /// # Errors
    /// A file that is no sound zip file, one with compressed, encrypted or overlapping entries, and one that
    /// torch.save did not write.
    pub fn open(input: &'a mut R) -> Result<Archive<'a, R>, PthError> {
        let left = Rc::new(Cell::new(DIRECTORY_BYTES));
        let reader = Limited { inner: BufReader::new(input), left: left.clone() };
        let start = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(start, reader).map_err(unsound)?;
        let folder = folder(zip.file_names_raw())?;
        for index in 0..zip.len() {
            let entry = zip.by_index_data(index).map_err(unsound)?;
            let problem = if entry.encrypted() {
                "is encrypted"
            } else if entry.compression() != CompressionMethod::Stored {
                "is compressed"
            } else if entry.size() != entry.compressed_size() {
                "has two sizes"
            } else {
                continue;
            };
            return Err(PthError::Archive(format!(
                "its entry {} {problem}",
                shown(&lossy(entry.name_raw()))
            )));
        }
        // This also finds entries that reach beyond the file.
        if zip.has_overlapping_entries().map_err(unsound)? {
            return Err(PthError::Archive("its entries overlap".to_string()));
        }
        left.set(u64::MAX);
        Ok(Archive { zip, folder })
    }

    /// An entry's bytes, by its name in the folder. Its checksum is compared, if it has one.
    pub fn entry(&mut self, name: &str) -> Result<Option<Vec<u8>>, PthError> {
        let path = format!("{}{name}", self.folder);
        let Some(index) = self.zip.index_for_name_raw(path.as_bytes()) else { return Ok(None) };
        let failed = |problem: ZipError| match problem {
            ZipError::Io(error) if !of_content(&error) => PthError::Io(error),
            ZipError::Io(error) => {
                PthError::Archive(format!("its entry {} is damaged: {error}", shown(name)))
            }
            other => PthError::Archive(format!("its entry {} is damaged: {other}", shown(name))),
        };
        // PyTorch writes 0 where it was told to compute no checksums.
        let checked = self.zip.by_index_data(index).map_err(failed)?.crc32() != 0;
        let options = ZipReadOptions::new().enforce_header_consistency(true).ignore_crc32(!checked);
        let mut entry = self.zip.by_index_with_options(index, options).map_err(failed)?;
        // The entries do not overlap and end within the file, so that this is no more than the file has.
        let size = entry.size();
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        entry.read_to_end(&mut bytes).map_err(|error| failed(ZipError::Io(error)))?;
        if bytes.len() as u64 != size {
            return Err(PthError::Archive(format!("its entry {} ends too early", shown(name))));
        }
        Ok(Some(bytes))
    }
}

/// The folder of the entries, from that of the pickle.
fn folder<'n>(names: impl Iterator<Item = &'n [u8]>) -> Result<String, PthError> {
    let (mut folders, mut script) = (Vec::new(), false);
    for name in names {
        let mut parts = name.splitn(3, |byte| *byte == b'/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(folder), Some(b"data.pkl"), None) => folders.push(folder),
            (_, Some(b"constants.pkl"), None) | (_, Some(b"code"), Some(_)) => script = true,
            _ => {}
        }
    }
    if script {
        return Err(PthError::TorchScript);
    }
    match folders[..] {
        [folder] => match str::from_utf8(folder) {
            Ok(folder) => Ok(format!("{folder}/")),
            Err(_) => Err(PthError::Archive("its folder's name is not UTF-8".to_string())),
        },
        [] => Err(PthError::Archive("it has no data.pkl".to_string())),
        _ => Err(PthError::Archive("it has several data.pkl".to_string())),
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// Whether an error comes from what the file holds, and not from the disk.
fn of_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData)
}

fn unsound(problem: ZipError) -> PthError {
    match problem {
        ZipError::Io(error) if !of_content(&error) => PthError::Io(error),
        ZipError::Io(error) => PthError::Archive(error.to_string()),
        other => PthError::Archive(other.to_string()),
    }
}
