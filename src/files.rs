//! Durable files: after a crash or a power cut, a file has its old content or its new content, never a mixture.
//!
//! A [`Draft`] is written under a temporary name beside its target, forced to disk and renamed; then the directory is
//! forced to disk, because until then a power cut may undo the rename. If anything fails before the rename, the old
//! file is untouched and the temporary file is removed. Small files are written in one call, [`replace`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A file that could not be written, by the name it was meant to have.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub error: io::Error,
}

impl FileError {
    fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
        let path = path.to_owned();
        move |error| FileError { path, error }
    }
}

/// What a durable write needs of a file system. Tests implement one that fails.
pub trait Files {
    type File: Write;
    fn create(&self, path: &Path) -> io::Result<Self::File>;
    /// Forces a file's content to disk.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Forces a directory's names to disk.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must be free.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;

    fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.remove(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// The real file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Files for Disk {
    type File = File;

    fn create(&self, path: &Path) -> io::Result<File> {
        File::create(path)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        // On a file system without hard links, the second name is a copy.
        fs::hard_link(from, to).or_else(|_| {
            fs::copy(from, to)?;
            File::open(to)?.sync_all()
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// A file being written under its temporary name. [`Draft::commit`] gives it its own name; a draft that is dropped
/// before is removed.
#[derive(Debug)]
pub struct Draft<'a, F: Files = Disk> {
    files: &'a F,
    path: PathBuf,
    temporary: PathBuf,
    /// None as soon as the content is on disk.
    file: Option<F::File>,
    committed: bool,
}

impl<'a, F: Files> Draft<'a, F> {
    /// Starts a draft of `path`.
    pub fn create(files: &'a F, path: &Path) -> Result<Draft<'a, F>, FileError> {
        let temporary = temporary_name(path);
        let file = files.create(&temporary).map_err(FileError::at(path))?;
        Ok(Draft { files, path: path.to_owned(), temporary, file: Some(file), committed: false })
    }

    /// Writes with a function that knows nothing of drafts, and names the file in its error.
    pub fn write_with(&mut self, write: impl FnOnce(&mut Self) -> io::Result<()>) -> Result<(), FileError> {
        write(self).map_err(FileError::at(&self.path))
    }

    /// Ends the writing: the content is on disk, still under the temporary name.
    pub fn finish(&mut self) -> Result<(), FileError> {
        match self.file.take() {
            Some(file) => self.files.sync(&file).map_err(FileError::at(&self.path)),
            None => Ok(()),
        }
    }

    /// Gives the finished content a second name at once, replacing the file that had this name.
    pub fn also_as(&mut self, name: &Path) -> Result<(), FileError> {
        self.finish()?;
        let temporary = temporary_name(name);
        let linked = (|| {
            self.files.remove_if_there(&temporary)?;
            self.files.link(&self.temporary, &temporary)?;
            self.files.rename(&temporary, name).inspect_err(|_| {
                let _ = self.files.remove(&temporary);
            })
        })();
        linked.map_err(FileError::at(name))
    }

    /// Replaces the target by the draft. If only the last step fails, forcing the directory to disk, the target has
    /// its new content but a power cut may still undo that.
    pub fn commit(mut self) -> Result<(), FileError> {
        self.finish()?;
        self.files.rename(&self.temporary, &self.path).map_err(FileError::at(&self.path))?;
        self.committed = true;
        let directory = self.path.parent().unwrap_or(Path::new(""));
        self.files.sync_directory(directory).map_err(FileError::at(&self.path))
    }

    fn open(&mut self) -> io::Result<&mut F::File> {
        self.file.as_mut().ok_or_else(|| io::Error::other("the draft is finished"))
    }
}

impl<F: Files> Write for Draft<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open()?.flush()
    }
}

impl<F: Files<File: Seek>> Seek for Draft<'_, F> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.open()?.seek(position)
    }
}

impl<F: Files> Drop for Draft<'_, F> {
    fn drop(&mut self) {
        if !self.committed {
            self.file = None; // some systems remove no open file
            let _ = self.files.remove(&self.temporary);
        }
    }
}

/// Replaces the file at `path`, or makes it, with these bytes.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace_with(path, |file| file.write_all(bytes))
}

/// The same for content that is written piece by piece.
pub fn replace_with(path: &Path, write: impl FnOnce(&mut Draft) -> io::Result<()>) -> Result<(), FileError> {
    let mut draft = Draft::create(&Disk, path)?;
    draft.write_with(write)?;
    draft.commit()
}

/// Forces a directory's names to disk: files that were removed stay removed after a power cut.
pub fn sync_directory(path: &Path) -> Result<(), FileError> {
    Disk.sync_directory(path).map_err(FileError::at(path))
}

/// `name.tmp` beside `name`. A process that is killed leaves a file of this name behind.
pub fn temporary_name(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replace_makes_and_overwrites_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // What a killed process left behind is no hindrance.
        fs::write(temporary_name(&path), "half").unwrap();
        for content in ["first, and longer", "second"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(names(dir.path()), ["a"]);
        }
    }

    #[test]
    fn write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "old").unwrap();
        let full = |file: &mut Draft| {
            file.write_all(b"new")?;
            Err(io::ErrorKind::StorageFull.into())
        };
        let error = replace_with(&path, full).unwrap_err();
        assert_eq!(error.path, path);
        assert_eq!(error.error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn rename_that_fails_removes_the_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("inside")).unwrap();
        assert_eq!(replace(&taken, b"new").unwrap_err().path, taken);
        let mut draft = Draft::create(&Disk, &dir.path().join("a")).unwrap();
        assert_eq!(draft.also_as(&taken).unwrap_err().path, taken);
        drop(draft);
        assert_eq!(names(dir.path()), ["taken"]);
    }

    #[test]
    fn create_that_fails_names_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing").join("a");
        let error = replace(&path, b"new").unwrap_err();
        assert_eq!((error.path, error.error.kind()), (path, io::ErrorKind::NotFound));
        assert!(sync_directory(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn draft_is_written_anywhere_and_takes_several_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(dir.path().join("best"), "old").unwrap();
        let mut draft = Draft::create(&Disk, &path).unwrap();
        draft.write_all(b"..word").unwrap();
        draft.seek(SeekFrom::Start(0)).unwrap();
        draft.write_all(b"a ").unwrap();
        draft.also_as(&dir.path().join("best")).unwrap();
        assert_eq!(names(dir.path()), ["a.tmp", "best"]);
        assert!(draft.write_all(b"late").is_err(), "other names show what is on disk");
        draft.commit().unwrap();
        for name in names(dir.path()) {
            assert_eq!(fs::read_to_string(dir.path().join(&name)).unwrap(), "a word", "{name}");
        }
        assert_eq!(names(dir.path()), ["a", "best"]);
    }

    #[test]
    fn draft_that_is_dropped_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut draft = Draft::create(&Disk, &dir.path().join("a")).unwrap();
        draft.write_all(b"half").unwrap();
        drop(draft);
        assert!(names(dir.path()).is_empty());
    }
}
