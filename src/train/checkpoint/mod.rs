//! Checkpoints: the whole state of a run in one safetensors file.
//!
//! The file holds the model under timm's names, the moving average under `ema.`, the optimiser's slots under `optimizer.`
//! and the slot's name (`optimizer.momentum.`), and one metadata key, `effnet`: [`Metadata`] as JSON with
//! sorted keys. Equal runs write equal files, so the file contains nothing that may differ between equal runs: no time,
//! no thread count, no path.
//!
//! Reading accepts a file only exactly as it was written. The header is rendered again from the parsed metadata and
//! compared byte for byte, which checks names, types, shapes and order; a checksum over header and data covers the
//! rest. A change of any single byte is therefore an error and never gives wrong weights.

mod exported;
mod files;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use files::{DirectoryError, Found, RunDirectory};

use super::recipe::Recipe;
use super::report::events::Best;
use crate::data::{CropMode, Normalise};
use crate::model::formats::safetensors::{Listed, header, listing, prefixed};
use crate::model::{Architecture, BatchNormConfig, Padding, ParamTable, Variant};
use crate::ops::{LossScale, Slot};

const FORMAT: &str = "effnet checkpoint";
const KEY: &str = "effnet";
/// Increased when an older program could misread the file.
pub const VERSION: u64 = 1;
/// Stands in the checksum's place while the checksum is computed.
const NO_CHECKSUM: &str = "00000000";
/// The longest header accepted; B7's header is a third of a megabyte.
const HEADER_LIMIT: u64 = 64 << 20;

/// Describes a checkpoint. Written with sorted keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Metadata {
    pub format: String,
    pub version: u64,
    pub model: Variant,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    pub resolution: usize,
    pub padding: Padding,
    pub batch_norm: BatchNormConfig,
    pub crop: CropMode,
    pub normalise: Normalise,
    pub recipe: Recipe,
    /// Optimiser steps done, and steps of the whole schedule.
    pub step: u64,
    pub steps: u64,
    /// Epochs done.
    pub epoch: f64,
    pub seed: u64,
    /// Fingerprint of the dataset.
    pub data: String,
    /// Step of the last evaluation; 0 before the first. An evaluation that is due is missing only if the run was
    /// interrupted during it.
    pub evaluated: u64,
    pub best: Option<Best>,
    /// State of loss scaling, if the run has trained in fp16 on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// CRC-32 of the header with this field zero, and of the data.
    pub checksum: String,
}

impl Metadata {
    /// The metadata of a run before its first step.
    pub fn new(
        recipe: &Recipe,
        classes: Vec<String>,
        normalise: Normalise,
        data: String,
        steps: u64,
    ) -> Self {
        Metadata {
            format: FORMAT.into(),
            version: VERSION,
            model: recipe.model,
            classes,
            resolution: recipe.resolution,
            padding: recipe.padding,
            batch_norm: BatchNormConfig { momentum: recipe.bn_momentum, eps: recipe.bn_eps },
            crop: recipe.crop,
            normalise,
            recipe: recipe.clone(),
            step: 0,
            steps,
            epoch: 0.0,
            seed: recipe.seed,
            data,
            evaluated: 0,
            best: None,
            loss_scale: None,
            checksum: NO_CHECKSUM.into(),
        }
    }

    /// The network that the weights belong to; none if the fields contradict each other.
    pub fn architecture(&self) -> Option<Architecture> {
        let again =
            Metadata::new(&self.recipe, self.classes.clone(), self.normalise, self.data.clone(), self.steps);
        let Metadata { step, epoch, evaluated, best, loss_scale, checksum, .. } = self.clone();
        let sane = self.recipe.validate().is_ok();
        (sane && *self == Metadata { step, epoch, evaluated, best, loss_scale, checksum, ..again })
            .then(|| self.recipe.architecture(self.classes.len()).ok())
            .flatten()
    }

    fn json(&self) -> String {
        // Converted to a value first, because its objects are sorted.
        serde_json::to_value(self).map(|value| value.to_string()).unwrap_or_default()
    }
}

/// The tensors of a run, as flat buffers in the parameter table's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Of the table's total length.
    pub parameters: Vec<f32>,
    /// Of the total length, or empty if the run keeps no moving average.
    pub ema: Vec<f32>,
    /// The optimiser's.
    pub slots: Vec<SlotValues>,
}

