//! The times at which the buckets of gradients were complete and summed, while passes are timed.

use super::gpu::{Gpu, Mark};
use crate::ops::{BucketTime, Result};

/// See the module's description.
#[derive(Debug, Default)]
pub struct BucketTimes {
    steps: u64,
    began: Option<Mark>,
    backward_end: Option<Mark>,
    /// The step's buckets: bytes, and the moments when it was complete and when its sum began and ended.
    buckets: Vec<(u64, [Mark; 3])>,
    list: Vec<BucketTime>,
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

    /// Reads the times of the step's moments.
    pub fn end_step<G: Gpu>(&mut self, gpu: &mut G) -> Result {
        let step = self.steps;
        let began = self.began.take();
        let ended = self.backward_end.take();
        // Timing may have begun in the middle of this step; then it is left out.
        if let (Some(began), Some(ended)) = (began, ended) {
            let backward_end = gpu.between(began, ended)?;
            for (bytes, marks) in &self.buckets {
                let mut times = [0.0; 3];
                for (time, mark) in times.iter_mut().zip(marks) {
                    *time = gpu.between(began, *mark)?;
                }
                let [ready, start, end] = times;
                self.list.push(BucketTime { step, bytes: *bytes, ready, start, end, backward_end });
            }
            self.steps += 1;
        }
        self.forget(gpu, [began, ended]);
        Ok(())
    }

    fn forget<G: Gpu>(&mut self, gpu: &mut G, ends: [Option<Mark>; 2]) {
        let buckets = self.buckets.drain(..).flat_map(|(_, marks)| marks);
        ends.into_iter().flatten().chain(buckets).for_each(|mark| gpu.forget(mark));
    }

    /// The times of all steps.
    pub fn finish<G: Gpu>(mut self, gpu: &mut G) -> Vec<BucketTime> {
        let ends = [self.began.take(), self.backward_end.take()];
        self.forget(gpu, ends);
        self.list
    }
}
