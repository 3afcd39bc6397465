//! Weights in safetensors files: what is imported from others, what is exported, and the layout of both.
//!
//! A safetensors file is the length of a header (8 bytes, little-endian), the header (JSON: names, types,
//! shapes, offsets), then the tensors' bytes. Writing is done here rather than with the crate, because the
//! parameter table's flat buffer *is* the data section: it goes out as it lies, and equal weights make equal
//! bytes. Reading other people's files is the crate's work.
//!
//! Names and shapes are timm's, `num_batches_tracked` of every batch norm included, so that PyTorch loads an
//! export with `strict=True`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use super::params::{Entry, ParamTable};
use crate::files::{self, FileError};

// The flat buffers are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Suffix of the I64 counter that every batch norm has in PyTorch.
pub const TRACKED: &str = "num_batches_tracked";
const CLASSIFIER: [&str; 2] = ["classifier.weight", "classifier.bias"];

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

/// Type of a written tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    I64,
}

/// A tensor of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub element: Element,
    pub shape: Vec<usize>,
}

impl Listed {
    pub fn bytes(&self) -> usize {
        let each = if self.element == Element::F32 { 4 } else { 8 };
        self.shape.iter().product::<usize>() * each
    }
}

/// The tensors of a model in the order they are written: the counters first, because they need the widest
/// alignment, then the parameter table.
pub fn listing(table: &ParamTable) -> Vec<Listed> {
    let counter = |bn: &str| Listed { name: format!("{bn}.{TRACKED}"), element: Element::I64, shape: vec![] };
    let counters = table.batch_norms().map(counter);
    counters.chain(table.entries().iter().map(|entry| prefixed("", entry))).collect()
}

/// An fp32 tensor of the table under a prefix.
pub fn prefixed(prefix: &str, entry: &Entry) -> Listed {
    let (name, shape) = (format!("{prefix}{}", entry.name), entry.shape.clone());
    Listed { name, element: Element::F32, shape }
}

/// The header, its length in front, padded to a multiple of 8 bytes. `metadata` is one key and its text: the
/// order of several is not defined.
pub fn header(metadata: (&str, &str), tensors: &[Listed]) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut json = format!("{{\"__metadata__\":{{{}:{}}}", quoted(metadata.0), quoted(metadata.1));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let kind = if tensor.element == Element::F32 { "F32" } else { "I64" };
        let name = quoted(&tensor.name);
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let place = format!("\"shape\":[{shape}],\"data_offsets\":[{start},{end}]");
        // Writing to a string does not fail.
        let _ = write!(json, ",{name}:{{\"dtype\":\"{kind}\",{place}}}");
        start = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.into_bytes());
    bytes
}

/// Writes the plain weights (`values` has the table's total length) and `steps` as the counters' value.
///
/// # Errors
/// [`WeightsError::Exists`] without `force`; [`WeightsError::Io`], after which the file is what it was.
pub fn export(
    path: &Path,
    table: &ParamTable,
    values: &[f32],
    steps: u64,
    force: bool,
) -> Result<(), WeightsError> {
    if !force && path.exists() {
        return Err(WeightsError::Exists { path: path.to_owned() });
    }
    let counters = vec![steps as i64; table.batch_norms().count()];
    files::replace_with(path, |file| {
        file.write_all(&header(("format", "pt"), &listing(table)))?;
        file.write_all(bytemuck::cast_slice(&counters))?;
        file.write_all(bytemuck::cast_slice(values))
    })?;
    Ok(())
}

/// What came of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Tensors taken.
    pub matched: usize,
    /// The classifier kept its initial values: the class counts differ.
    pub classes: Option<(usize, usize)>,
    /// Tensors of this model that the file lacks; they keep their initial values.
    pub missing: Vec<String>,
    /// Tensors of the file that this model lacks.
    pub unexpected: Vec<String>,
    /// "name: [file's shape], here [shape]"; they keep their initial values.
    pub reshaped: Vec<String>,
}

impl Import {
    /// One line for each thing that did not match, and one that counts.
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

/// Takes what fits from a safetensors file into `values`, a flat buffer of the table's total length that holds
/// initial values. F16 and BF16 tensors are converted. A checkpoint of this program is such a file too: its
/// raw weights are taken.
///
/// # Errors
/// A file that cannot be read, is no safetensors file, holds a NaN, or has nothing of this model.
pub fn import(path: &Path, table: &ParamTable, values: &mut [f32]) -> Result<Import, WeightsError> {
    let bytes = fs::read(path).map_err(|error| WeightsError::Io { path: path.to_owned(), error })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| WeightsError::Format { path: path.to_owned(), problem: error.to_string() })?;
    let mut import = Import::default();
    let mut left: BTreeSet<&str> = file.names().into_iter().collect();
    let tensors = left.len();
    for entry in table.entries() {
        let Ok(tensor) = file.tensor(&entry.name) else {
            import.missing.push(entry.name.clone());
            continue;
        };
        left.remove(entry.name.as_str());
        let convert = match tensor.dtype() {
            Dtype::F32 => from_f32,
            Dtype::F16 => from_f16,
            Dtype::BF16 => from_bf16,
            other => {
                import.reshaped.push(format!("{}: {other:?}, here F32", entry.name));
                continue;
            }
        };
        if tensor.shape() != entry.shape {
            note_shape(&mut import, entry, tensor.shape());
            continue;
        }
        let out = &mut values[entry.range()];
        convert(tensor.data(), out);
        if !out.iter().all(|v| v.is_finite()) {
            return Err(WeightsError::NotFinite { path: path.to_owned(), tensor: entry.name.clone() });
        }
        import.matched += 1;
    }
    let ours = |name: &&str| {
        name.ends_with(TRACKED) || ["ema.", "optimizer."].iter().any(|prefix| name.starts_with(prefix))
    };
    import.unexpected = left.into_iter().filter(|name| !ours(name)).map(str::to_string).collect();
    if import.matched == 0 {
        return Err(WeightsError::NothingMatched { path: path.to_owned(), tensors });
    }
    Ok(import)
}

/// A classifier for other classes is expected; any other shape is worth a line.
fn note_shape(import: &mut Import, entry: &Entry, theirs: &[usize]) {
    let other_classes = CLASSIFIER.contains(&entry.name.as_str())
        && theirs.len() == entry.shape.len()
        && theirs[1..] == entry.shape[1..];
    if other_classes {
        import.classes = Some((theirs[0], entry.shape[0]));
    } else {
        import.reshaped.push(format!("{}: {theirs:?}, here {:?}", entry.name, entry.shape));
    }
}

fn from_f32(bytes: &[u8], out: &mut [f32]) {
    for (value, four) in out.iter_mut().zip(bytes.chunks_exact(4)) {
        *value = f32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    }
}

fn from_bf16(bytes: &[u8], out: &mut [f32]) {
    for (value, two) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = f32::from_le_bytes([0, 0, two[0], two[1]]);
    }
}

fn from_f16(bytes: &[u8], out: &mut [f32]) {
    for (value, two) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *value = f16_to_f32(u16::from_le_bytes([two[0], two[1]]));
    }
}

/// IEEE half precision; every half is exact in single precision.
fn f16_to_f32(half: u16) -> f32 {
    let sign = if half >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(half >> 10 & 31), f32::from(half & 1023));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
