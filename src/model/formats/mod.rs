//! Weights in files that other programs read and write.
//!
//! A file is read in three steps, each of which knows nothing of the others:
//!
//! 1. the container, [`safetensors`] or [`pth`], gives tensors by name ([`stored`]);
//! 2. [`weights_file`] recognises whose names they are, with the translations of [`naming`];
//! 3. [`import`](mod@import) takes what fits into a model and lists the rest.
//!
//! To add a container: a function that gives [`stored::Tensors`], and a choice by the first bytes in
//! [`WeightsFile::read`](weights_file::WeightsFile::read). To add other names: a variant of [`naming::Naming`]. To add a
//! format that is written: a function like [`safetensors::write`], and a choice by the path's ending in [`export`].

pub mod convention;
pub mod import;
pub mod naming;
pub mod onnx;
pub mod pth;
pub mod safetensors;
pub mod stored;
pub mod weights_file;

use std::io;
use std::path::{Path, PathBuf};

use super::Variant;
use super::architecture::Architecture;
use crate::files::{self, FileError};
use convention::{Note, Scale};
use naming::Naming;

/// What can go wrong with a file of weights.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: not a safetensors file, or a damaged one: {problem}", path.display())]
    Format { path: PathBuf, problem: String },
    #[error("{}: {error}", path.display())]
    Pth { path: PathBuf, error: pth::PthError },
    #[error("{}: none of its {tensors} tensors ({first}, …) is named as one of an EfficientNet; the names of timm \
        (conv_stem.weight, …), torchvision, lukemelas and Keras are known", path.display())]
    NothingMatched {
        path: PathBuf,
        tensors: usize,
        /// The first name in the file.
        first: String,
    },
    #[error("{}: the note of the network in it cannot be used: {problem}", path.display())]
    Note { path: PathBuf, problem: String },
    #[error("{}: it holds no whole network of the family with its classifier", path.display())]
    NoMember { path: PathBuf },
    #[error("{}: it holds no moving average of the weights beside them", path.display())]
    NoAverage { path: PathBuf },
    #[error("{}: {tensor} takes images of {channels} channels; networks here take three (red, green, blue): repeat, \
        sum or cut its weights along the channels", path.display())]
    Channels { path: PathBuf, tensor: String, channels: usize },
    #[error("{}: {tensor} holds a negative variance", path.display())]
    Variance { path: PathBuf, tensor: String },
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
    /// Names of the classes, in the order of the logits.
    pub classes: &'a [String],
    /// How the bytes of an image become numbers.
    pub scale: Scale,
    /// How images become square: the name of the crop mode.
    pub crop: &'a str,
}

impl TrainedModel<'_> {
    fn note(&self) -> Note {
        let Architecture { variant, resolution, padding, batch_norm, .. } = *self.architecture;
        Note {
            model: variant,
            resolution,
            padding,
            batch_norm_eps: batch_norm.eps,
            crop: self.crop.into(),
            scale: self.scale,
            classes: self.classes.to_vec(),
        }
    }
}

/// A format that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain weights under the names of others; [`Naming::Keras`], which has another order of axes, is only read.
    Safetensors(Naming),
    /// A network that runs as it stands.
    Onnx(onnx::Input),
}

/// Writes a model.
///
/// # Errors
/// [`WeightsError::Exists`] without `force`; [`WeightsError::Io`], after which the file is what it was.
pub fn export(path: &Path, model: &TrainedModel, format: Format, force: bool) -> Result<(), WeightsError> {
    if !force && path.exists() {
        return Err(WeightsError::Exists { path: path.to_owned() });
    }
    let written = files::replace_with(path, |file| match format {
        Format::Safetensors(naming) => safetensors::write(file, model, naming),
        Format::Onnx(input) => onnx::write(file, model, input),
    });
    Ok(written?)
}

#[cfg(test)]
mod tests;