/// One of the optimiser's slots for all trainable parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotValues {
    /// The name of the [`Slot`].
    pub name: &'static str,
    pub values: Vec<f32>,
}

impl Snapshot {
    /// Zeroed weights, and the slots of the recipe's optimiser as they are before the first step.
    pub fn new(table: &ParamTable, recipe: &Recipe) -> Snapshot {
        Snapshot::with_slots(table, recipe, recipe.update().rule.slots())
    }

    fn with_slots(table: &ParamTable, recipe: &Recipe, slots: &[Slot]) -> Snapshot {
        let slot =
            |slot: &Slot| SlotValues { name: slot.name, values: vec![slot.initial; table.trainable()] };
        Snapshot {
            parameters: vec![0.0; table.total()],
            ema: vec![0.0; if recipe.ema > 0.0 { table.total() } else { 0 }],
            slots: slots.iter().map(slot).collect(),
        }
    }

    /// Prefixes of the names and values, in the file's order.
    fn sections(&self) -> impl Iterator<Item = (String, &Vec<f32>)> {
        let weights = [(String::new(), &self.parameters), ("ema.".to_string(), &self.ema)];
        weights.into_iter().chain(self.slots.iter().map(|slot| (prefix(slot.name), &slot.values)))
    }

    fn sections_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        let slots = self.slots.iter_mut().map(|slot| &mut slot.values);
        [&mut self.parameters, &mut self.ema].into_iter().chain(slots)
    }

    /// The first tensor with a value that is not finite.
    pub fn first_not_finite(&self, table: &ParamTable) -> Option<String> {
        self.sections().find_map(|(prefix, values)| {
            first_not_finite(values, table).map(|name| format!("{prefix}{name}"))
        })
    }
}

/// What precedes the names of a slot's tensors.
fn prefix(slot: &str) -> String {
    format!("optimizer.{slot}.")
}

/// The first tensor of a flat buffer (of the total or the trainable length) that contains a value that is not finite.
pub fn first_not_finite<'a>(values: &[f32], table: &'a ParamTable) -> Option<&'a str> {
    if values.iter().all(|v| v.is_finite()) {
        return None;
    }
    let entries = table.entries().iter().filter(|entry| entry.range().end <= values.len());
    let mut bad = entries.filter(|entry| !values[entry.range()].iter().all(|v| v.is_finite()));
    bad.next().map(|entry| entry.name.as_str())
}

/// A checkpoint read from a file.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub metadata: Metadata,
    pub architecture: Architecture,
    pub state: Snapshot,
}

/// Errors of reading and saving checkpoints. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{}: a folder without best.bin or checkpoint.bin; give a run's folder or a checkpoint", path.display())]
    Folder { path: PathBuf },
    #[error("{}: truncated: {problem}; go on from another checkpoint of the run", path.display())]
    Truncated { path: PathBuf, problem: String },
    #[error("{}: damaged: {problem}; go on from another checkpoint of the run", path.display())]
    Altered { path: PathBuf, problem: String },
    #[error("{}: not an effnet checkpoint: {problem}", path.display())]
    Foreign { path: PathBuf, problem: &'static str },
    #[error("{}: written by a newer effnet (format {version}; this one reads up to {VERSION}): update effnet",
        path.display())]
    Newer { path: PathBuf, version: u64 },
    #[error("cannot save {}: {error}; {}", path.display(), remedy(*intact))]
    Write { path: PathBuf, error: io::Error, intact: bool },
}

fn remedy(intact: bool) -> &'static str {
    if intact {
        "the previous checkpoint is intact: make room, then go on with --resume"
    } else {
        "no checkpoint was written"
    }
}

/// The slots in every checkpoint from before each optimiser had slots of its own. Those that the recipe's optimiser does
/// not have are dropped when such a file is read.
const EARLIER_SLOTS: &[Slot] =
    &[Slot { name: "mean_square", initial: 0.0 }, Slot { name: "momentum", initial: 0.0 }];

/// All tensors of a file, in order.
fn tensors(table: &ParamTable, ema: bool, slots: &[&str]) -> Vec<Listed> {
    let mut list = listing(table);
    let trainable = || table.entries().iter().filter(|entry| entry.role.trainable());
    if ema {
        list.extend(table.entries().iter().map(|entry| prefixed("ema.", entry)));
    }
    for slot in slots {
        list.extend(trainable().map(|entry| prefixed(&prefix(slot), entry)));
    }
    list
}

