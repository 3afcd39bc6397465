//! The storage type of activations and of the weights of matrix products. All arithmetic is in fp32, and the master
//! weights, their gradients and all statistics are stored in fp32.

use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::names;

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, Display, EnumString, VariantNames,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", parse_err_ty = String, parse_err_fn = Precision::unknown)]
pub enum Precision {
    Fp32,
    /// With dynamic loss scaling.
    Fp16,
    Bf16,
}

impl Precision {
    pub const ALL: [Precision; 3] = [Precision::Fp32, Precision::Fp16, Precision::Bf16];

    /// Bytes of an activation's element.
    pub fn bytes(self) -> usize {
        match self {
            Precision::Fp32 => 4,
            Precision::Fp16 | Precision::Bf16 => 2,
        }
    }

    fn unknown(name: &str) -> String {
        names::unknown::<Precision>("precision", name)
    }

    /// Chooses the first of two values for fp32, the second for both half types.
    pub(in crate::ops) fn of<T>(self, [fp32, half]: [T; 2]) -> T {
        if self == Precision::Fp32 { fp32 } else { half }
    }

    /// The end of kernels' names.
    pub(in crate::ops) fn suffix(self) -> &'static str {
        match self {
            Precision::Fp32 => "_f32",
            Precision::Fp16 => "_f16",
            Precision::Bf16 => "_bf16",
        }
    }
}

/// fp32 values in a half type, rounded to nearest even, little-endian.
pub fn narrow(values: &[f32], precision: Precision) -> Vec<u8> {
    match precision {
        Precision::Fp32 => bytemuck::cast_slice(values).to_vec(),
        Precision::Fp16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Precision::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
    }
}

/// The reverse of [`narrow`].
pub fn widen(bytes: &[u8], precision: Precision, out: &mut [f32]) {
    let pairs = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match precision {
        Precision::Fp32 => out.copy_from_slice(bytemuck::cast_slice(bytes)),
        Precision::Fp16 => out.iter_mut().zip(pairs).for_each(|(o, b)| *o = f16::from_le_bytes(b).to_f32()),
        Precision::Bf16 => out.iter_mut().zip(pairs).for_each(|(o, b)| *o = bf16::from_le_bytes(b).to_f32()),
    }
}
