//! The fused operators: one trait, spoken by the network, implemented once a device.
//!
//! The trait's methods are *passes* over memory (see [`passes`]), not layers: expand, depthwise, squeeze,
//! project, residual, and their backward passes in reverse. Each takes a description that names its tensors
//! by handle. Because the descriptions say all that a pass touches, the memory plan is not written by hand:
//! the network is run once on a [`plan::Recorder`], which notes what is touched when.

pub mod cpu;
pub mod cuda;
pub mod passes;
pub mod plan;
pub mod tensor;

pub use passes::*;
pub use plan::{Device, Pass, Plan, Recorder};
pub use tensor::{Kind, Param, Tensor, Tensors};

/// What a device reports.
#[derive(Debug, thiserror::Error)]
pub enum OpsError {
    #[error("the device failed: {0}")]
    Device(String),
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

    /// Makes the plan's tensors the ones that handles name from now on. Contents are undefined afterwards.
    fn bind(&mut self, plan: &Plan) -> Result;
    /// Sets the parameter block of the coming step.
    fn set_step(&mut self, step: StepParams) -> Result;
    /// Chooses the weights of the forward passes that follow. Backward passes always use the raw ones.
    fn use_weights(&mut self, weights: Weights) -> Result;
    fn zero_gradients(&mut self) -> Result;

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

    fn update(&mut self, pass: &Update) -> Result;
}
