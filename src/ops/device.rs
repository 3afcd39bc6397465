//! What a device is: to the planner, some facts ([`Device`]); to the network, what runs passes ([`Ops`]).

use super::*;

/// Scratch bytes of a pass: seen by all threads, and each thread's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    pub shared: usize,
    pub per_thread: usize,
}

impl Workspace {
    /// Enough for either.
    pub fn max(self, other: Workspace) -> Workspace {
        Workspace { shared: self.shared.max(other.shared), per_thread: self.per_thread.max(other.per_thread) }
    }
}

/// What the planner has to know of a device.
pub trait Device {
    /// Bytes of one element.
    fn element_bytes(&self, kind: Kind) -> usize;
    /// Scratch that a pass needs beside the tensors it names.
    fn workspace(&self, pass: &Pass) -> Workspace;
    /// How many threads have scratch of their own.
    fn threads(&self) -> usize;
    /// Whether the expanded tensor [rows, expanded] of a block with this many input channels is stored; a
    /// device that recomputes it says no.
    fn stores_expanded(&self, _expanded: usize, _inputs: usize, _rows: usize) -> bool {
        true
    }
    /// Whether it takes [raw batches](crate::data::raw), which it crops and resizes itself; otherwise squares.
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
    /// One of the [optimiser's slots](Rule::slots), by its number.
    Slot(usize),
    /// What each parameter's [weight decay](super::WeightDecay) is multiplied by.
    DecayFactors,
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

    /// Runs a pass. A loss is also added to the step's figures, with the right answers; an update waits for the sums of
    /// all buckets first, and changes nothing where the step's loss or gradients are not finite.
    fn run(&mut self, pass: &Pass) -> Result;

    /// Where ranks share the work: the gradients of the bucket are complete, and their sum over the ranks may begin
    /// beside the passes that follow. Part of a sequence; every rank names the same buckets in the same order.
    fn reduce(&mut self, _bucket: &Bucket) -> Result {
        Ok(())
    }
}
