//! Time and bytes of passes, gathered while a network runs.

use std::collections::BTreeMap;

use super::{Device, Pass, ProfileRow};

/// Calls, microseconds and bytes.
type Sums = (u64, f64, u64);

/// Sums by pass, and by kernel within a pass. Rows come out in the order in which they first ran.
#[derive(Debug, Default)]
pub struct Profile {
    rows: BTreeMap<(&'static str, Option<String>), (usize, Sums)>,
}

impl Profile {
    /// One run of a pass.
    pub fn add(&mut self, pass: &Pass, device: &impl Device, microseconds: f64) {
        self.row(pass.name(), None, microseconds, pass.bytes(device));
    }

    /// One run of a kernel of a pass.
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
