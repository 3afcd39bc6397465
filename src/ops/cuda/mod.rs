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
mod bucket_times;
pub mod context;
pub mod depthwise;
pub mod driver;
pub mod embedded;
mod engine;
pub mod exchange;
pub mod expand;
pub mod expand_depthwise;
pub mod gpu;
pub mod head;
pub mod image;
mod inference;
pub mod masks;
pub mod nvidia;
pub mod optimiser;
pub mod pointwise;
pub mod pointwise_backward;
pub mod project;
pub mod reduction;
pub mod residual;
pub mod sources;
pub mod squeeze_excite;
pub mod stem;
pub mod step;
pub mod sweep;
mod timing;
pub mod usable;

pub use super::precision::{self, Precision};
pub use engine::CudaOps;
pub use gpu::{Address, Gpu};

use context::Context;

use super::*;
use crate::model::Window;

/// What the planner asks of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    pub precision: Precision,
    /// Whether expanded tensors are computed again where [`expand_depthwise`] can.
    pub recomputes: bool,
}

impl CudaDevice {
    /// One that stores all expanded tensors.
    pub fn new(precision: Precision) -> CudaDevice {
        CudaDevice { precision, recomputes: false }
    }

    /// One that computes them again wherever the kernels can. The results are the same bits.
    pub fn recomputing(precision: Precision) -> CudaDevice {
        CudaDevice { precision, recomputes: true }
    }
}

/// How a GPU runs a pass.
trait OnCuda {
    /// Bytes of scratch. They follow from shapes alone, never from the card.
    fn workspace(&self, _precision: Precision) -> usize {
        0
    }
    /// Bytes of partial sums that outlive the pass, by place, see [`reduction::finish_later`].
    fn kept(&self, _precision: Precision) -> [usize; device::KEPT] {
        [0; device::KEPT]
    }
    /// Enqueues the kernels.
    fn launch<G: Gpu>(&self, cx: &mut Context<G>) -> Result;
}

macro_rules! dispatch_passes {
    ($($pass:ident),* $(,)?) => {
        fn workspace(pass: &Pass, precision: Precision) -> device::Workspace {
            let (shared, kept) = match pass {
                $(Pass::$pass(pass) => (pass.workspace(precision), pass.kept(precision))),*
            };
            device::Workspace { shared, kept, per_thread: 0 }
        }

        fn launch<G: Gpu>(cx: &mut Context<G>, pass: &Pass) -> Result {
            match pass {
                $(Pass::$pass(pass) => pass.launch(cx)),*
            }
        }
    };
}
for_each_pass!(dispatch_passes);

impl Device for CudaDevice {
    fn element_bytes(&self, kind: Kind) -> usize {
        match kind {
            Kind::Activation => self.precision.bytes(),
            Kind::Float | Kind::Index => 4,
        }
    }

    fn workspace(&self, pass: &Pass) -> device::Workspace {
        workspace(pass, self.precision)
    }

    fn fixed_bytes(&self) -> usize {
        batch_norm::ARRIVALS_BYTES
    }

    fn threads(&self) -> usize {
        1
    }

    fn stores_expanded(&self, expanded: usize, inputs: usize, window: Window) -> bool {
        !self.recomputes || !expand_depthwise::recomputes(self.precision, expanded, inputs, window)
    }

    fn prepares_images(&self) -> bool {
        true
    }
}
