//! A checkpoint over a whole split, on a device of either kind.

use std::sync::atomic::AtomicBool;

use super::evaluate::{Evaluation, Seen};
use super::evaluator::Evaluator;
use crate::data::{Source, Split};
use crate::train::checkpoint::Checkpoint;
use crate::train::device::{Hardware, Selected, With};
use crate::train::error::TrainError;
use crate::train::loading;
use crate::train::memory::prepared_bytes;

/// What to evaluate.
#[derive(Clone, Copy)]
pub struct Whole<'a> {
    pub read: &'a Checkpoint,
    /// Images of a pass.
    pub batch: usize,
    pub source: &'a Source,
    pub split: Split,
    /// Threads that prepare images; 0 for the default.
    pub threads: usize,
    /// Set when this process is asked to stop.
    pub stop: &'a AtomicBool,
}

impl Whole<'_> {
    /// The figures of each of the checkpoint's sets of weights; none if the evaluation was stopped. `seen` is shown the
    /// logits of each image.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn evaluate(
        self,
        selected: Selected,
        seen: &mut dyn FnMut(Seen),
    ) -> Result<Option<Vec<Evaluation>>, TrainError> {
        selected.with(OnDevice { whole: self, seen })
    }
}

struct OnDevice<'a> {
    whole: Whole<'a>,
    seen: &'a mut dyn FnMut(Seen),
}

impl With for OnDevice<'_> {
    type Output = Result<Option<Vec<Evaluation>>, TrainError>;

    fn with<H: Hardware>(self, hardware: H) -> Self::Output {
        let Whole { read, batch, source, split, threads, stop } = self.whole;
        let bytes = batch as u64 * prepared_bytes(&hardware.device(), read.metadata.resolution);
        let threads = loading::threads(threads, &hardware, 1, bytes);
        Evaluator::new(read, batch, hardware)?.split_seen(source, split, threads, stop, self.seen)
    }
}
