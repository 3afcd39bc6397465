//! Time and bytes of passes, measured while a network runs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Device, Pass};

/// Time and calls of one pass, or of one kernel of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileRow {
    /// The pass.
    pub pass: &'static str,
    /// The kernel, if the device runs several per pass.
    pub kernel: Option<String>,
    pub calls: u64,
    pub microseconds: f64,
    /// Bytes of the tensors that the pass names, each counted once per call; 0 for a kernel.
    pub bytes: u64,
}

/// The times at which a bucket of gradients was summed over the ranks, in microseconds since its step began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BucketTime {
    /// Counted from the first step that was timed.
    pub step: u64,
    pub bytes: u64,
    /// The backward pass has completed the bucket.
    pub ready: f64,
    /// The exchange has started the sum.
    pub start: f64,
    /// The exchange has finished the sum.
    pub end: f64,
    /// The backward pass has ended: the same for all buckets of a step.
    pub backward_end: f64,
}

/// The result of [`Ops::take_profile`](super::Ops::take_profile).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProfileReport {
    pub rows: Vec<ProfileRow>,
    /// Buckets in order; empty with one rank.
    #[serde(skip)]
    pub exchange: Vec<BucketTime>,
    /// Microseconds that the host has spent on handing batches over to the device.
    pub handover: f64,
    /// Bytes read and written per second by a plain copy on this device, measured for this report.
    pub copy_bytes_per_second: f64,
}

/// Calls, microseconds and bytes.
type Sums = (u64, f64, u64);

/// Sums by pass, and by kernel within a pass. Rows are in the order in which they first ran.
#[derive(Debug, Default)]
pub struct Profile {
    rows: BTreeMap<(&'static str, Option<String>), (usize, Sums)>,
}

impl Profile {
    /// Adds one run of a pass.
    pub fn add(&mut self, pass: &Pass, device: &impl Device, microseconds: f64) {
        self.row(pass.name(), None, microseconds, pass.bytes(device));
    }

    /// Adds one run of a kernel of a pass.
    pub fn add_kernel(&mut self, pass: &'static str, kernel: &str, microseconds: f64) {
        self.row(pass, Some(kernel.to_string()), microseconds, 0);
    }

    fn row(&mut self, pass: &'static str, kernel: Option<String>, microseconds: f64, bytes: u64) {
        let number = self.rows.len();
        let (_, sums) = self.rows.entry((pass, kernel)).or_insert((number, (0, 0.0, 0)));
        *sums = (sums.0 + 1, sums.1 + microseconds, sums.2 + bytes);
    }

    pub fn rows(self) -> Vec<ProfileRow> {
        let mut rows: Vec<_> = self.rows.into_iter().collect();
        rows.sort_by_key(|(_, (number, _))| *number);
        rows.into_iter()
            .map(|((pass, kernel), (_, (calls, microseconds, bytes)))| ProfileRow {
                pass,
                kernel,
                calls,
                microseconds,
                bytes,
            })
            .collect()
    }
}
