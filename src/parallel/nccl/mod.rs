//! NCCL, NVIDIA's library for exchange between GPUs: a thin binding of what ranks need, loaded when they need it.
//!
//! The program is built and starts without it. [`Nccl::load`] says where it is looked for. If it is missing, too old, or
//! fails, the result is an [`NcclError`] in one line. Streams and device addresses are plain numbers here, since this
//! module knows no GPU.
//!
//! Collectives are enqueued on a stream and wait on the GPU for the other ranks. If a rank never comes they never
//! finish, and the stream alone cannot tell. So a thread that waits for a stream must call [`Comm::check`] meanwhile,
//! and a thread that learns that a rank has gone must use the [`Stopper`].

mod communicator;
mod error;
mod library;
mod packages;

pub use communicator::{Comm, Stopper};
pub use error::{Failure, NcclError, Version};
pub use library::{Nccl, OLDEST, SHARING, UniqueId, ranks_may_share_gpus};

/// The kind of elements, and the operation that NCCL reduces the ranks' elements with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    SumF32,
    AverageF32,
    SumF64,
    SumU32,
    MaxU32,
}

impl Reduce {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Reduce::SumF64 => 8,
            _ => 4,
        }
    }

    /// `ncclDataType_t` and `ncclRedOp_t`.
    fn numbers(self) -> (i32, i32) {
        const UINT32: i32 = 3;
        const FLOAT32: i32 = 7;
        const FLOAT64: i32 = 8;
        const SUM: i32 = 0;
        const MAX: i32 = 2;
        const AVERAGE: i32 = 4;
        match self {
            Reduce::SumF32 => (FLOAT32, SUM),
            Reduce::AverageF32 => (FLOAT32, AVERAGE),
            Reduce::SumF64 => (FLOAT64, SUM),
            Reduce::SumU32 => (UINT32, SUM),
            Reduce::MaxU32 => (UINT32, MAX),
        }
    }
}
