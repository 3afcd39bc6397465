//! A packed set: `dataset.json` and the shards it lists.
//!
//! `dataset.json` is written last, so its presence says that the set is complete. It carries its own checksum and is
//! accepted only byte for byte as it was written: a class renamed by hand would silently change the meaning of a
//! checkpoint's outputs.

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fingerprint::Fnv;
use super::normalise::Normalise;
use super::sampler::blocks;
use super::shard::{Record, Sample, Shard};
use super::{DataError, Split};
use crate::files;

pub const MANIFEST: &str = "dataset.json";
/// The notes of a pack in progress; removed when the set is complete.
pub const PARTIAL: &str = "pack.partial.json";
const FORMAT: &str = "effnet dataset";
const VERSION: u32 = 1;

/// What `dataset.json` says of one shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    pub file: String,
    pub samples: u64,
    pub bytes: u64,
    /// CRC of the shard's header and index, in hexadecimal. The index holds the samples' CRCs, so this one covers every
    /// byte of the shard.
    pub index_crc: String,
}

/// What `dataset.json` says of one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitEntry {
    pub samples: u64,
    pub bytes: u64,
    pub shards: Vec<ShardEntry>,
}

impl SplitEntry {
    pub fn is_empty(&self) -> bool {
        *self == SplitEntry::default()
    }
}

/// `dataset.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub version: u32,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// The packer's option `auto`, `raw` or `jpeg`; each sample has its own encoding.
    pub encoding: String,
    /// Over all pixels of the training split; grey counts as three equal channels.
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
    pub train: SplitEntry,
    pub val: SplitEntry,
    /// Not written where there are no test images: a set of an earlier version has none.
    #[serde(default, skip_serializing_if = "SplitEntry::is_empty")]
    pub test: SplitEntry,
    /// CRC-32 of this file with the checksum empty.
    pub checksum: String,
}

impl Manifest {
    pub fn new(
        classes: Vec<String>,
        encoding: String,
        normalise: Normalise,
        splits: [SplitEntry; 3],
    ) -> Self {
        let [train, val, test] = splits;
        let Normalise { mean, deviation } = normalise;
        let format = FORMAT.to_string();
        let checksum = String::new();
        let mut manifest = Manifest {
            format,
            version: VERSION,
            classes,
            encoding,
            mean,
            deviation,
            train,
            val,
            test,
            checksum,
        };
        manifest.checksum = format!("{:08x}", crc32fast::hash(&manifest.to_bytes()));
        manifest
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("strings and numbers become JSON");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest; anything but the bytes that [`Manifest::write`] wrote is an error.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let mut manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| format!("truncated, altered or no dataset: {e}"))?;
        if manifest.format != FORMAT {
            return Err("not the description of a dataset".into());
        }
        if manifest.version != VERSION {
            let version = manifest.version;
            return Err(format!(
                "dataset version {version}; this program reads version {VERSION}: pack again"
            ));
        }
        let as_written = manifest.to_bytes();
        let checksum = std::mem::take(&mut manifest.checksum);
        let found = format!("{:08x}", crc32fast::hash(&manifest.to_bytes()));
        if checksum != found || as_written != bytes {
            return Err("altered since it was packed (its checksum differs): pack again".into());
        }
        manifest.checksum = checksum;
        Ok(manifest)
    }

    pub fn write(&self, dir: &Path) -> Result<(), DataError> {
        Ok(files::replace(&dir.join(MANIFEST), &self.to_bytes())?)
    }

    pub fn read(dir: &Path) -> Result<Manifest, DataError> {
        let missing =
            |problem: &str| DataError::NoDataset { dir: dir.to_owned(), problem: problem.to_string() };
        let path = dir.join(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => {
                Manifest::parse(&bytes).map_err(|problem| DataError::Damaged { file: path, problem })
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(match fs::read_dir(dir) {
                    Err(e) if e.kind() == ErrorKind::NotADirectory => missing("not a directory"),
                    Err(_) => missing("no such directory"),
                    Ok(_) if dir.join(PARTIAL).exists() => {
                        missing("packing was interrupted, the dataset is not complete")
                    }
                    Ok(mut entries) => match entries.next() {
                        None => missing("the directory is empty"),
                        Some(_) => missing("no dataset (dataset.json is missing)"),
                    },
                })
            }
            Err(e) => Err(DataError::Io { path, error: e }),
        }
    }

    pub fn split(&self, split: Split) -> &SplitEntry {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
            Split::Test => &self.test,
        }
    }

    /// A name for the content: classes, counts and, through the shards' CRCs, every byte of every sample for training and
    /// validation. Two packs of one source have the same. Test images do not count: a run has not seen them, and goes on
    /// over a set that was packed again with them.
    pub fn fingerprint(&self) -> String {
        let mut fnv = Fnv::new().number(self.classes.len() as u64);
        for class in &self.classes {
            fnv = fnv.field(class.as_bytes());
        }
        for split in Split::BOTH {
            let entry = self.split(split);
            fnv = fnv.number(entry.samples).number(entry.shards.len() as u64);
            for shard in &entry.shards {
                fnv = fnv.number(shard.samples).field(shard.index_crc.as_bytes());
            }
        }
        fnv.hex()
    }
}