/// The header with the given checksum.
fn render(metadata: &Metadata, checksum: &str, list: &[Listed]) -> Vec<u8> {
    let metadata = Metadata { checksum: checksum.into(), ..metadata.clone() };
    header(&[(KEY, &metadata.json())], list)
}

/// Writes a checkpoint as a stream. Nothing is copied; a first pass over the buffers computes the checksum.
///
/// # Errors
/// The writer's.
pub fn write(
    out: &mut impl Write,
    metadata: &Metadata,
    table: &ParamTable,
    state: &Snapshot,
) -> io::Result<()> {
    let slots: Vec<&str> = state.slots.iter().map(|slot| slot.name).collect();
    let list = tensors(table, !state.ema.is_empty(), &slots);
    let counters = vec![metadata.step as i64; table.batch_norms().count()];
    let mut crc = crc32fast::Hasher::new();
    crc.update(&render(metadata, NO_CHECKSUM, &list));
    crc.update(bytemuck::cast_slice(&counters));
    for (_, section) in state.sections() {
        crc.update(bytemuck::cast_slice(section));
    }
    out.write_all(&render(metadata, &format!("{:08x}", crc.finalize()), &list))?;
    out.write_all(bytemuck::cast_slice(&counters))?;
    for (_, section) in state.sections() {
        out.write_all(bytemuck::cast_slice(section))?;
    }
    out.flush()
}

/// Reads and checks a checkpoint.
///
/// # Errors
/// [`CheckpointError`], which names the file and the problem.
pub fn read(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let (mut file, length) = open(path)?;
    read_from(&mut file, length, path)
}

/// Checks a checkpoint as [`read`] does, but returns only its metadata.
pub fn verify(path: &Path) -> Result<Metadata, CheckpointError> {
    let (mut file, length) = open(path)?;
    verify_from(&mut file, length, path)
}

/// Whether a file begins like a checkpoint, sound or not.
pub fn is_checkpoint(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut start));
    read.is_ok() && start.get(8..).is_some_and(|json| json.starts_with(b"{\"__metadata__\":{\"effnet\":"))
}

/// The checkpoint that a path means: in a run's folder its best one, otherwise its latest one.
///
/// # Errors
/// A folder without either.
pub fn of(path: &Path) -> Result<PathBuf, CheckpointError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let run = RunDirectory::at(path);
    let found = [run.best(), run.checkpoint()].into_iter().find(|file| file.exists());
    found.ok_or(CheckpointError::Folder { path: path.to_owned() })
}

fn open(path: &Path) -> Result<(File, u64), CheckpointError> {
    let failed = |error| CheckpointError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    Ok((file, length))
}

/// [`read`] from any stream of `length` bytes; `path` is for the messages.
pub fn read_from(input: &mut impl Read, length: u64, path: &Path) -> Result<Checkpoint, CheckpointError> {
    let mut reader = Reader::new(input, length, path)?;
    let table = ParamTable::new(&reader.architecture);
    let mut counters = vec![0i64; table.batch_norms().count()];
    let mut state = Snapshot::with_slots(&table, &reader.metadata.recipe, reader.slots);
    reader.fill(bytemuck::cast_slice_mut(&mut counters))?;
    for section in state.sections_mut() {
        reader.fill(bytemuck::cast_slice_mut(section))?;
    }
    let (metadata, architecture) = reader.finish()?;
    let slots = metadata.recipe.update().rule.slots();
    state.slots.retain(|values| slots.iter().any(|slot| slot.name == values.name));
    Ok(Checkpoint { metadata, architecture, state })
}

/// [`verify`] from any stream.
pub fn verify_from(input: &mut impl Read, length: u64, path: &Path) -> Result<Metadata, CheckpointError> {
    let mut reader = Reader::new(input, length, path)?;
    let mut buffer = vec![0; 1 << 18];
    while reader.left > 0 {
        let count = buffer.len().min(reader.left);
        reader.fill(&mut buffer[..count])?;
    }
    Ok(reader.finish()?.0)
}

/// Reads the data of a file whose header has been checked.
struct Reader<'a, R: Read> {
    input: &'a mut R,
    path: &'a Path,
    metadata: Metadata,
    architecture: Architecture,
    /// The slots in the file.
    slots: &'static [Slot],
    crc: crc32fast::Hasher,
    /// Bytes of data not yet read.
    left: usize,
}

