//! Safetensors: the format of exports, of imports and of checkpoints.
//!
//! A file is the length of a header (8 bytes, little-endian), the header (JSON: names, types, shapes, offsets), then
//! the tensors' bytes. It is written here rather than with the crate, because the parameter table's flat buffer *is*
//! the data section: it is written as it lies in memory, and equal weights make equal bytes. Other programs' files are
//! read with the crate.
//!
//! Names and shapes are timm's, including `num_batches_tracked` of every batch norm, so that PyTorch loads an export
//! with `strict=True`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write};

use ::safetensors::tensor::TensorView;
use ::safetensors::{Dtype, SafeTensors};

use super::TrainedModel;
use super::convention::Note;
use super::naming::Naming;
use super::stored::{Stored, Tensor, Tensors};
use crate::model::params::{Entry, ParamTable};

// The flat buffers are written as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));

/// Last word of the I64 counter that every batch norm has in PyTorch.
pub const TRACKED: &str = "num_batches_tracked";
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

/// The header with its length in front, padded to a multiple of 8 bytes. `metadata` is keys and their texts.
pub fn header(metadata: &[(&str, &str)], tensors: &[Listed]) -> Vec<u8> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let pairs: Vec<String> =
        metadata.iter().map(|(key, text)| format!("{}:{}", quoted(key), quoted(text))).collect();
    let mut json = format!("{{\"__metadata__\":{{{}}}", pairs.join(","));
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

/// Writes a model's weights under the names of `naming`, its steps as the value of every counter, and a [`Note`].
pub fn write(out: &mut impl Write, model: &TrainedModel, naming: Naming) -> io::Result<()> {
    let table = ParamTable::new(model.architecture);
    let counters = vec![model.steps as i64; table.batch_norms().count()];
    let names = naming.translation(model.architecture);
    let mut tensors = listing(&table);
    for tensor in &mut tensors {
        let counted = tensor.name.strip_suffix(TRACKED);
        // A counter's name is that of its layer's weight but for the last word.
        let of = counted.map_or_else(|| tensor.name.clone(), |layer| format!("{layer}weight"));
        let name = names.get(&of).cloned().unwrap_or(of);
        tensor.name = match counted {
            Some(_) => name.rsplit_once('.').map_or(name.clone(), |(layer, _)| format!("{layer}.{TRACKED}")),
            None => name,
        };
    }
    let note = serde_json::to_string(&model.note())?;
    out.write_all(&header(&[("format", "pt"), (Note::KEY, &note)], &tensors))?;
    out.write_all(bytemuck::cast_slice(&counters))?;
    out.write_all(bytemuck::cast_slice(model.values))
}

/// The tensors of a file's bytes, and its metadata.
///
/// # Errors
/// What the crate finds wrong with the header or with the size of a tensor, in its words.
pub fn read(bytes: &[u8]) -> Result<(Tensors, HashMap<String, String>), String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let tensor = |(name, view): (&str, TensorView)| {
        let stored = match view.dtype() {
            Dtype::F64 => Stored::F64,
            Dtype::F32 => Stored::F32,
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::BF16,
            other => Stored::Other(format!("{other:?}")),
        };
        (name.to_string(), Tensor { stored, shape: view.shape().to_vec(), bytes: view.data().to_vec() })
    };
    Ok((file.iter().map(tensor).collect(), header.metadata().clone().unwrap_or_default()))
}
