//! The passes on a GPU: hand-written fused kernels (`kernels/`), half or fp32 storage, fp32 arithmetic.
//!
//! [`CudaOps`] is generic over [`Gpu`]: NVIDIA's driver in the product, and the host harness in tests, which runs
//! the same kernels on the CPU. A pass is one launch or a few, enqueued without waiting; each operator's file
//! here has, forward then backward, the launches and the workspace they need, and is named like its `.cu` file.
//!
//! What differs from step to step (learning rate, counters of the random numbers, loss scale) lies in one block
//! of device memory, see [`step`]; so a sequence of passes can be captured once as a graph and launched for ever.

pub mod arguments;
pub mod batch_norm;
pub mod batches;
pub mod context;
pub mod depthwise;
pub mod driver;
pub mod embedded;
mod engine;
pub mod exchange;
pub mod expand;
pub mod gpu;
pub mod head;
pub mod image;
pub mod masks;
pub mod nvidia;
pub mod optimiser;
pub mod pointwise;
pub mod pointwise_backward;
pub mod precision;
pub mod project;
pub mod reduction;
pub mod residual;
pub mod sources;
pub mod squeeze_excite;
pub mod stem;
pub mod step;
pub mod sweep;

pub use engine::CudaOps;
pub use gpu::{Address, Gpu};
pub use precision::Precision;

use super::*;

/// What the planner asks of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    pub precision: Precision,
}

/// Bytes of scratch of a pass. They follow from shapes alone, never from the card.
fn workspace(pass: &Pass, precision: Precision) -> usize {
    match pass {
        Pass::StemForward(p) => stem::forward_workspace(p, precision),
        Pass::ExpandForward(p) => expand::forward_workspace(p, precision),
        Pass::DepthwiseForward(p) => depthwise::forward_workspace(p, precision),
        Pass::SqueezeForward(p) => squeeze_excite::forward_workspace(p, precision),
        Pass::ProjectForward(p) => project::forward_workspace(p, precision),
        Pass::HeadForward(p) => head::forward_workspace(p, precision),
        Pass::Loss(p) => head::loss_workspace(p),
        Pass::HeadBackward(p) => head::backward_workspace(p, precision),
        Pass::ProjectBackward(p) => project::backward_workspace(p, precision),
        Pass::SqueezeBackward(p) => squeeze_excite::backward_workspace(p, precision),
        Pass::DepthwiseBackward(p) => depthwise::backward_workspace(p, precision),
        Pass::ExpandBackward(p) => expand::backward_workspace(p, precision),
        Pass::StemBackward(p) => stem::backward_workspace(p, precision),
        Pass::ExpandDepthwiseForward(..) | Pass::ExpandDepthwiseBackward(..) => {
            unreachable!("plan A stores the expanded tensor")
        }
        Pass::ResidualForward(_)
        | Pass::DropPathMask(_)
        | Pass::DropoutMask(_)
        | Pass::BatchNormInference(_)
        | Pass::Update(_) => 0,
    }
}

impl Device for CudaDevice {
    fn element_bytes(&self, kind: Kind) -> usize {
        match kind {
            Kind::Activation => self.precision.bytes(),
            Kind::Float | Kind::Index => 4,
        }
    }

    fn workspace(&self, pass: &Pass) -> plan::Workspace {
        plan::Workspace { shared: workspace(pass, self.precision), per_thread: 0 }
    }

    fn threads(&self) -> usize {
        1
    }

    fn prepares_images(&self) -> bool {
        true
    }
}
