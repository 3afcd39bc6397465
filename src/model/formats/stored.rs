//! Tensors as a file holds them, whatever its format.
/// Type of a tensor's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    F64,
    F32,
    F16,
    BF16,
    /* named as the file does */ Other(String),
}
/// A tensor of a file: its numbers in row-major order, little-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub stored: Stored,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}
/// The tensors of a file by name.
pub type Tensors = std::collections::BTreeMap<String, Tensor>;
