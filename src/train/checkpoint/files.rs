//! The run directory: which files a run makes, and how they are replaced.
//!
//! A checkpoint is written to `checkpoint.bin.tmp`, forced to disk, and renamed, so `checkpoint.bin` is a complete file
//! at any time. `best.bin` and the numbered checkpoints are further names of the same file (hard links, or copies on
//! file systems without links). They are created *before* the rename: if the run is killed in between, the resumed run
//! repeats these steps and gives the same names to the same bytes.
//!
//! The directory is locked while a run uses it. The system releases the lock when the process ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::{CheckpointError, Metadata, Snapshot, write};
use crate::files::{Disk, Draft, FileError, Files};
use crate::model::ParamTable;
use crate::train::report::event_file::is_event_file;

/// A run directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{} already holds a run: --resume goes on with it, --force replaces it, --out names another place",
        dir.display())]
    Taken { dir: PathBuf },
    #[error("{}: nothing to resume here; leave out --resume to start a run", dir.display())]
    NothingToResume { dir: PathBuf },
    #[error("{}: checkpoint.bin is missing though the run had begun; copy best.bin or a numbered checkpoint to \
        checkpoint.bin to go on from it", dir.display())]
    CheckpointMissing { dir: PathBuf },
    #[error("{}: another effnet-train is running here", dir.display())]
    InUse { dir: PathBuf },
}

/// What a directory contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    /// A recipe but no checkpoint: the run was killed before it wrote one.
    Begun,
    Checkpoint,
    /// Results, but no checkpoint to continue from.
    Broken,
}

/// The files of one run.
#[derive(Debug)]
pub struct RunDirectory<F: Files = Disk> {
    dir: PathBuf,
    files: F,
    _lock: Option<File>,
}

impl RunDirectory {
    /// The directory as it is. Nothing is created, locked or changed.
    pub fn at(dir: &Path) -> RunDirectory {
        RunDirectory::with_files(dir, Disk)
    }

    /// Creates the directory if needed, locks it, and removes incomplete files of a killed run.
    ///
    /// # Errors
    /// A directory that cannot be written or is used by another run.
    pub fn open(dir: &Path) -> Result<RunDirectory, DirectoryError> {
        let failed = |error| DirectoryError::Io { path: dir.to_owned(), error };
        fs::create_dir_all(dir).map_err(failed)?;
        let handle = File::open(dir).map_err(failed)?;
        match handle.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::InUse { dir: dir.to_owned() }),
            // On a file system without locks the run continues without one.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let run = RunDirectory { dir: dir.to_owned(), files: Disk, _lock: Some(handle) };
        for name in run.names().map_err(failed)? {
            if name.ends_with(".tmp") && is_ours(name.trim_end_matches(".tmp")) {
                Disk.remove_if_there(&dir.join(name)).map_err(failed)?;
            }
        }
        Ok(run)
    }

    /// Removes only files that a run makes. The checkpoint goes first, so that a run that is killed in between cannot be
    /// resumed from old files. The recipe remains until it is replaced by the new one.
    pub fn clear(&self) -> Result<(), DirectoryError> {
        let failed = |error| DirectoryError::Io { path: self.dir.clone(), error };
        let mut names = self.names().map_err(failed)?;
        names.retain(|name| is_ours(name) && name != "recipe.toml");
        names.sort_by_key(|name| name != "checkpoint.bin");
        for name in names {
            Disk.remove_if_there(&self.dir.join(name)).map_err(failed)?;
        }
        Ok(())
    }
}

/// Whether this is the name of a file that a run makes.
fn is_ours(name: &str) -> bool {
    const NAMES: [&str; 7] =
        ["checkpoint.bin", "best.bin", "log.jsonl", "log.csv", "recipe.toml", "curves.svg", "report.html"];
    NAMES.contains(&name) || step_of(name).is_some() || is_event_file(name)
}

/// The step in `checkpoint-00001234.bin`.
fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("checkpoint-")?.strip_suffix(".bin")?;
    (digits.len() >= 8 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

impl<F: Files> RunDirectory<F> {
    /// The directory on another file system.
    pub fn with_files(dir: &Path, files: F) -> RunDirectory<F> {
        RunDirectory { dir: dir.to_owned(), files, _lock: None }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.dir.join("checkpoint.bin")
    }

    pub fn best(&self) -> PathBuf {
        self.dir.join("best.bin")
    }

    pub fn log(&self) -> PathBuf {
        self.dir.join("log.jsonl")
    }

    pub fn recipe(&self) -> PathBuf {
        self.dir.join("recipe.toml")
    }

    pub fn numbered(&self, step: u64) -> PathBuf {
        self.dir.join(format!("checkpoint-{step:08}.bin"))
    }

    /// Steps of the numbered checkpoints, rising.
    pub fn numbered_steps(&self) -> io::Result<Vec<u64>> {
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// What the directory contains.
    pub fn found(&self) -> Found {
        let results = self.best().exists()
            || fs::metadata(self.log()).is_ok_and(|log| log.len() > 0)
            || self.numbered_steps().is_ok_and(|steps| !steps.is_empty());
        match (self.checkpoint().exists(), results, self.recipe().exists()) {
            (true, _, _) => Found::Checkpoint,
            (_, true, _) => Found::Broken,
            (_, _, true) => Found::Begun,
            _ => Found::Nothing,
        }
    }

    /// Saves a checkpoint as the latest; with `best` also as the best; with `keep` above 0 also under its number. Only
    /// the last `keep` numbered checkpoints remain.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; the previous checkpoint is then unchanged.
    pub fn save(
        &self,
        metadata: &Metadata,
        table: &ParamTable,
        state: &Snapshot,
        best: bool,
        keep: usize,
    ) -> Result<(), CheckpointError> {
        let latest = self.checkpoint();
        let saved = (|| {
            let mut draft = Draft::create(&self.files, &latest)?;
            draft.write_with(|file| write(file, metadata, table, state))?;
            if best {
                draft.also_as(&self.best())?;
            }
            if keep > 0 && metadata.step > 0 {
                draft.also_as(&self.numbered(metadata.step))?;
            }
            draft.commit()
        })();
        saved.map_err(|FileError { error, .. }| CheckpointError::Write {
            path: latest.clone(),
            error,
            intact: latest.exists(),
        })?;
        // The new checkpoint is safe, so the oldest may be removed. If that fails, it does no harm.
        let old = self.numbered_steps().unwrap_or_default();
        if keep > 0 && old.len() > keep {
            for &step in &old[..old.len() - keep] {
                let _ = self.files.remove(&self.numbered(step));
            }
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir)?;
        entries.filter_map(|entry| entry.map(|e| e.file_name().into_string().ok()).transpose()).collect()
    }
}
