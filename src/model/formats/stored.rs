//! Tensors as a file holds them, whatever its format.

use std::collections::BTreeMap;

use half::{bf16, f16};

/// Type of a tensor's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    F64,
    F32,
    F16,
    BF16,
    /// Any other type, named as the file does.
    Other(String),
}

/// A tensor of a file: its numbers in row-major order, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub stored: Stored,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// The tensors of a file by name.
pub type Tensors = BTreeMap<String, Tensor>;

impl Tensor {
    /// The numbers in fp32: fp16 and bf16 exactly, double precision rounded to nearest.
    ///
    /// # Errors
    /// The name of a type that is not read.
    pub fn values(&self) -> Result<Vec<f32>, &str> {
        let bytes = &self.bytes;
        Ok(match &self.stored {
            Stored::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Stored::F32 => each(bytes, f32::from_le_bytes),
            Stored::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Stored::BF16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Stored::Other(name) => return Err(name),
        })
    }
}

fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| value(*bytes)).collect()
}
