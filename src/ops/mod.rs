//! The fused operators: each described once, and implemented once per device.
//!
//! The network records *passes* over memory (see [`pass`]), not layers: expand, depthwise, squeeze, project,
//! residual, and their backward passes in reverse. A pass is a description that names its tensors by handle. The
//! descriptions name all memory that a pass uses, so the memory [`plan`], the [`buckets`] of gradients and the
//! [`profile`] are derived from them.

pub mod buckets;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod frozen;
pub mod optimiser;
pub mod pass;
pub mod plan;
pub mod precision;
pub mod profile;
pub mod score;
pub mod step;
pub mod tensor;

pub use buckets::{Bucket, Buckets};
pub use device::{Buffer, Device, Ops, Workspace};
pub use frozen::Frozen;
pub use optimiser::{RmsPropForm, Rule, Slot, StateSize, WeightDecay};
pub use pass::*;
pub use plan::Plan;
pub use precision::Precision;
pub use profile::{BucketTime, ProfileReport, ProfileRow};
pub use step::{BatchInput, BatchTarget, LossScale, Sequence, StepFigures, StepParams, Weights};
pub use tensor::{Kind, Param, Tensor, Tensors};

pub use crate::labels::{LabelForm, Labels, Mixed};
use crate::parallel::GroupError;
use crate::parallel::nccl::NcclError;
pub use crate::pixels::BatchPixels;

/// An error of a device.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("the device failed: {0}")]
    Device(String),
    /// No GPU, or one that failed.
    #[error(transparent)]
    Cuda(#[from] cuda::nvidia::DriverError),
    /// The connection to another rank broke off; the error of that rank says why.
    #[error("{0}")]
    Rank(String),
    /// Another rank failed, or the ranks cannot be connected.
    #[error(transparent)]
    Group(#[from] GroupError),
    #[error("cannot connect the ranks: {0}")]
    Connect(#[from] std::io::Error),
    /// NCCL, with which ranks on GPUs exchange gradients, failed.
    #[error(transparent)]
    Nccl(NcclError),
    #[error("an exchange between ranks, before they were connected")]
    NotConnected,
}

/// If another rank is gone, the error of that rank says more.
impl From<NcclError> for OpsError {
    fn from(error: NcclError) -> OpsError {
        if error.elsewhere() { OpsError::Rank(error.to_string()) } else { OpsError::Nccl(error) }
    }
}

pub type Result<T = ()> = std::result::Result<T, OpsError>;
