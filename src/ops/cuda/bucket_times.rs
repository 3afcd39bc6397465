//! The times at which the buckets of gradients were complete and summed, while passes are timed.

use super::gpu::{Gpu, Mark};
use crate::ops::{BucketTime, Result};

/// See the module's description.
#[derive(Debug, Default)]
pub struct BucketTimes {
    steps: u64,
    began: Option<Mark>,
    backward_end: Option<Mark>,
    buckets: Vec<Bucket>,
    list: Vec<BucketTime>,
}

/// A bucket of the current step: bytes, and the moments when it was complete and when its sum began and ended.
type Bucket = (u64, [Mark; 3]);

/// The moments of a step that has ended.
#[derive(Debug)]
pub struct StepMarks {
    began: Mark,
    backward_end: Mark,
    buckets: Vec<Bucket>,
}

impl BucketTimes {
    /// Marks the start of a step. A step that never ended is forgotten.
    pub fn step_begins<G: Gpu>(&mut self, gpu: &mut G) -> Result {
        if let Some(older) = self.began.replace(gpu.mark()?) {
            gpu.forget(older);
        }
        Ok(())
    }

    /// Marks the end of the step's backward pass.
    pub fn backward_ends<G: Gpu>(&mut self, gpu: &mut G) -> Result {
        self.backward_end = Some(gpu.mark()?);
        Ok(())
    }

    /// A bucket of so many bytes, and the moments when it was complete and when its sum began and ended.
    pub fn add(&mut self, bytes: u64, marks: [Mark; 3]) {
        self.buckets.push((bytes, marks));
    }

    /// Ends the step; its moments, to be read when they have been reached. None for a step in the middle of which
    /// timing began.
    pub fn end_step<G: Gpu>(&mut self, gpu: &mut G) -> Option<StepMarks> {
        if let (Some(began), Some(backward_end)) = (self.began, self.backward_end) {
            (self.began, self.backward_end) = (None, None);
            return Some(StepMarks { began, backward_end, buckets: std::mem::take(&mut self.buckets) });
        }
        self.forget(gpu);
        None
    }

    /// Reads the times of a step whose moments have been reached.
    pub fn read<G: Gpu>(&mut self, gpu: &mut G, step: StepMarks) -> Result {
        let StepMarks { began, backward_end, buckets } = step;
        let end_of_backward = gpu.between(began, backward_end)?;
        for (bytes, marks) in buckets {
            let mut times = [0.0; 3];
            for (time, mark) in times.iter_mut().zip(marks) {
                *time = gpu.between(began, mark)?;
                gpu.forget(mark);
            }
            let [ready, start, end] = times;
            let step = self.steps;
            self.list.push(BucketTime { step, bytes, ready, start, end, backward_end: end_of_backward });
        }
        self.steps += 1;
        gpu.forget(began);
        gpu.forget(backward_end);
        Ok(())
    }

    fn forget<G: Gpu>(&mut self, gpu: &mut G) {
        let buckets = self.buckets.drain(..).flat_map(|(_, marks)| marks);
        let ends = [self.began.take(), self.backward_end.take()];
        ends.into_iter().flatten().chain(buckets).for_each(|mark| gpu.forget(mark));
    }

    /// The times of all steps that were read.
    pub fn finish<G: Gpu>(mut self, gpu: &mut G) -> Vec<BucketTime> {
        self.forget(gpu);
        self.list
    }
}
