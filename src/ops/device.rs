//! The interfaces of a device: facts for the planner ([`Device`]), and the operations that run passes ([`Ops`]).

use super::*;
use crate::host_bytes::HostAllocator;
use crate::model::Window;

/// Places for what outlives a pass.
pub const KEPT: usize = 2;

/// The workspace of a pass in bytes: the part that all threads share, the part of it that a pass after it still reads, which
/// lies elsewhere, and the part that each thread has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    pub shared: usize,
    pub kept: [usize; KEPT],
    pub per_thread: usize,
}

impl Workspace {
    /// Enough for either workspace.
    pub fn max(self, other: Workspace) -> Workspace {
        Workspace {
            shared: self.shared.max(other.shared),
            kept: std::array::from_fn(|place| self.kept[place].max(other.kept[place])),
            per_thread: self.per_thread.max(other.per_thread),
        }
    }
}

/// What the planner needs to know about a device.
pub trait Device {
    /// Bytes of one element.
    fn element_bytes(&self, kind: Kind) -> usize;
    /// The memory that a pass needs beside the tensors that it names.
    fn workspace(&self, pass: &Pass) -> Workspace;
    /// Bytes that it takes besides, whatever the network.
    fn fixed_bytes(&self) -> usize {
        0
    }
    /// Number of threads that have a part of the workspace.
    fn threads(&self) -> usize;
    /// Whether the expanded tensor of a block with this many input channels and this depthwise window is stored. If not,
    /// the device recomputes it.
    fn stores_expanded(&self, _expanded: usize, _inputs: usize, _window: Window) -> bool {
        true
    }
    /// Whether inference runs the passes that apply a batch norm to their own output, before they store it.
    fn applies_norms_on_store(&self) -> bool {
        false
    }
    /// Whether inference then also keeps the expanded tensor of such a block out of memory: a few rows of it are made
    /// at a time, for the rows of the depthwise convolution that need them.
    fn expands_in_cache(&self, _expanded: usize, _inputs: usize, _window: Window) -> bool {
        false
    }
    /// Whether the device takes [raw batches](crate::data::raw) and crops and resizes them itself. If not, it takes
    /// squares.
    fn prepares_images(&self) -> bool {
        false
    }
}

/// The flat state buffers. Parameters and EMA have the parameter table's total length, the others its
/// trainable length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    Parameters,
    Gradients,
    /// One of the [optimiser's slots](Rule::slots), by number.
    Slot(usize),
    /// What each parameter's [weight decay](super::WeightDecay) is multiplied by.
    DecayFactors,
    Ema,
}

/// A device that runs the passes.
pub trait Ops {
    /// Runs a sequence that is the same every time. A device may record it the first time and replay the recording
    /// later. So `work` must enqueue the same passes whenever it is called for the same sequence under the same plan,
    /// and must not read anything back.
    fn replay(&mut self, _sequence: Sequence, work: impl FnOnce(&mut Self) -> Result) -> Result
    where
        Self: Sized,
    {
        work(self)
    }

    /// From now on, handles name the tensors of this plan. Their contents are undefined.
    fn bind(&mut self, plan: &Plan) -> Result;
    /// Sets the parameters of the next step.
    fn set_step(&mut self, step: StepParams) -> Result;
    /// Chooses the weights of the forward passes that follow. Backward passes always use the raw ones.
    fn use_weights(&mut self, weights: Weights) -> Result;
    fn zero_gradients(&mut self) -> Result;

    /// Begins a step: zeroes the gradients and the step's figures.
    fn begin_step(&mut self) -> Result {
        self.zero_gradients()
    }
    /// Ends a step after its update. [`Ops::take_figures`] will return its figures.
    fn end_step(&mut self) -> Result;
    /// The figures of the oldest step that were not yet taken. A device that runs behind may not have those of the last
    /// step yet: with `wait` it waits for them, without it returns none.
    fn take_figures(&mut self, wait: bool) -> Result<Option<StepFigures>>;
    /// Starts to copy a batch to the device as `slot` (0 or 1), in parallel with the device's work.
    fn send_batch(&mut self, _slot: usize, batch: &BatchInput) -> Result {
        let BatchTarget { image, labels, mean, deviation } = batch.target;
        let BatchPixels::Squares(pixels) = batch.pixels else {
            return Err(OpsError::Device("a raw batch was sent, but this device takes squares".into()));
        };
        self.upload_pixels(image, pixels, mean, deviation)?;
        labels.map_or(Ok(()), |labels| self.upload_labels(labels, &batch.labels))
    }
    /// Memory of the host that the device reads by itself: a batch that lies there is not copied by the host. None if the
    /// device copies every batch when it is sent.
    fn host_memory(&self) -> Option<HostAllocator> {
        None
    }
    /// Whether a batch that was sent stays where it is until another is sent as the same slot, so that it can be unpacked
    /// again, and the next one can be sent before.
    fn keeps_batches(&self) -> bool {
        false
    }
    /// Makes the batch sent as `slot` the network's input. Part of a sequence.
    fn unpack_batch(&mut self, _slot: usize, _target: &BatchTarget) -> Result {
        Ok(())
    }
    /// The same outside a sequence. It first waits for the batch.
    fn receive_batch(&mut self, slot: usize, target: &BatchTarget) -> Result {
        self.unpack_batch(slot, target)
    }
    /// The state of loss scaling; none if the device needs no loss scaling.
    fn loss_scale(&mut self) -> Result<Option<LossScale>> {
        Ok(None)
    }
    /// Continues from a saved state of loss scaling. A device that needs none only takes the number of skipped steps.
    fn set_loss_scale(&mut self, state: LossScale) -> Result;
    /// Starts to time passes, which itself takes some time.
    fn start_profile(&mut self) -> Result;
    /// Ends timing and returns the times since it started. Contents of tensors are undefined afterwards.
    fn take_profile(&mut self) -> Result<ProfileReport>;

    /// Copies a state buffer to the host.
    fn read_state(&mut self, buffer: Buffer, out: &mut [f32]) -> Result;
    /// Copies a state buffer from the host.
    fn write_state(&mut self, buffer: Buffer, values: &[f32]) -> Result;
    /// Copies values into an activation or float tensor.
    fn upload(&mut self, tensor: Tensor, values: &[f32]) -> Result;
    fn upload_labels(&mut self, tensor: Tensor, labels: &Labels) -> Result;
    /// Fills `image` [N, R, R, 3] from bytes: (pixel/255 − mean)/deviation of each channel.
    fn upload_pixels(&mut self, image: Tensor, pixels: &[u8], mean: [f32; 3], deviation: [f32; 3]) -> Result;
    /// Copies an activation or float tensor to the host.
    fn download(&mut self, tensor: Tensor, out: &mut [f32]) -> Result;

    /// Runs a pass. A loss pass also adds its losses and correct predictions to the step's figures. An update first
    /// waits for the sums of all buckets, and changes nothing if the step's loss or gradients are not finite.
    fn run(&mut self, pass: &Pass) -> Result;

    /// Tells a device with several ranks that the gradients of the bucket are complete, so that their sum over the
    /// ranks may start in parallel with the passes that follow. Part of a sequence; every rank names the same buckets
    /// in the same order.
    fn reduce(&mut self, _bucket: &Bucket) -> Result {
        Ok(())
    }
}
