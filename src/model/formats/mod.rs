//! Weights in files that other programs read and write, one file here per format.
//!
//! To add a format that is written: a file with `write(out, model: &TrainedModel) -> io::Result<()>`, as
//! [`safetensors`] has one, and a choice by the path's extension in [`export`]. To add one that is read: a function
//! like [`safetensors::import`], and the same choice in [`import`]. Flags, checks and messages stay as they are.

pub mod safetensors;

use std::io;
use std::path::{Path, PathBuf};

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
    #[error("{}: none of its {tensors} tensors is this model's; timm's names are expected (conv_stem.weight, …)",
        path.display())]
    NothingMatched { path: PathBuf, tensors: usize },
    #[error("{}: {tensor} holds a value that is not finite", path.display())]
    NotFinite { path: PathBuf, tensor: String },
    #[error("{} exists; --force replaces it", path.display())]
    Exists { path: PathBuf },
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
/// A file that cannot be read, has another format, holds a NaN, or has no tensor of this model.
pub fn import(path: &Path, table: &ParamTable, values: &mut [f32]) -> Result<Import, WeightsError> {
    safetensors::import(path, table, values)
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

impl Import {
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
                lines.push(format!("weights: {} {what}: {}", names.len(), names.join(", ")));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests;