impl<'a, R: Read> Reader<'a, R> {
    fn new(input: &'a mut R, length: u64, path: &'a Path) -> Result<Self, CheckpointError> {
        let altered =
            |problem: &str| CheckpointError::Altered { path: path.to_owned(), problem: problem.into() };
        let found = read_header(input, length, path)?;
        let metadata = parse(&found[8..], path)?;
        let architecture =
            metadata.architecture().ok_or_else(|| altered("its metadata contradicts itself"))?;
        let table = ParamTable::new(&architecture);
        let listed = |slots: &[Slot]| {
            let names: Vec<&str> = slots.iter().map(|slot| slot.name).collect();
            tensors(&table, metadata.recipe.ema > 0.0, &names)
        };
        let written =
            |slots: &&'static [Slot]| render(&metadata, &metadata.checksum, &listed(slots)) == found;
        let slots = [metadata.recipe.update().rule.slots(), EARLIER_SLOTS].into_iter().find(written);
        let slots = slots.ok_or_else(|| altered("its header is not as it was written"))?;
        let list = listed(slots);
        let left: usize = list.iter().map(Listed::bytes).sum();
        let expected = (found.len() + left) as u64;
        if length < expected {
            let problem = format!("{length} of {expected} bytes");
            return Err(CheckpointError::Truncated { path: path.to_owned(), problem });
        }
        if length > expected {
            return Err(altered("bytes follow its end"));
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&render(&metadata, NO_CHECKSUM, &list));
        Ok(Reader { input, path, metadata, architecture, slots, crc, left })
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        let failed = |error| CheckpointError::Read { path: self.path.to_owned(), error };
        self.input.read_exact(bytes).map_err(failed)?;
        self.crc.update(bytes);
        self.left -= bytes.len();
        Ok(())
    }

    fn finish(self) -> Result<(Metadata, Architecture), CheckpointError> {
        if format!("{:08x}", self.crc.finalize()) != self.metadata.checksum {
            let (path, problem) = (self.path.to_owned(), "its checksum differs".into());
            return Err(CheckpointError::Altered { path, problem });
        }
        Ok((self.metadata, self.architecture))
    }
}

/// The length at the start of the file and the JSON after it.
fn read_header(input: &mut impl Read, length: u64, path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let failed = |error| CheckpointError::Read { path: path.to_owned(), error };
    let truncated =
        |problem: &str| CheckpointError::Truncated { path: path.to_owned(), problem: problem.into() };
    let foreign = |problem| CheckpointError::Foreign { path: path.to_owned(), problem };
    if length < 10 {
        return Err(truncated(&format!("{length} bytes are no header")));
    }
    let mut found = vec![0; 9];
    input.read_exact(&mut found).map_err(failed)?;
    let announced = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i: usize| found[i]));
    if found[8] != b'{' || !(2..=HEADER_LIMIT).contains(&announced) {
        return Err(foreign("it does not begin like a safetensors file"));
    }
    if announced > length - 8 {
        return Err(truncated("it ends within its header"));
    }
    found.resize(8 + announced as usize, 0);
    input.read_exact(&mut found[9..]).map_err(failed)?;
    Ok(found)
}

/// The metadata in a header's JSON.
fn parse(json: &[u8], path: &Path) -> Result<Metadata, CheckpointError> {
    let altered = |problem: String| CheckpointError::Altered { path: path.to_owned(), problem };
    let value: serde_json::Value =
        serde_json::from_slice(json).map_err(|e| altered(format!("its header is no JSON: {e}")))?;
    let text = value.get("__metadata__").and_then(|m| m.get(KEY)).and_then(|t| t.as_str());
    let problem = "a safetensors file without effnet's metadata; plain weights go to --init-from";
    let text = text.ok_or(CheckpointError::Foreign { path: path.to_owned(), problem })?;
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|e| altered(format!("its metadata is no JSON: {e}")))?;
    match value.get("version").and_then(serde_json::Value::as_u64) {
        Some(version) if version > VERSION => {
            return Err(CheckpointError::Newer { path: path.to_owned(), version });
        }
        _ => {}
    }
    serde_json::from_value(value).map_err(|e| altered(format!("its metadata: {e}")))
}
