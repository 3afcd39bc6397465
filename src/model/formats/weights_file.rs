//! A file of weights, whoever wrote it: read whole, and its names recognised.
//!
//! The container is told by its first bytes: a zip archive is PyTorch's ([`pth`](super::pth)), all else must be safetensors.
//! The names of its tensors are then compared with those of every [`Naming`], whatever precedes them (`module.`,
//! `_orig_mod.`, `state_dict.` …): the naming and the prefix with the most names of the family win. A file may hold several
//! copies of a network, under several prefixes. A copy whose prefix has a word such as `ema` is a moving average; what
//! belongs to an optimiser is no copy.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoEnumIterator, VariantNames};

use super::convention::Note;
use super::naming::Naming;
use super::stored::{Tensor, Tensors};
use super::{WeightsError, safetensors};
use crate::model::architecture::Architecture;
use crate::model::family::Variant;
use crate::model::params::ParamTable;
use crate::model::{BatchNormConfig, Padding};
use crate::names;

/// Which copy of the network is meant, where a file has two.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = Average::unknown)]
pub enum Average {
    /// The weights themselves.
    #[default]
    Raw,
    /// Their moving average.
    Ema,
}

impl Average {
    fn unknown(name: &str) -> String {
        names::unknown::<Average>("kind of weights", name)
    }

    pub fn is_raw(&self) -> bool {
        *self == Average::Raw
    }
}

/// A copy of a network in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedCopy {
    pub naming: Naming,
    /// What precedes the names, with its last dot; or nothing.
    pub prefix: String,
    /// How many names of the family are under it.
    names: usize,
}

impl NamedCopy {
    /// Whether it is a moving average.
    fn averaged(&self) -> bool {
        let mut words = self.prefix.split(['.', '_']);
        words.any(|word| ["ema", "averaged", "average", "swa"].contains(&word))
    }

    /// "timm's names" or "torchvision's names under `module.`".
    pub fn description(&self) -> String {
        let under = if self.prefix.is_empty() { String::new() } else { format!(" under `{}`", self.prefix) };
        format!("{}'s names{under}", self.naming)
    }
}

/// The tensors of a file, with its copies of a network.
#[derive(Clone, Debug)]
pub struct WeightsFile {
    pub path: PathBuf,
    tensors: Tensors,
    raw: Option<NamedCopy>,
    ema: Option<NamedCopy>,
    note: Option<Note>,
}

