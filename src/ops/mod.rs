//! The fused operators: one trait, spoken by the network, implemented once a device.
//!
//! The trait's methods are *passes* over memory (see [`passes`]), not layers: expand, depthwise, squeeze,
//! project, residual, and their backward passes in reverse. Each takes a description that names its tensors
//! by handle. Because the descriptions say all that a pass touches, the memory plan is not written by hand:
//! the network is run once on a [`plan::Recorder`], which notes what is touched when.

pub mod buckets;
pub mod cpu;
pub mod cuda;
pub mod passes;
pub mod plan;
pub mod profile;
pub mod score;
pub mod tensor;

pub use buckets::{Bucket, Buckets};
pub use passes::*;
pub use plan::{Device, Pass, Plan, Recorder};
use serde::{Deserialize, Serialize};
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

/// The flat state buffers. Parameters and EMA have the parameter table's total length, the others its
/// trainable length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    Parameters,
    Gradients,
    MeanSquare,
    Momentum,
    Ema,
}

/// Everything that differs from step to step and is not data.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepParams {
    pub seed: u64,
    pub step: u64,
    /// Position of the batch's first sample in the endless concatenation of epochs: masks are drawn by position.
    pub first_position: u64,
    pub learning_rate: f32,
    /// d of this step, its warm-up applied.
    pub ema_decay: f32,
}

/// What a step came to, over all its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepFigures {
    /// Sum of the images' losses.
    pub loss: f64,
    /// Images whose largest logit is their label's (see [`score::rank`]).
    pub correct: u64,
    /// Whether the update changed nothing, because the loss or a gradient was not finite.
    pub skipped: bool,
}

/// Dynamic loss scaling: the loss is multiplied by `scale` before the backward pass and the gradients divided by
/// it after, so that small ones survive fp16. A step with a gradient that is not finite is skipped and halves
/// the scale; many good steps in a row double it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LossScale {
    pub scale: f32,
    /// Since the scale last changed.
    pub good_steps: u32,
    /// Steps skipped, in all.
    pub skipped: u32,
}

/// A sequence of passes that is run again and again, the same but for the step's parameters and the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sequence {
    /// A micro-batch, sent as `slot`, of a training step: its first, its last, or one between.
    Training { slot: usize, first: bool, last: bool },
    /// A batch of inference.
    Inference { slot: usize },
}

impl Sequence {
    /// Which of the two batches under way it works on.
    pub fn slot(self) -> usize {
        match self {
            Sequence::Training { slot, .. } | Sequence::Inference { slot } => slot,
        }
    }
}

/// A batch on its way to the device: bytes and labels on the host, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct BatchInput<'a> {
    /// Squares [N, R, R, 3], or a raw batch of as many, where the device [takes those](Device::prepares_images).
    pub pixels: BatchPixels<'a>,
    /// [N]; empty in inference.
    pub labels: &'a [u32],
    pub target: BatchTarget,
}

/// Where a batch goes: the network's input, and how a byte becomes a number: (byte/255 − mean)/deviation.
#[derive(Clone, Copy, Debug)]
pub struct BatchTarget {
    pub image: Tensor,
    pub labels: Option<Tensor>,
    pub mean: [f32; 3],
    pub deviation: [f32; 3],
}

/// Time and calls of one pass, or of one kernel of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileRow {
    /// The pass.
    pub pass: &'static str,
    /// The kernel, where the device has several a pass.
    pub kernel: Option<String>,
    pub calls: u64,
    pub microseconds: f64,
    /// Bytes of the tensors that the pass names, each counted once a call; 0 for a kernel.
    pub bytes: u64,
}

/// When a bucket of gradients was summed over the ranks; microseconds since its step began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BucketTime {
    /// Counted from the first step that was timed.
    pub step: u64,
    pub bytes: u64,
    /// The backward pass has completed it.
    pub ready: f64,
    /// The exchange has turned to it, and has done with it.
    pub start: f64,
    pub end: f64,
    /// The same for all buckets of a step.
    pub backward_end: f64,
}

/// What [`Ops::take_profile`] gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProfileReport {
    pub rows: Vec<ProfileRow>,
    /// Buckets in order, where ranks share the work.
    pub exchange: Vec<BucketTime>,
    /// Bytes read and bytes written a second by a plain copy on this device, just measured.
    pub copy_bytes_per_second: f64,
}

/// Which weights the forward pass uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    Raw,
    Ema,
}

/// A device that runs the passes.
pub trait Ops {
    /// Runs a sequence of passes from where launching one costs least: on the CPU, from inside the thread pool.
    fn submit<R: Send>(&mut self, work: impl FnOnce(&mut Self) -> R + Send) -> R
    where
        Self: Sized,
    {
        work(self)
    }

    /// Runs a sequence that is the same every time. A device may record it the first time and only replay it later:
    /// `work` must enqueue the same passes whenever it is called for the same sequence under the same plan, and
    /// must not read anything back.
    fn replay(&mut self, _sequence: Sequence, work: impl FnOnce(&mut Self) -> Result + Send) -> Result
    where
        Self: Sized,
    {
        self.submit(work)
    }

    /// Makes the plan's tensors the ones that handles name from now on. Contents are undefined afterwards.
    fn bind(&mut self, plan: &Plan) -> Result;
    /// Sets the parameter block of the coming step.
    fn set_step(&mut self, step: StepParams) -> Result;
    /// Chooses the weights of the forward passes that follow. Backward passes always use the raw ones.
    fn use_weights(&mut self, weights: Weights) -> Result;
    fn zero_gradients(&mut self) -> Result;