/// The shards of one split, addressed as one row of samples.
#[derive(Debug)]
struct Shards {
    shards: Vec<Shard>,
    /// Number of samples before each shard.
    starts: Vec<usize>,
    samples: usize,
    largest: (u32, u32),
    /// Samples are so long that fetching each ahead of its use is worth a system call.
    ask_ahead: bool,
}

/// From this mean sample length on, samples are fetched one by one ahead of their use, instead of by the system's
/// read-ahead. Short samples profit from read-ahead, because their neighbours lie in the same pages.
const ASK_AHEAD_BYTES: u64 = 32 << 10;

impl Shards {
    fn open(dir: &Path, manifest: &Manifest, split: Split) -> Result<Shards, DataError> {
        let entry = manifest.split(split);
        let mut shards = Vec::with_capacity(entry.shards.len());
        let mut starts = Vec::with_capacity(entry.shards.len());
        let mut samples = 0;
        let mut bytes = 0;
        let mut largest = (0, 0);
        for listed in &entry.shards {
            let shard = open_listed(dir, manifest, split, listed)?;
            starts.push(samples);
            samples += shard.samples();
            bytes += shard.header().file_length;
            for record in shard.records() {
                largest = (record.width.max(largest.0), record.height.max(largest.1));
            }
            shards.push(shard);
        }
        let damaged = |problem: String| DataError::Damaged { file: dir.join(MANIFEST), problem };
        if samples as u64 != entry.samples {
            return Err(damaged(format!("the {split} split's shards hold {samples} samples")));
        }
        if samples == 0 && split != Split::Test {
            return Err(damaged(format!("the {split} split is empty")));
        }
        if samples > u32::MAX as usize {
            return Err(damaged(format!("the {split} split has more than {} samples", u32::MAX)));
        }
        let ask_ahead = bytes / samples.max(1) as u64 >= ASK_AHEAD_BYTES;
        if ask_ahead && split == Split::Train {
            shards.iter().for_each(Shard::advise_random);
        }
        Ok(Shards { shards, starts, samples, largest, ask_ahead })
    }

    fn locate(&self, index: usize) -> (&Shard, usize) {
        let number = self.starts.partition_point(|&start| start <= index) - 1;
        (&self.shards[number], index - self.starts[number])
    }
}

/// Opens a shard and checks that the manifest lists this one.
fn open_listed(
    dir: &Path,
    manifest: &Manifest,
    split: Split,
    listed: &ShardEntry,
) -> Result<Shard, DataError> {
    let path = dir.join(&listed.file);
    let shard = match Shard::open(&path) {
        Err(DataError::Io { path, error }) if error.kind() == ErrorKind::NotFound => {
            let problem = "missing, though dataset.json lists it: pack again".to_string();
            return Err(DataError::Damaged { file: path, problem });
        }
        other => other?,
    };
    let header = shard.header();
    let same = header.samples == listed.samples
        && header.file_length == listed.bytes
        && format!("{:08x}", header.crc) == listed.index_crc
        && header.split == split as u32
        && header.classes as usize == manifest.classes.len();
    if !same {
        let problem = "belongs to another dataset (it is not the shard that dataset.json lists)".to_string();
        return Err(DataError::Damaged { file: path, problem });
    }
    Ok(shard)
}

/// An opened set. Its samples stay in the mapped files; memory holds only what the system keeps of these.
#[derive(Debug)]
pub struct Dataset {
    dir: PathBuf,
    manifest: Manifest,
    splits: [Shards; 3],
}