impl WeightsFile {
    /// Reads a file and recognises its names.
    ///
    /// # Errors
    /// [`WeightsError::Io`], [`WeightsError::Format`] and [`WeightsError::Pth`]. Names that nobody knows are an error only of
    /// [`WeightsFile::copy`].
    pub fn read(path: &Path) -> Result<WeightsFile, WeightsError> {
        let failed = |error| WeightsError::Io { path: path.to_owned(), error };
        let mut file = BufReader::new(File::open(path).map_err(failed)?);
        let mut start = Vec::new();
        file.by_ref().take(64).read_to_end(&mut start).map_err(failed)?;
        file.rewind().map_err(failed)?;
        if super::pth::is_pth(&start) {
            let length = fs::metadata(path).map_err(failed)?.len();
            let tensors = super::pth::read(&mut file, length)
                .map_err(|error| WeightsError::Pth { path: path.to_owned(), error })?;
            return Ok(WeightsFile::of(path, tensors));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let read = safetensors::read(&bytes);
        let (tensors, metadata) =
            read.map_err(|problem| WeightsError::Format { path: path.to_owned(), problem })?;
        let note = metadata.get(Note::KEY).map(|text| Note::parse(text)).transpose();
        let note = note.map_err(|problem| WeightsError::Note { path: path.to_owned(), problem })?;
        Ok(WeightsFile { note, ..WeightsFile::of(path, tensors) })
    }

    /// Recognises the names of tensors.
    pub fn of(path: &Path, tensors: Tensors) -> WeightsFile {
        let tensors: Tensors = tensors.into_iter().map(|(name, tensor)| (plain(&name), tensor)).collect();
        let copies = copies(&tensors);
        let first = |averaged| copies.iter().find(|copy| copy.averaged() == averaged).cloned();
        WeightsFile { path: path.to_owned(), tensors, raw: first(false), ema: first(true), note: None }
    }

    /// The copy that is meant. A file with an average alone has that as its weights.
    ///
    /// # Errors
    /// [`WeightsError::NothingMatched`] or [`WeightsError::NoAverage`].
    pub fn copy(&self, average: Average) -> Result<&NamedCopy, WeightsError> {
        let path = || self.path.clone();
        let nothing = || WeightsError::NothingMatched {
            path: path(),
            tensors: self.tensors.len(),
            first: self.tensors.keys().next().cloned().unwrap_or_default(),
        };
        match average {
            Average::Raw => self.raw.as_ref().or(self.ema.as_ref()).ok_or_else(nothing),
            Average::Ema if self.raw.is_none() && self.ema.is_none() => Err(nothing()),
            Average::Ema => self.ema.as_ref().ok_or_else(|| WeightsError::NoAverage { path: path() }),
        }
    }

    /// What the file says of itself, if it was written here.
    pub fn note(&self) -> Option<Note> {
        self.note.clone()
    }

    /// Whether the file has an average beside the weights.
    pub fn has_both(&self) -> bool {
        self.raw.is_some() && self.ema.is_some()
    }

    /// A tensor of a copy by the name that its naming gives.
    pub fn tensor(&self, copy: &NamedCopy, name: &str) -> Option<&Tensor> {
        self.tensors.get(&format!("{}{name}", copy.prefix))
    }

    /// The names of a copy, without its prefix. Those of other copies, and what has another prefix, are left out.
    pub fn names(&self, copy: &NamedCopy) -> impl Iterator<Item = &str> {
        let others: Vec<&str> = [&self.raw, &self.ema]
            .into_iter()
            .flatten()
            .map(|other| other.prefix.as_str())
            .filter(|prefix| prefix.len() > copy.prefix.len())
            .collect();
        let own = move |name: &&str| !others.iter().any(|other| name.starts_with(other));
        let names = self.tensors.keys().map(String::as_str).filter(own);
        names.filter_map(|name| name.strip_prefix(copy.prefix.as_str())).filter(|name| !of_optimiser(name))
    }

    /// How many classes a copy's classifier has.
    pub fn classes(&self, copy: &NamedCopy) -> Option<usize> {
        let net =
            Architecture::new(Variant::B0, 2, 32, Padding::Symmetric, BatchNormConfig::default()).ok()?;
        let name = copy.naming.translation(&net).remove("classifier.bias")?;
        self.tensor(copy, &name)?.shape.first().copied()
    }

    /// The largest member of the family whose tensors, apart from the classifier, are all in a copy.
    pub fn member(&self, copy: &NamedCopy) -> Option<Variant> {
        // The shapes depend on the member alone.
        let whole = |variant: &Variant| {
            let side = variant.scaling().resolution;
            let net =
                Architecture::new(*variant, 2, side, Padding::Symmetric, BatchNormConfig::default()).ok()?;
            let names = copy.naming.translation(&net);
            let table = ParamTable::new(&net);
            let mut body =
                table.entries().iter().filter(|entry| !safetensors::CLASSIFIER.contains(&&*entry.name));
            let has = body.all(|entry| {
                let tensor = names.get(&entry.name).and_then(|name| self.tensor(copy, name));
                let axes = copy.naming.axes(entry).into_iter().map(|axis| entry.shape[axis]);
                tensor.is_some_and(|tensor| axes.eq(tensor.shape.iter().copied()))
            });
            Some(has)
        };
        Variant::ALL.into_iter().rev().find(|variant| whole(variant) == Some(true))
    }
}

/// A name with dots; without TensorFlow's `:0`, and in the words of Keras 3.
fn plain(name: &str) -> String {
    name.strip_suffix(":0").unwrap_or(name).replace('/', ".").replace(".depthwise_kernel", ".kernel")
}

/// Whether a name or prefix belongs to an optimiser's state.
fn of_optimiser(name: &str) -> bool {
    name.split('.').any(|word| word.starts_with("optim"))
}

/// All copies of a network under the naming that fits best: most names first, then the shortest prefix. Such as have less
/// than half the names of the first are no copies: every `bn1.weight` of a block looks like that of the stem.
fn copies(tensors: &Tensors) -> Vec<NamedCopy> {
    let mut copies: Vec<NamedCopy> = Naming::iter().flat_map(|naming| under(tensors, naming)).collect();
    copies.sort_by_key(|copy| (usize::MAX - copy.names, copy.prefix.len()));
    let Some(best) = copies.first().cloned() else { return copies };
    copies.retain(|copy| copy.naming == best.naming && 2 * copy.names >= best.names);
    copies
}

/// The prefixes before names of one naming.
fn under(tensors: &Tensors, naming: Naming) -> Vec<NamedCopy> {
    let known: HashSet<String> = naming.known();
    let mut prefixes: BTreeMap<&str, usize> = BTreeMap::new();
    for name in tensors.keys() {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        for start in starts.filter(|start| known.contains(&name[*start..])) {
            *prefixes.entry(&name[..start]).or_default() += 1;
        }
    }
    let copies = prefixes.into_iter().filter(|(prefix, _)| !of_optimiser(prefix));
    copies.map(|(prefix, names)| NamedCopy { naming, prefix: prefix.into(), names }).collect()
}
