//! Finds the images below a folder. Links are followed; no folder is read twice for one class, so that a link that
//! leads back up ends there. What is no image is listed with the reason.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirEntry, Metadata};
use std::path::{Path, PathBuf};

use super::super::listing::Stamp;
use super::super::skipped::{Skipped, SkippedKind};
use crate::data::DataError;
use crate::data::codec::is_image_name;
use crate::data::dataset::{MANIFEST, PARTIAL};

/// Folders and files of systems and programs, in lower case. So are all that start with a dot.
const JUNK: [&str; 12] = [
    "__macosx",
    "@eadir",
    "__pycache__",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "#recycle",
    "@recycle",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
];

pub fn is_junk(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with('.') || JUNK.contains(&name.to_lowercase().as_str())
}

pub fn is_jpeg_name(path: &Path) -> bool {
    has_ending(path, &["jpg", "jpeg", "jpe", "jfif"])
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    path.extension().is_some_and(|found| endings.iter().any(|ending| found.eq_ignore_ascii_case(ending)))
}

/// Whether a folder is a packed set, or the beginning of one.
fn is_packed(path: &Path) -> bool {
    path.join(MANIFEST).is_file() || path.join(PARTIAL).is_file()
}

/// The number of images in a folder itself.
pub fn images_here(path: &Path) -> Result<usize, DataError> {
    let names = entries(path)?.into_iter().map(|entry| PathBuf::from(entry.file_name()));
    Ok(names.filter(|name| !is_junk(name.as_os_str()) && is_image_name(name)).count())
}

/// Whether a folder holds an image, in itself or in a folder in it.
pub fn holds_images(path: &Path) -> Result<bool, DataError> {
    if images_here(path)? > 0 {
        return Ok(true);
    }
    for entry in entries(path)? {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && !is_junk(&entry.file_name()) && holds_images(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The entries of a folder, sorted by name: a system may give them in any order.
fn entries(path: &Path) -> Result<Vec<DirEntry>, DataError> {
    let entries = fs::read_dir(path).map_err(DataError::io(path))?;
    let mut entries = entries.collect::<Result<Vec<_>, _>>().map_err(DataError::io(path))?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// The names of a folder's folders, sorted, without junk; a helper that lists nothing.
pub fn subfolders(path: &Path) -> Result<Vec<String>, DataError> {
    Walk::new(path, Path::new("")).subfolders(path)
}

pub struct Walk {
    source: PathBuf,
    /// The directory that is being made, if it is there.
    out: Option<PathBuf>,
    pub skipped: Vec<Skipped>,
}

impl Walk {
    pub fn new(source: &Path, out: &Path) -> Walk {
        let out = fs::canonicalize(out).ok();
        Walk { source: source.to_owned(), out, skipped: Vec::new() }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.source).unwrap_or(path).to_owned()
    }

    fn skip(&mut self, path: &Path, kind: SkippedKind, reason: &str) {
        self.skipped.push(Skipped::at(path, kind, reason));
    }

    /// Why a folder is not read, if it is not.
    fn refused(&self, path: &Path) -> Option<(SkippedKind, &'static str)> {
        if is_junk(path.file_name().unwrap_or_default()) {
            return Some((SkippedKind::Junk, "a folder of a system or program"));
        }
        if is_packed(path) {
            return Some((SkippedKind::Packed, "a packed set"));
        }
        let is_out =
            self.out.as_ref().is_some_and(|out| fs::canonicalize(path).is_ok_and(|path| path == *out));
        is_out.then_some((SkippedKind::Packed, "the directory to be made"))
    }

    /// Names of the folders in `path`, sorted, without junk and packed sets.
    pub fn subfolders(&self, path: &Path) -> Result<Vec<String>, DataError> {
        let mut names = Vec::new();
        for entry in entries(path)? {
            if !entry.path().is_dir() || self.refused(&entry.path()).is_some() {
                continue;
            }
            names.push(entry.file_name().into_string().map_err(|name| DataError::Source {
                path: path.join(name),
                problem: "a class folder's name must be UTF-8; rename it".into(),
            })?);
        }
        Ok(names)
    }

    /// The same, and notes what else is there, because it is left out.
    pub fn classes(&mut self, path: &Path) -> Result<Vec<String>, DataError> {
        for entry in entries(path)? {
            if !entry.path().is_dir() {
                self.file(&entry);
            } else if let Some((kind, reason)) = self.refused(&entry.path()) {
                self.skip(&self.relative(&entry.path()), kind, reason);
            }
        }
        self.subfolders(path)
    }

    /// A file beside class folders.
    fn file(&mut self, entry: &DirEntry) {
        let path = self.relative(&entry.path());
        if is_junk(&entry.file_name()) {
            self.skip(&path, SkippedKind::Junk, "a file of a system or program");
        } else if is_image_name(&path) {
            self.skip(&path, SkippedKind::Label, "in no class folder");
        } else {
            self.skip(&path, SkippedKind::NotAnImage, "no image by its name");
        }
    }

    /// The images in `folder` of the source and in the folders in it, sorted by path.
    pub fn images(&mut self, folder: &Path) -> Result<Vec<Stamp>, DataError> {
        let mut found = Vec::new();
        self.visit(&self.source.join(folder), folder, &mut HashSet::new(), &mut found)?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    fn visit(
        &mut self,
        absolute: &Path,
        folder: &Path,
        seen: &mut HashSet<PathBuf>,
        found: &mut Vec<Stamp>,
    ) -> Result<(), DataError> {
        seen.insert(fs::canonicalize(absolute).map_err(DataError::io(absolute))?);
        let mut links = Vec::new();
        for entry in entries(absolute)? {
            let (path, inside) = (entry.path(), folder.join(entry.file_name()));
            let metadata = fs::metadata(&path).ok();
            if metadata.as_ref().is_some_and(Metadata::is_dir) {
                match self.refused(&path) {
                    Some((kind, reason)) => self.skip(&inside, kind, reason),
                    // Links come last: a folder is read under its own name rather than through a link.
                    None if entry.file_type().is_ok_and(|kind| kind.is_symlink()) => {
                        links.push((path, inside))
                    }
                    None => self.enter(&path, &inside, seen, found)?,
                }
            } else if is_junk(&entry.file_name()) {
                self.skip(&inside, SkippedKind::Junk, "a file of a system or program");
            } else if metadata.as_ref().is_some_and(|metadata| !metadata.is_file()) {
                self.skip(&inside, SkippedKind::NotAnImage, "a pipe, a socket or a device");
            } else if is_image_name(&inside) {
                found.push(Stamp::of(metadata.as_ref(), inside));
            } else {
                self.skip(&inside, SkippedKind::NotAnImage, "no image by its name");
            }
        }
        links.into_iter().try_for_each(|(path, inside)| self.enter(&path, &inside, seen, found))
    }

    fn enter(
        &mut self,
        path: &Path,
        inside: &Path,
        seen: &mut HashSet<PathBuf>,
        found: &mut Vec<Stamp>,
    ) -> Result<(), DataError> {
        if seen.contains(&fs::canonicalize(path).map_err(DataError::io(path))?) {
            self.skip(inside, SkippedKind::Link, "leads to a folder that was read already");
            return Ok(());
        }
        self.visit(path, inside, seen, found)
    }
}
