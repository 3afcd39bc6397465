//! What `--profile` collects on a GPU.
//!
//! While a step is enqueued, only moments are recorded. Their times are read when the step after it has been enqueued.
//! So a profiled step makes the host wait once and not after every kernel.

use super::bucket_times::{BucketTimes, StepMarks};
use super::gpu::{Gpu, Mark};
use crate::ops::profile::Profile;
use crate::ops::{Device, Pass, ProfileReport, Result};

/// So many spans are read at the latest: passes outside of steps have no end of a step to be read at.
const MOST_UNREAD: usize = 1 << 13;

/// Sums, the current pass with its start, and moments whose times are not read yet.
#[derive(Default)]
pub struct Timing {
    sums: Profile,
    pass: Option<(&'static str, Mark)>,
    current: Unread,
    /// Those of the step before.
    earlier: Unread,
    pub(super) exchange: BucketTimes,
}

#[derive(Default)]
struct Unread {
    spans: Vec<Span>,
    steps: Vec<StepMarks>,
}

/// The moments before and after a pass or a kernel.
struct Span {
    what: What,
    from: Mark,
    to: Mark,
}

enum What {
    Pass(Box<Pass>),
    Kernel { pass: &'static str, name: String },
}

impl Timing {
    pub fn begin_pass<G: Gpu>(&mut self, gpu: &mut G, name: &'static str) -> Result {
        self.pass = Some((name, gpu.mark()?));
        Ok(())
    }

    pub fn end_pass<G: Gpu>(&mut self, gpu: &mut G, device: &impl Device, pass: &Pass) -> Result {
        let Some((_, from)) = self.pass.take() else { return Ok(()) };
        self.current.spans.push(Span { what: What::Pass(Box::new(*pass)), from, to: gpu.mark()? });
        if self.current.spans.len() < MOST_UNREAD {
            return Ok(());
        }
        self.settle(gpu, device)
    }

    /// Adds a kernel that was enqueued after `from`.
    pub fn end_kernel<G: Gpu>(&mut self, gpu: &mut G, name: &str, from: Mark) -> Result {
        let pass = self.pass.map_or("other", |(name, _)| name);
        let what = What::Kernel { pass, name: name.to_string() };
        self.current.spans.push(Span { what, from, to: gpu.mark()? });
        Ok(())
    }

    /// Ends a step: reads the times of the step before.
    pub fn end_step<G: Gpu>(&mut self, gpu: &mut G, device: &impl Device) -> Result {
        self.settle(gpu, device)
    }

    /// Takes the moments of the step's exchange, see [`BucketTimes::end_step`].
    pub fn end_exchange<G: Gpu>(&mut self, gpu: &mut G) {
        self.current.steps.extend(self.exchange.end_step(gpu));
    }

    /// Reads what `earlier` holds, and keeps what is new for the next time.
    fn settle<G: Gpu>(&mut self, gpu: &mut G, device: &impl Device) -> Result {
        let Unread { spans, steps } = std::mem::replace(&mut self.earlier, std::mem::take(&mut self.current));
        let Some(last) = spans.last() else { return Ok(()) };
        // All other moments are earlier: the update waits for the exchange, and one stream does the rest.
        gpu.reach(last.to)?;
        for Span { what, from, to } in spans {
            let microseconds = gpu.between(from, to)?;
            gpu.forget(from);
            gpu.forget(to);
            match what {
                What::Pass(pass) => self.sums.add(&pass, device, microseconds),
                What::Kernel { pass, name } => self.sums.add_kernel(pass, &name, microseconds),
            }
        }
        steps.into_iter().try_for_each(|step| self.exchange.read(gpu, step))
    }

    /// The times of everything enqueued.
    pub fn finish<G: Gpu>(mut self, gpu: &mut G, device: &impl Device) -> Result<ProfileReport> {
        self.settle(gpu, device)?;
        self.settle(gpu, device)?;
        let exchange = self.exchange.finish(gpu);
        Ok(ProfileReport { rows: self.sums.rows(), exchange, ..Default::default() })
    }
}
