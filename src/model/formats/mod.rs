//! Weights in files that other programs read and write, one file here per format.
//!
//! To add a format that is written: a file with `write(out, model: &TrainedModel) -> io::Result<()>`, as
//! [`safetensors`] has one, and a choice by the path's extension in [`export`]. To add one that is read: a function
//! like [`safetensors::import`], and the same choice in [`import`]. Flags, checks and messages stay as they are.

pub mod pth;
pub mod safetensors;
pub mod stored;

use std::io;
use std::path::{Path, PathBuf};

use super::Variant;
use super::architecture::Architecture;
use super::params::ParamTable;
use crate::files::{self, FileError};

/// What can go wrong with a file of weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: not a safetensors file, or a damaged one: {problem}", path.display())]
    Format { path: PathBuf, problem: String },
    #[error("{}: none of its {tensors} tensors ({first}, …) is this model's; timm's names are expected \
        (conv_stem.weight, …){}", path.display(), without_prefix(prefix.as_deref()))]
    NothingMatched {
        path: PathBuf,
        tensors: usize,
        /// The first name in the file.
        first: String,
        /// What precedes timm's names in the file.
        prefix: Option<String>,
    },
    #[error("{}: {tensor} is of type {dtype}; F64, F32, F16 and BF16 are read: convert the file", path.display())]
    Type { path: PathBuf, tensor: String, dtype: String },
    #[error("{}: {taken} of this model's {tensors} tensors are in it ({what}); {}--init-partial takes those",
        path.display(), member.map_or(String::new(), |member| format!("it is of {0}: --model {0}; ", member.name())))]
    Partial {
        path: PathBuf,
        taken: usize,
        tensors: usize,
        /// How many are missing, of another shape or not this model's, with an example of each.
        what: String,
        /// The member that the file is of, if it has all tensors of one.
        member: Option<Variant>,
    },
    #[error("{}: {tensor} holds a value that is not finite", path.display())]
    NotFinite { path: PathBuf, tensor: String },
    #[error("{} exists; --force replaces it", path.display())]
    Exists { path: PathBuf },
}

fn without_prefix(prefix: Option<&str>) -> String {
    prefix.map_or(String::new(), |prefix| format!("; remove `{prefix}` from the start of its names"))
}

impl From<FileError> for WeightsError {
    fn from(FileError { path, error }: FileError) -> WeightsError {
        WeightsError::Io { path, error }
    }
}

/// A model to be exported.
#[derive(Clone, Copy, Debug)]
pub struct TrainedModel<'a> {
    pub architecture: &'a Architecture,
    /// The parameter table's flat buffer: parameters and running statistics.
    pub values: &'a [f32],
    /// Steps of training.
    pub steps: u64,
}

/// Writes a model's plain weights.
///
/// # Errors
/// [`WeightsError::Exists`] without `force`; [`WeightsError::Io`], after which the file is what it was.
pub fn export(path: &Path, model: &TrainedModel, force: bool) -> Result<(), WeightsError> {
    if !force && path.exists() {
        return Err(WeightsError::Exists { path: path.to_owned() });
    }
    Ok(files::replace_with(path, |file| safetensors::write(file, model))?)
}

/// Takes the tensors that fit from a file into `values`, a flat buffer of the table's total length that holds initial
/// values.
///
/// # Errors
/// A file that cannot be read, has another format, holds a NaN or another type, or has no tensor of this model.
pub fn import(path: &Path, table: &ParamTable, values: &mut [f32]) -> Result<Import, WeightsError> {
    safetensors::import(path, table, values)
}

/// The largest member of the family whose tensors, apart from the classifier, are all in the file.
pub fn member(path: &Path) -> Option<Variant> {
    safetensors::member(path)
}

/// What an import has taken and left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Tensors taken.
    pub matched: usize,
    /// The file's class count and the model's, if they differ: then the classifier keeps its initial values.
    pub classes: Option<(usize, usize)>,
    /// Tensors of this model that the file lacks; they keep their initial values.
    pub missing: Vec<String>,
    /// Tensors of the file that this model lacks.
    pub unexpected: Vec<String>,
    /// "name: [file's shape], here [shape]"; they keep their initial values.
    pub reshaped: Vec<String>,
}

/// Names in a line; more are counted.
const NAMED: usize = 3;

/// The first names, and how many others there are.
fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl Import {
    /// Checks that the file has this model, apart from a classifier, and is not of another member: the tensors of b0 are
    /// also in b1. With half of a model, a run would start, and learn worse than from none.
    ///
    /// # Errors
    /// [`WeightsError::Partial`].
    pub fn require_whole(&self, path: &Path, table: &ParamTable, model: Variant) -> Result<(), WeightsError> {
        let missing = self.missing.iter().filter(|name| !safetensors::CLASSIFIER.contains(&name.as_str()));
        let alike = self.missing.is_empty() && self.reshaped.is_empty() && self.unexpected.is_empty();
        let other = if alike { None } else { member(path).filter(|member| *member != model) };
        let unexpected = if other.is_some() { Vec::from_iter(&self.unexpected) } else { Vec::new() };
        let kinds = [
            ("missing", missing.collect()),
            ("of another shape", Vec::from_iter(&self.reshaped)),
            ("not this model's", unexpected),
        ];
        let what: Vec<String> = (kinds.iter())
            .filter_map(|(kind, names)| Some((kind, names.first()?, names.len())))
            .map(|(kind, first, count)| format!("{count} {kind}, such as {first}"))
            .collect();
        if what.is_empty() {
            return Ok(());
        }
        Err(WeightsError::Partial {
            path: path.to_owned(),
            taken: self.matched,
            tensors: table.entries().len(),
            what: what.join("; "),
            member: other,
        })
    }

    /// One line that counts, and one for each kind of mismatch.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("weights: {} tensors taken", self.matched)];
        if let Some((theirs, ours)) = self.classes {
            lines.push(format!("weights: a new classifier for {ours} classes (the file's has {theirs})"));
        }
        let lists = [
            ("missing in the file, kept at their initial values", &self.missing),
            ("not part of this model, left out", &self.unexpected),
            ("of another shape, kept at their initial values", &self.reshaped),
        ];
        for (what, names) in lists {
            if !names.is_empty() {
                lines.push(format!("weights: {} {what}: {}", names.len(), shortened(names)));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests;
