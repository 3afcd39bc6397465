//! Safetensors: the format of exports, of imports and of checkpoints.
//!
//! A file is the length of a header (8 bytes, little-endian), the header (JSON: names, types, shapes, offsets), then
//! the tensors' bytes. It is written here rather than with the crate, because the parameter table's flat buffer *is*
//! the data section: it is written as it lies in memory, and equal weights make equal bytes. Other programs' files are
//! read with the crate.
//!
//! Names and shapes are timm's, including `num_batches_tracked` of every batch norm, so that PyTorch loads an export
//! with `strict=True`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use half::{bf16, f16};

use super::{Import, TrainedModel, WeightsError};
use crate::model::params::{Entry, ParamTable};
use crate::model::{Architecture, BatchNormConfig, Padding, Variant};

// The flat buffers are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Suffix of the I64 counter that every batch norm has in PyTorch.
const TRACKED: &str = "num_batches_tracked";
pub const CLASSIFIER: [&str; 2] = ["classifier.weight", "classifier.bias"];

/// Type of a written tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    I64,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::I64 => 8,
        }
    }
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
        self.shape.iter().product::<usize>() * self.element.bytes()
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
    Listed { name: format!("{prefix}{}", entry.name), element: Element::F32, shape: entry.shape.clone() }
}

/// The header with its length in front, padded to a multiple of 8 bytes. `metadata` is one key and its text: readers
/// do not keep the order of several.
pub fn header(metadata: (&str, &str), tensors: &[Listed]) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut json = format!("{{\"__metadata__\":{{{}:{}}}", quoted(metadata.0), quoted(metadata.1));
    let mut start = 0;
    for tensor in tensors {
        let Listed { name, element, shape } = tensor;
        let end = start + tensor.bytes();
        let name = quoted(name);
        let shape = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let place = format!("\"shape\":[{shape}],\"data_offsets\":[{start},{end}]");
        // Writing to a string does not fail.
        let _ = write!(json, ",{name}:{{\"dtype\":\"{element:?}\",{place}}}");
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

/// Writes a model's weights, and its steps as the value of every counter.
pub fn write(out: &mut impl Write, model: &TrainedModel) -> io::Result<()> {
    let table = ParamTable::new(model.architecture);
    let counters = vec![model.steps as i64; table.batch_norms().count()];
    out.write_all(&header(("format", "pt"), &listing(&table)))?;
    out.write_all(bytemuck::cast_slice(&counters))?;
    out.write_all(bytemuck::cast_slice(model.values))
}

/// See [`super::import`]. F64, F16 and BF16 tensors are converted. A checkpoint of this program is such a file too: its raw
/// weights are taken.
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
        let out = &mut values[entry.range()];
        let dtype = tensor.dtype();
        if !matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let (path, tensor, dtype) = (path.to_owned(), entry.name.clone(), format!("{dtype:?}"));
            return Err(WeightsError::Type { path, tensor, dtype });
        }
        if tensor.shape() != entry.shape {
            note_shape(&mut import, entry, tensor.shape());
            continue;
        }
        match dtype {
            Dtype::F64 => convert(tensor.data(), out, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::F16 => convert(tensor.data(), out, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => convert(tensor.data(), out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => convert(tensor.data(), out, f32::from_le_bytes),
        }
        if !out.iter().all(|value| value.is_finite()) {
            return Err(WeightsError::NotFinite { path: path.to_owned(), tensor: entry.name.clone() });
        }
        import.matched += 1;
    }
    // A checkpoint's other tensors are expected.
    let expected = |name: &&str| {
        name.ends_with(TRACKED) || ["ema.", "optimizer."].iter().any(|prefix| name.starts_with(prefix))
    };
    import.unexpected = left.into_iter().filter(|name| !expected(name)).map(str::to_string).collect();
    if import.matched == 0 {
        return Err(nothing_matched(path, &file, table, tensors));
    }
    Ok(import)
}

fn nothing_matched(path: &Path, file: &SafeTensors, table: &ParamTable, tensors: usize) -> WeightsError {
    let names = BTreeSet::from_iter(file.names());
    let prefix = table.entries().first().and_then(|entry| {
        let found = names.iter().find_map(|name| name.strip_suffix(entry.name.as_str()))?;
        found.ends_with('.').then(|| found.to_string())
    });
    let first = names.first().unwrap_or(&"").to_string();
    WeightsError::NothingMatched { path: path.to_owned(), tensors, first, prefix }
}

/// See [`super::member`].
pub fn member(path: &Path) -> Option<Variant> {
    let bytes = fs::read(path).ok()?;
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let has = |entry: &Entry| {
        let same = |shape: &[usize]| shape == entry.shape;
        CLASSIFIER.contains(&entry.name.as_str()) || file.tensor(&entry.name).is_ok_and(|t| same(t.shape()))
    };
    // The shapes depend on the member alone.
    let whole = |variant: &Variant| {
        let side = variant.scaling().resolution;
        let net = Architecture::new(*variant, 2, side, Padding::Symmetric, BatchNormConfig::default());
        net.is_ok_and(|net| ParamTable::new(&net).entries().iter().all(has))
    };
    Variant::ALL.into_iter().rev().find(whole)
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

fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
    }
}
