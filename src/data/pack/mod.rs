//! Packing: a source of images to a directory of shards.
//!
//! The kind of the source is recognised ([`source`]), and the module of that kind lists its images. Then the list is
//! divided ([`divide`](mod@divide)): every image gets its place in a shard before the first one is decoded, in the
//! order of the source, so that two packs of one source are equal byte for byte. Then [`run`] streams: it decodes a few
//! images at a time on all threads and writes them in order. `dataset.json` is written last. An interrupted pack
//! continues where it stopped if source and options are still the same, as its notes say
//! ([`PARTIAL`](super::dataset::PARTIAL)).

mod cifar;
mod divide;
mod duplicates;
mod folder;
mod gzip;
mod idx_files;
mod list;
mod listing;
mod parquet_files;
mod prepare;
mod run;
mod size;
pub mod skipped;
mod source;
mod table;
mod tar_files;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize, Serializer};
use strum::{Display, EnumString, VariantNames};

use super::codec::Conversions;
use super::dataset::MANIFEST;
use super::fingerprint::Fnv;
use super::idx::Input;
use super::normalise::Normalise;
use super::{DataError, Split};
use crate::names;
use divide::{Images, divide};
use skipped::Skipped;
use source::Found;

pub use duplicates::Duplicates;
pub use folder::images_below;

/// How images are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Display, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = PackEncoding::unknown)]
pub enum PackEncoding {
    /// JPEG files as they are, or encoded anew where they are turned, CMYK or of a rare kind; all other images raw.
    #[default]
    Auto,
    /// Decoded pixels: no decoding while training, for several times the space.
    Raw,
    /// JPEG files as they are, all other images encoded.
    Jpeg,
}

impl PackEncoding {
    fn unknown(name: &str) -> String {
        names::unknown::<PackEncoding>("encoding", name)
    }
}

/// How to pack. The defaults are the program's.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Share of each class that becomes validation if the source is not split; above 0, below 1.
    pub val_fraction: f64,
    /// Chooses which images those are.
    pub seed: u64,
    pub encoding: PackEncoding,
    /// Quality of JPEG files written here, 1 to 100.
    pub quality: u8,
    /// Larger images are scaled down until no side is longer.
    pub max_side: Option<u32>,
    /// Larger images are scaled down until the shorter side has this length.
    pub resize_shorter: Option<u32>,
    /// A source of its own for the validation images.
    pub val: Option<PathBuf>,
    /// The classes of validation images that lie in one folder.
    pub val_list: Option<PathBuf>,
    /// A new shard begins when the current one would grow beyond this.
    pub shard_bytes: u64,
    /// Replace what the output directory holds.
    pub force: bool,
    pub threads: usize,
    /// Once it is set, the pack ends with [`DataError::Stopped`]; the same call goes on with it.
    pub stop: Arc<AtomicBool>,
}

impl Default for PackOptions {
    fn default() -> PackOptions {
        PackOptions {
            val_fraction: 0.1,
            seed: 0,
            encoding: PackEncoding::Auto,
            quality: 95,
            max_side: None,
            resize_shorter: None,
            val: None,
            val_list: None,
            shard_bytes: 256 << 20,
            force: false,
            stop: Arc::default(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl PackOptions {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

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
        if self.resize_shorter == Some(0) {
            return invalid("the shorter side must not be 0");
        }
        if self.shard_bytes == 0 {
            return invalid("the shard size must not be 0");
        }
        Ok(())
    }

    /// Hashes the options that decide the output's bytes.
    fn hash(&self, fnv: Fnv) -> Fnv {
        let fnv = fnv
            .number(self.val_fraction.to_bits())
            .number(self.seed)
            .number(self.encoding as u64)
            .number(self.quality.into())
            .number(self.max_side.map_or(0, u64::from))
            .number(self.shard_bytes);
        match self.resize_shorter {
            Some(shorter) => fnv.field(b"resize-shorter").number(shorter.into()),
            None => fnv, // as before there was this option
        }
    }
}

/// How far a pack is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub split: Split,
    /// Images done and all images, over all splits.
    pub done: u64,
    pub total: u64,
}

/// A file that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Broken {
    pub file: String,
    pub problem: String,
}

/// What one split consists of.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct SplitSummary {
    pub images: u64,
    pub bytes: u64,
    pub shards: usize,
}

impl SplitSummary {
    fn is_empty(&self) -> bool {
        self.images == 0
    }
}

/// What packing did.
#[derive(Clone, Debug, Serialize)]
pub struct PackSummary {
    #[serde(serialize_with = "as_text")]
    pub out: PathBuf,
    pub classes: usize,
    pub train: SplitSummary,
    pub val: SplitSummary,
    #[serde(skip_serializing_if = "SplitSummary::is_empty")]
    pub test: SplitSummary,
    #[serde(flatten)]
    pub normalise: Normalise,
    pub converted: Conversions,
    /// What the source was recognised as.
    pub source: String,
    /// What the user should know of it.
    pub notices: Vec<String>,
    /// How many files and folders were left out without being decoded.
    pub ignored: u64,
    /// Everything that was left out, with the reason.
    pub skipped: Vec<Skipped>,
    /// Validation images that are training images too, and test images that are.
    pub duplicates: Duplicates,
    #[serde(skip_serializing_if = "Duplicates::is_none")]
    pub test_duplicates: Duplicates,
    /// Shards kept from an interrupted pack.
    pub resumed_shards: usize,
    pub broken: Vec<Broken>,
    /// Classes without a readable training image.
    pub empty_classes: Vec<String>,
    pub fingerprint: String,
}

