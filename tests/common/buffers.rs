//! Numbers from a device and to it.

use effnet::ops::cuda::{Address, CudaOps, Gpu};
use effnet::ops::{Buffer, Ops, Result, Tensor};

/// The values of a tensor; NaN where a device leaves them out.
pub fn values<O: Ops>(ops: &mut O, tensor: Tensor) -> Result<Vec<f32>> {
    let mut values = vec![f32::NAN; tensor.elements];
    ops.download(tensor, &mut values).map(|()| values)
}

/// So many numbers of a state buffer.
pub fn state<O: Ops>(ops: &mut O, buffer: Buffer, elements: usize) -> Result<Vec<f32>> {
    let mut values = vec![f32::NAN; elements];
    ops.read_state(buffer, &mut values).map(|()| values)
}

/// Allocates device memory for these bytes and copies them there.
pub fn on_device<G: Gpu>(ops: &mut CudaOps<G>, bytes: &[u8]) -> Address {
    let gpu = ops.gpu();
    let at = gpu.allocate(bytes.len()).unwrap();
    gpu.write(at, bytes).unwrap();
    at
}
