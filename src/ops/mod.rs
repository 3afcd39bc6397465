//! The fused operators: each described once, and implemented once a device.
//!
//! The network speaks in *passes* over memory (see [`pass`]), not in layers: expand, depthwise, squeeze, project,
//! residual, and their backward passes in reverse. A pass is a description that names its tensors by handle. Because
//! the descriptions say all that a pass touches, nothing that follows from them is written by hand: not the memory
//! [`plan`], not the [`buckets`] of gradients, not the [`profile`].

pub mod buckets;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod optimiser;
pub mod pass;
pub mod plan;
pub mod profile;
pub mod score;
pub mod step;
pub mod tensor;

pub use buckets::{Bucket, Buckets};
pub use device::{Buffer, Device, Ops, Workspace};
pub use optimiser::{RmsPropForm, Rule, Slot, StateSize, WeightDecay};
pub use pass::*;
pub use plan::Plan;
pub use profile::{BucketTime, ProfileReport, ProfileRow};
pub use step::{BatchInput, BatchTarget, LossScale, Sequence, StepFigures, StepParams, Weights};
pub use tensor::{Kind, Param, Tensor, Tensors};

use crate::parallel::GroupError;
use crate::parallel::nccl::NcclError;
pub use crate::pixels::BatchPixels;

/// What a device reports.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("the device failed: {0}")]
    Device(String),
    /// No GPU, or one that failed.
    #[error(transparent)]
    Cuda(#[from] cuda::nvidia::DriverError),
    /// The connection to another rank broke off; that rank's own error says why.
    #[error("{0}")]
    Rank(String),
    /// Another rank failed, or the ranks cannot be connected.
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("cannot connect the ranks: {0}")]
    Connect(#[from] std::io::Error),
    /// What ranks on GPUs exchange with.
    #[error(transparent)]
    Nccl(NcclError),
    /// Of a device that works alone.
    #[error("an exchange between ranks, before they were joined")]
    NotConnected,
}

/// Where another rank has gone, its own error says more.
impl From<NcclError> for OpsError {
    fn from(error: NcclError) -> OpsError {
        if error.elsewhere() { OpsError::Rank(error.to_string()) } else { OpsError::Nccl(error) }
    }
}

pub type Result<T = ()> = std::result::Result<T, OpsError>;