/// A path may hold what JSON cannot.
fn as_text<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// A source in which every image has a place.
struct Plan<'a> {
    /// What the source was recognised as.
    kind: String,
    classes: Vec<String>,
    splits: [SplitPlan; 3],
    /// A name for source and options; a pack continues only under the same one.
    hash: String,
    skipped: Vec<Skipped>,
    notices: Vec<String>,
    images: Images<'a>,
}

/// The number of a split's images, and where its shards end.
struct SplitPlan {
    images: u64,
    ends: Vec<u64>,
}

impl SplitPlan {
    /// Cuts images into shards by their estimated lengths.
    fn cut(lengths: impl Iterator<Item = u64>, shard_bytes: u64) -> SplitPlan {
        let mut images = 0;
        let mut filled = 0;
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

/// Packs any source of images to `out`; [`source`] says which there are.
///
/// # Errors
/// A source or an output directory that cannot be used, a full disk. Single broken images are no error unless nothing
/// else is left; [`PackSummary::skipped`] lists what was left out.
pub fn pack(
    source: &Path,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<PackSummary, DataError> {
    with_plan(source, out, options, |plan| run::run(plan, out, options, progress))
}

/// Packs a source into a directory of `store`, unless it lies there already, and returns the directory; with it the
/// summary if it was packed now. The directory's name has a checksum of the source's files (names, lengths, times) and of
/// the options: the same source is found again, and one that has changed is packed anew.
///
/// # Errors
/// As [`pack`].
pub fn pack_once(
    source: &Path,
    store: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<(PathBuf, Option<PackSummary>), DataError> {
    with_plan(source, store, options, |plan| {
        let out = place_of(source, &plan, store);
        if out.join(MANIFEST).exists() {
            return Ok((out, None));
        }
        let summary = run::run(plan, &out, options, progress)?;
        Ok((out, Some(summary)))
    })
}

/// The directory that [`pack_once`] has made of a source; none if it has not.
///
/// # Errors
/// A source that cannot be used.
pub fn find_packed(source: &Path, store: &Path, options: &PackOptions) -> Result<Option<PathBuf>, DataError> {
    with_plan(source, store, options, |plan| {
        Ok(Some(place_of(source, &plan, store)).filter(|out| out.join(MANIFEST).exists()))
    })
}

/// What a source holds, by its list only: nothing is decoded, so broken images count too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// What the source was recognised as.
    pub kind: String,
    pub classes: usize,
    /// By number of the split.
    pub images: [u64; 3],
}

/// Lists a source as [`pack_once`] does.
///
/// # Errors
/// A source that cannot be used.
pub fn outline(source: &Path, store: &Path, options: &PackOptions) -> Result<Outline, DataError> {
    with_plan(source, store, options, |plan| {
        let images = plan.splits.each_ref().map(|split| split.images);
        Ok(Outline { kind: plan.kind, classes: plan.classes.len(), images })
    })
}

fn place_of(source: &Path, plan: &Plan, store: &Path) -> PathBuf {
    store.join(format!("{}-{}", short_name(source), &plan.hash[..8]))
}

/// A source's own name, as far as it suits a directory.
fn short_name(source: &Path) -> String {
    let full = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let name = full.file_stem().unwrap_or_default().to_string_lossy();
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' };
    let name: String = name.chars().take(40).map(plain).collect();
    if name.is_empty() { "images".into() } else { name }
}

/// Recognises and lists a source, and gives its plan to `then`. `out` is no part of the source.
fn with_plan<T>(
    source: &Path,
    out: &Path,
    options: &PackOptions,
    then: impl FnOnce(Plan) -> Result<T, DataError>,
) -> Result<T, DataError> {
    options.check()?;
    source::check_output(source, out)?;
    let found = Found::at(source)?;
    let found_val = options.val.as_ref().map(|val| Found::at(val)).transpose()?;
    let listing = found.list(source, out, options)?;
    let val = match (&options.val, &found_val) {
        (Some(path), Some(found)) => {
            let options = PackOptions { val: None, val_list: None, ..options.clone() };
            Some(found.list(path, out, &options)?)
        }
        _ => None,
    };
    let problem = |problem| DataError::Source { path: source.to_owned(), problem };
    then(divide(found.tag(), listing, val, options).map_err(problem)?)
}

/// The four files of an MNIST-layout set, in memory, plain or gzipped.
#[derive(Clone, Copy, Debug)]
pub struct IdxSet<'a> {
    pub train_images: &'a [u8],
    pub train_labels: &'a [u8],
    pub val_images: &'a [u8],
    pub val_labels: &'a [u8],
}

/// Packs a set that lies in memory. Without names, classes are named by their numbers.
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
    let listing = idx_files::list(&inputs, class_names)?;
    let problem = |problem| DataError::Source { path: inputs[0].name(), problem };
    let plan = divide("idx", listing, None, options).map_err(problem)?;
    run::run(plan, out, options, progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pack that an earlier version began is continued: options that it did not know leave the hash as it was.
    #[test]
    fn hash_of_options_is_that_of_earlier_versions() {
        let options = PackOptions { seed: 3, max_side: Some(9), threads: 7, ..PackOptions::default() };
        let earlier = [0.1_f64.to_bits(), 3, 0, 95, 9, 256 << 20];
        let expected = earlier.iter().fold(Fnv::new(), |fnv, &number| fnv.number(number)).hex();
        assert_eq!(options.hash(Fnv::new()).hex(), expected);
        let shorter = PackOptions { resize_shorter: Some(9), ..options };
        assert_ne!(shorter.hash(Fnv::new()).hex(), expected);
    }
}
