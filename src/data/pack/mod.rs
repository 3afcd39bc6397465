//! Packing: a source of images to a directory of shards.
//!
//! The source is planned first ([`folder`], [`idx_files`]): every image gets its place in a shard before the first
//! one is decoded, in the order of sorted names, so that two packs of one source are equal byte for byte. Then
//! [`run`] streams: a few images at a time are decoded on all threads and written in order. `dataset.json` comes
//! last. A pack that was interrupted goes on where it stopped if source and options are still the same
//! ([`PARTIAL`] says so).

mod folder;
mod idx_files;
mod prepare;
mod run;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::codec::Conversions;
use super::dataset::Normalise;
use super::idx::Input;
use super::{DataError, Fnv, Split};

pub use run::PARTIAL;

/// How images are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PackEncoding {
    /// Without loss: JPEG files as they are, all else raw.
    #[default]
    Auto,
    /// Decoded pixels: no decoding while training, for several times the space.
    Raw,
    /// JPEG files as they are, all else encoded.
    Jpeg,
}

impl PackEncoding {
    pub fn name(self) -> &'static str {
        match self {
            PackEncoding::Auto => "auto",
            PackEncoding::Raw => "raw",
            PackEncoding::Jpeg => "jpeg",
        }
    }
}

impl FromStr for PackEncoding {
    type Err = String;

    fn from_str(text: &str) -> Result<PackEncoding, String> {
        match text {
            "auto" => Ok(PackEncoding::Auto),
            "raw" => Ok(PackEncoding::Raw),
            "jpeg" => Ok(PackEncoding::Jpeg),
            _ => Err(format!("`{text}` is no encoding: use auto, raw or jpeg")),
        }
    }
}

/// How to pack. The defaults are the program's.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Share of each class that becomes validation where the source is not split; above 0, below 1.
    pub val_fraction: f64,
    /// Chooses which images those are.
    pub seed: u64,
    pub encoding: PackEncoding,
    /// Of JPEG files written here, 1 to 100.
    pub quality: u8,
    /// Larger images are scaled down until no side is longer.
    pub max_side: Option<u32>,
    /// A new shard is begun when one would grow beyond this.
    pub shard_bytes: u64,
    /// Replace what the output directory holds.
    pub force: bool,
    pub threads: usize,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            val_fraction: 0.1,
            seed: 0,
            encoding: PackEncoding::Auto,
            quality: 95,
            max_side: None,
            shard_bytes: 256 << 20,
            force: false,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl PackOptions {
    fn check(&self) -> Result<(), DataError> {
        let invalid = |problem: &str| Err(DataError::Invalid(problem.to_string()));
        if !(self.val_fraction > 0.0 && self.val_fraction < 1.0) {
            return invalid("the validation fraction must be above 0 and below 1");
        }
        if !(1..=100).contains(&self.quality) {
            return invalid("JPEG quality must be 1 to 100");
        }
        if self.max_side == Some(0) {
            return invalid("the longest side must not be 0");
        }
        if self.shard_bytes == 0 {
            return invalid("the shard size must not be 0");
        }
        Ok(())
    }

    /// What of the options decides the output's bytes.
    fn hash(&self, fnv: Fnv) -> Fnv {
        fnv.number(self.val_fraction.to_bits())
            .number(self.seed)
            .number(self.encoding as u64)
            .number(self.quality.into())
            .number(self.max_side.map_or(0, u64::from))
            .number(self.shard_bytes)
    }
}

/// How far packing has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub split: Split,
    /// Images done and in all, over both splits.
    pub done: u64,
    pub total: u64,
}

/// A file that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broken {
    pub file: String,
    pub problem: String,
}

/// What one split has become.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SplitSummary {
    pub images: u64,
    pub bytes: u64,
    pub shards: usize,
}

/// What packing did.
#[derive(Clone, Debug, Serialize)]
pub struct PackSummary {
    pub out: PathBuf,
    pub classes: usize,
    pub train: SplitSummary,
    pub val: SplitSummary,
    #[serde(flatten)]
    pub normalise: Normalise,
    pub converted: Conversions,
    /// Files that are no images by their names.
    pub ignored: u64,
    /// Shards taken over from an interrupted pack.
    pub resumed_shards: usize,
    pub broken: Vec<Broken>,
    /// Classes of whose training images none could be read.
    pub empty_classes: Vec<String>,
    pub fingerprint: String,
}

/// A source whose every image has a place.
struct Plan<'a> {
    classes: Vec<String>,
    splits: [SplitPlan; 2],
    /// Names source and options; a pack goes on only under the same one.
    hash: String,
    ignored: u64,
    items: Box<dyn Items + 'a>,
}

/// Number of images of a split and where its shards end.
struct SplitPlan {
    images: u64,
    ends: Vec<u64>,
}

impl SplitPlan {
    /// Cuts a row of images into shards by their estimated lengths.
    fn cut(lengths: impl Iterator<Item = u64>, shard_bytes: u64) -> SplitPlan {
        let (mut images, mut filled) = (0, 0);
        let mut ends = Vec::new();
        for length in lengths {
            if filled > 0 && filled + length > shard_bytes {
                ends.push(images);
                filled = 0;
            }
            filled += length.max(1);
            images += 1;
        }
        if images > 0 {
            ends.push(images);
        }
        SplitPlan { images, ends }
    }
}

/// One image before it is decoded.
struct Item {
    /// For messages.
    name: String,
    label: u32,
    content: Content,
}

enum Content {
    File(PathBuf),
    Grey { width: u32, height: u32, bytes: Vec<u8> },
}

/// The images of a source, asked for in rising order.
trait Items {
    fn item(&mut self, split: Split, number: u64) -> Result<Item, DataError>;
    /// Estimated length as stored.
    fn length(&self, split: Split, number: u64) -> u64;
}

/// Packs a folder or a directory of IDX files to `out`.
///
/// # Errors
/// A source or an output directory that cannot be used, a full disk; not for single broken images, which
/// [`PackSummary::broken`] lists, unless nothing else is left.
pub fn pack(
    source: &Path,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PackSummary, DataError> {
    options.check()?;
    let files = idx_files::find(source)?;
    let plan = match &files {
        Some(files) => idx_files::plan(&files.inputs(), None, options)?,
        None => folder::plan(source, options)?,
    };
    run::run(plan, out, options, progress)
}

/// The four files of an MNIST-layout set, in memory, plain or gzipped.
#[derive(Clone, Copy, Debug)]
pub struct IdxSet<'a> {
    pub train_images: &'a [u8],
    pub train_labels: &'a [u8],
    pub val_images: &'a [u8],
    pub val_labels: &'a [u8],
}

/// Packs a set that lies in memory. Without names, classes are called by their numbers.
///
/// # Errors
/// As [`pack`].
pub fn pack_idx_bytes(
    set: &IdxSet,
    class_names: Option<&[&str]>,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PackSummary, DataError> {
    options.check()?;
    let inputs = [
        Input::Bytes("training images", set.train_images),
        Input::Bytes("training labels", set.train_labels),
        Input::Bytes("validation images", set.val_images),
        Input::Bytes("validation labels", set.val_labels),
    ];
    run::run(idx_files::plan(&inputs, class_names, options)?, out, options, progress)
}
