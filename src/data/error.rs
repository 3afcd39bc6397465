//! What can go wrong between an image file and a batch. Each message is one line that names the thing; names in it
//! are escaped.

use std::io;
use std::path::{Path, PathBuf};

use super::dataset::PARTIAL;
use crate::files::FileError;
use crate::names::{quoted, shown, shown_path};

#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// An error of the operating system, such as a full disk.
    #[error("{}: {error}", shown_path(path))]
    Io { path: PathBuf, error: io::Error },
    /// No dataset where one was expected.
    #[error("{}: {problem}; {}", shown_path(dir), way_to_a_dataset(dir))]
    NoDataset { dir: PathBuf, problem: String },
    /// `dataset.json`, or a shard's header or index, is damaged or belongs to something else.
    #[error("{}: {}", shown_path(file), shown(problem))]
    Damaged { file: PathBuf, problem: String },
    /// One sample is damaged.
    #[error("{}: sample {sample}: {problem}", shown_path(file))]
    DamagedSample { file: PathBuf, sample: u64, problem: String },
    /// A source that cannot be packed because of its layout, not because of one broken image.
    #[error("{}: {}", shown_path(path), shown(problem))]
    Source { path: PathBuf, problem: String },
    /// An image file given by the user that cannot be read.
    #[error("{}: {}", shown_path(path), shown(problem))]
    Image { path: PathBuf, problem: String },
    /// The output directory of a pack is in use.
    #[error("{}: {}", shown_path(path), shown(problem))]
    Output { path: PathBuf, problem: String },
    /// A pack was asked to stop.
    #[error("packing is stopped; the same command goes on with {}", shown_path(out))]
    Stopped { out: PathBuf },
    /// A setting that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A loader thread panicked, or the loader was asked again after an error.
    #[error("data loader: {0}")]
    Loader(String),
}

/// How to come to a dataset, from what lies where one was expected.
fn way_to_a_dataset(dir: &Path) -> String {
    let entries = || dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    if dir.join(PARTIAL).exists() {
        "run the same `effnet-pack` again, and it goes on".into()
    } else if ["checkpoint.bin", "recipe.toml"].iter().any(|name| dir.join(name).exists()) {
        "it is the folder of a run, whose recipe.toml names its data".into()
    } else if dir.is_file() || entries() {
        format!("if images lie there, `effnet-pack {} OUT` packs them, and OUT is what to give", quoted(dir))
    } else {
        format!("`effnet-pack SOURCE {}` makes one from the images at SOURCE", quoted(dir))
    }
}

impl DataError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> DataError {
        let path = path.into();
        move |error| DataError::Io { path, error }
    }
}

impl From<FileError> for DataError {
    fn from(FileError { path, error }: FileError) -> DataError {
        DataError::Io { path, error }
    }
}