impl Dataset {
    /// Opens and checks everything except the samples' bytes, which are checked when they are read.
    ///
    /// # Errors
    /// [`DataError::NoDataset`] if there is none, [`DataError::Damaged`] naming the file that is not as it was packed.
    pub fn open(dir: &Path) -> Result<Dataset, DataError> {
        let manifest = Manifest::read(dir)?;
        let [train, val, test] = Split::ALL.map(|split| Shards::open(dir, &manifest, split));
        let splits = [train?, val?, test?];
        Ok(Dataset { dir: dir.to_owned(), manifest, splits })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn classes(&self) -> &[String] {
        &self.manifest.classes
    }

    /// Number of samples of a split; 0 only of a set without test images.
    pub fn samples(&self, split: Split) -> usize {
        self.splits[split as usize].samples
    }

    /// Largest width and largest height of a split's images.
    pub fn largest(&self, split: Split) -> (u32, u32) {
        self.splits[split as usize].largest
    }

    /// The shorter side of the image that is in the middle of a split's images by this side.
    pub fn median_shorter_side(&self, split: Split) -> u32 {
        let mut sides: Vec<u32> = self.records(split).map(|record| record.width.min(record.height)).collect();
        let middle = sides.len() / 2;
        *sides.select_nth_unstable(middle).1
    }

    pub fn normalise(&self) -> Normalise {
        Normalise { mean: self.manifest.mean, deviation: self.manifest.deviation }
    }

    pub fn fingerprint(&self) -> String {
        self.manifest.fingerprint()
    }

    /// A sample, compared with its checksum.
    ///
    /// # Panics
    /// If `index` is not below [`Dataset::samples`].
    pub fn sample(&self, split: Split, index: usize) -> Result<Sample<'_>, DataError> {
        let (shard, position) = self.splits[split as usize].locate(index);
        shard.sample(position)
    }

    /// A sample's id.
    ///
    /// # Panics
    /// As [`Dataset::sample`].
    pub fn id(&self, split: Split, index: usize) -> u64 {
        let (shard, position) = self.splits[split as usize].locate(index);
        shard.records()[position].id
    }

    /// The error for a sample that matches its checksum but cannot be decoded.
    pub(crate) fn damaged_sample(&self, split: Split, index: usize, problem: String) -> DataError {
        let (shard, position) = self.splits[split as usize].locate(index);
        shard.damaged_sample(position, problem)
    }

    /// Starts fetching a sample from disk, if that pays.
    pub fn will_need(&self, split: Split, index: usize) {
        let shards = &self.splits[split as usize];
        if shards.ask_ahead {
            let (shard, position) = shards.locate(index);
            shard.will_need(position..position + 1);
        }
    }

    /// The index of a split's shards.
    pub fn records(&self, split: Split) -> impl Iterator<Item = &Record> {
        self.splits[split as usize].shards.iter().flat_map(Shard::records)
    }

    /// Adds the first sample of each block; no block goes beyond its shard.
    pub fn blocks(&self, split: Split, starts: &mut Vec<u32>) {
        let shards = &self.splits[split as usize];
        for (shard, &first) in shards.shards.iter().zip(&shards.starts) {
            blocks::cut(first, shard.records().iter().map(|record| u64::from(record.length)), starts);
        }
    }

    /// See [`Shard::advise_random`].
    pub fn advise_random(&self, split: Split) {
        self.splits[split as usize].shards.iter().for_each(Shard::advise_random);
    }

    /// Starts fetching neighbours in one shard.
    pub fn will_need_block(&self, split: Split, samples: Range<usize>) {
        let (shard, first) = self.splits[split as usize].locate(samples.start);
        shard.will_need(first..first + samples.len());
    }

    /// Number of samples of each class.
    pub fn class_counts(&self, split: Split) -> Vec<u64> {
        let mut counts = vec![0; self.classes().len()];
        for record in self.records(split) {
            counts[record.label as usize] += 1;
        }
        counts
    }
}

/// What [`verify`] found.
#[derive(Debug, Default, Serialize)]
pub struct Verification {
    pub shards: u64,
    pub samples: u64,
    pub bytes: u64,
    /// One line for each damaged file or sample.
    pub damage: Vec<String>,
}

/// Reads every byte of a set and compares it with the checksums. Continues after damage, to list all of it.
///
/// # Errors
/// If there is no dataset, or `dataset.json` itself is damaged.
pub fn verify(dir: &Path) -> Result<Verification, DataError> {
    let manifest = Manifest::read(dir)?;
    let mut report = Verification::default();
    for split in Split::ALL {
        let entry = manifest.split(split);
        let none = entry.samples == 0 && split != Split::Test;
        if none || entry.samples != entry.shards.iter().map(|s| s.samples).sum::<u64>() {
            report.damage.push(format!("{}: wrong number of {split} samples", dir.join(MANIFEST).display()));
        }
        for listed in &entry.shards {
            report.shards += 1;
            match open_listed(dir, &manifest, split, listed) {
                Err(error) => report.damage.push(error.to_string()),
                Ok(shard) => {
                    report.bytes += shard.header().file_length;
                    report.samples += shard.samples() as u64;
                    let broken = (0..shard.samples()).filter_map(|at| shard.sample(at).err());
                    report.damage.extend(broken.map(|error| error.to_string()));
                }
            }
        }
    }
    Ok(report)
}