    /// Begins a step: zeroes the gradients and the step's figures.
    fn begin_step(&mut self) -> Result {
        self.zero_gradients()
    }
    /// Ends a step after its update: its figures will come out of [`Ops::take_figures`].
    fn end_step(&mut self) -> Result;
    /// The figures of the oldest step not yet taken. Where a device runs behind, those of the last step are given
    /// only with `wait`, and then waited for.
    fn take_figures(&mut self, wait: bool) -> Result<Option<StepFigures>>;
    /// Starts a batch's way to the device as `slot` (0 or 1), beside what the device is doing.
    fn send_batch(&mut self, _slot: usize, batch: &BatchInput) -> Result {
        let BatchTarget { image, labels, mean, deviation } = batch.target;
        let BatchPixels::Squares(pixels) = batch.pixels else {
            return Err(OpsError::Device("a raw batch was sent, this device takes squares".into()));
        };
        self.upload_pixels(image, pixels, mean, deviation)?;
        labels.map_or(Ok(()), |labels| self.upload_labels(labels, batch.labels))
    }
    /// Makes the batch sent as `slot` the network's input. Part of a sequence.
    fn unpack_batch(&mut self, _slot: usize, _target: &BatchTarget) -> Result {
        Ok(())
    }
    /// The same outside of a sequence: waits for the batch first.
    fn receive_batch(&mut self, slot: usize, target: &BatchTarget) -> Result {
        self.unpack_batch(slot, target)
    }
    /// The state of loss scaling; none where the device needs none.
    fn loss_scale(&mut self) -> Result<Option<LossScale>> {
        Ok(None)
    }
    /// Goes on from a saved state of loss scaling. Without effect where the device needs none.
    fn set_loss_scale(&mut self, _state: LossScale) -> Result {
        Ok(())
    }
    /// Starts timing passes, which costs some time itself.
    fn start_profile(&mut self) -> Result;
    /// What was timed since; timing ends. Contents of tensors are undefined afterwards.
    fn take_profile(&mut self) -> Result<ProfileReport>;

    /// Copies a state buffer to the host.
    fn read_state(&mut self, buffer: Buffer, out: &mut [f32]) -> Result;
    /// Copies a state buffer from the host.
    fn write_state(&mut self, buffer: Buffer, values: &[f32]) -> Result;
    /// Copies values into an activation or float tensor.
    fn upload(&mut self, tensor: Tensor, values: &[f32]) -> Result;
    fn upload_labels(&mut self, tensor: Tensor, labels: &[u32]) -> Result;
    /// Fills `image` [N, R, R, 3] from bytes: (pixel/255 − mean)/deviation of each channel.
    fn upload_pixels(&mut self, image: Tensor, pixels: &[u8], mean: [f32; 3], deviation: [f32; 3]) -> Result;
    /// Copies an activation or float tensor to the host.
    fn download(&mut self, tensor: Tensor, out: &mut [f32]) -> Result;

    fn drop_path_mask(&mut self, pass: &DropPathMask) -> Result;
    fn dropout_mask(&mut self, pass: &DropoutMask) -> Result;
    /// Coefficients from the running statistics.
    fn batch_norm_inference(&mut self, bn: &BatchNorm) -> Result;

    fn stem_forward(&mut self, pass: &StemForward) -> Result;
    fn expand_forward(&mut self, pass: &ExpandForward) -> Result;
    fn depthwise_forward(&mut self, pass: &DepthwiseForward) -> Result;
    fn squeeze_forward(&mut self, pass: &SqueezeForward) -> Result;
    fn project_forward(&mut self, pass: &ProjectForward) -> Result;
    fn residual_forward(&mut self, pass: &ResidualForward) -> Result;
    fn head_forward(&mut self, pass: &HeadForward) -> Result;
    /// Losses and their gradient; also adds the losses and the right answers to the step's figures.
    fn loss(&mut self, pass: &Loss) -> Result;

    fn head_backward(&mut self, pass: &HeadBackward) -> Result;
    fn project_backward(&mut self, pass: &ProjectBackward) -> Result;
    fn squeeze_backward(&mut self, pass: &SqueezeBackward) -> Result;
    fn depthwise_backward(&mut self, pass: &DepthwiseBackward) -> Result;
    fn expand_backward(&mut self, pass: &ExpandBackward) -> Result;
    fn stem_backward(&mut self, pass: &StemBackward) -> Result;

    /// Expand and depthwise as one: a backend that recomputes the expanded tensor per tile overrides this and
    /// never stores `expand.y` (its [`Device::stores_expanded`] says so to the planner).
    fn expand_depthwise_forward(&mut self, expand: &ExpandForward, depthwise: &DepthwiseForward) -> Result {
        self.expand_forward(expand)?;
        self.depthwise_forward(depthwise)
    }

    /// The backward pass of [`Ops::expand_depthwise_forward`].
    fn expand_depthwise_backward(
        &mut self,
        expand: &ExpandBackward,
        depthwise: &DepthwiseBackward,
    ) -> Result {
        self.depthwise_backward(depthwise)?;
        self.expand_backward(expand)
    }

    /// Where ranks share the work: the gradients of the bucket are complete, and their sum over the ranks may begin
    /// beside the passes that follow. Part of a sequence; every rank names the same buckets in the same order.
    fn reduce(&mut self, _bucket: &Bucket) -> Result {
        Ok(())
    }

    /// Waits for the sums of all buckets, then moves the weights; a step whose loss or gradients are not finite changes nothing.
    fn update(&mut self, pass: &Update) -> Result;
}
