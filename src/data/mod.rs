//! Images from a folder to a batch.
//!
//! A dataset is packed once and read many times. Packing ([`pack`]) settles everything that is odd about
//! image files (broken ones, CMYK, palettes, rotations noted in EXIF), so that training meets only two kinds of
//! sample: raw pixels and plain JPEG. Both lie in shards ([`shard`]) that are mapped into memory, never read
//! into it, and every sample carries a checksum: damage is an error that names file and sample, never a wrong
//! image. `dataset.json` ([`dataset`]) ties the shards of a set together.
//!
//! Reading is a pure function. Which sample stands at a position ([`sampler`]) and what its crop and mirror are
//! ([`augment`]) depend on the seed, the epoch and the sample alone; so the [`loader`] may use any number of
//! threads, and a resumed run sees the bytes that an uninterrupted one would have seen.

pub mod augment;
pub mod batch;
pub mod codec;
pub mod dataset;
pub mod demo;
pub mod idx;
pub mod loader;
pub mod pack;
pub mod raw;
pub mod sampler;
pub mod shard;
pub mod source;
pub mod synthetic;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use augment::{CropMode, evaluate_image};
pub use batch::{Batch, BatchPixels, Form};
pub use dataset::{Dataset, Normalise};
pub use loader::{Loader, LoaderConfig};
pub use sampler::Share;
pub use source::Source;
pub use synthetic::Synthetic;

use crate::files::FileError;

/// The two halves of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Val,
}

impl Split {
    pub const BOTH: [Split; 2] = [Split::Train, Split::Val];

    /// `train` or `val`, as in shard names and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Val => "val",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Split, String> {
        match text {
            "train" => Ok(Split::Train),
            "val" => Ok(Split::Val),
            _ => Err(format!("`{text}` is no split: use train or val")),
        }
    }
}

/// What can go wrong between an image file and a batch. Each message is one line that names the thing.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused; also a full disk.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    /// No dataset where one was expected.
    #[error(
        "{}: {problem}; make one with `effnet-pack SOURCE {}`, or try `--data synthetic` or `effnet-train --demo`",
        dir.display(),
        dir.display()
    )]
    NoDataset { dir: PathBuf, problem: String },
    /// `dataset.json` or a shard's header or index is damaged or belongs to something else.
    #[error("{}: {problem}", file.display())]
    Damaged { file: PathBuf, problem: String },
    /// One sample is damaged.
    #[error("{}: sample {sample}: {problem}", file.display())]
    DamagedSample { file: PathBuf, sample: u64, problem: String },
    /// A source that cannot be packed: its layout, not one broken image.
    #[error("{}: {problem}", path.display())]
    Source { path: PathBuf, problem: String },
    /// An image file given by the user that cannot be read.
    #[error("{}: {problem}", path.display())]
    Image { path: PathBuf, problem: String },
    /// The place to pack to is taken.
    #[error("{}: {problem}", path.display())]
    Output { path: PathBuf, problem: String },
    /// A setting that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A loader thread panicked, or the loader was asked again after an error.
    #[error("data loader: {0}")]
    Loader(String),
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

/// FNV-1a over 64 bits (Fowler, Noll, Vo): names a content, protects against nothing but accidents.
#[derive(Clone)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Fnv {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    /// Length first, so that two neighbouring fields cannot trade characters.
    pub fn field(self, bytes: &[u8]) -> Fnv {
        self.number(bytes.len() as u64).bytes(bytes)
    }

    pub fn number(self, number: u64) -> Fnv {
        self.bytes(&number.to_le_bytes())
    }

    pub fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}
