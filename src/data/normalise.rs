//! How bytes become the network's input.

use serde::{Deserialize, Serialize};

/// Channel means and standard deviations as fractions of full intensity; a pixel x becomes
/// (x / 255 - mean) / deviation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalise {
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}
