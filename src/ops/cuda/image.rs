//! Images from bytes.

use super::context::Context;
use super::gpu::Gpu;
use crate::ops::{OpsError, Result, Tensor};

/// Fills `image` [N, R, R, 3] from bytes: (pixel/255 − mean)/deviation of each channel.
pub fn upload<G: Gpu>(
    _cx: &mut Context<G>,
    _image: Tensor,
    _pixels: &[u8],
    _mean: [f32; 3],
    _deviation: [f32; 3],
) -> Result {
    Err(OpsError::Device("image upload is not written yet".into()))
}

/// Bytes of a batch on its way: its pixels, rounded up, then its labels.
pub fn batch_bytes(pixels: usize, labels: usize) -> usize {
    pixels.next_multiple_of(256) + 4 * labels
}

/// Fills `image` [N, R, R, 3] from bytes of the same shape on the device.
pub fn normalise<G: Gpu>(
    _cx: &mut Context<G>,
    _from: super::Address,
    _image: Tensor,
    _mean: [f32; 3],
    _deviation: [f32; 3],
) -> Result {
    Err(OpsError::Device("image normalise is not written yet".into()))
}
