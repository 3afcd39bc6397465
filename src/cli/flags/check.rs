//! Which settings are allowed, wherever they come from. The fields of the recipe are checked by
//! [`Recipe::validate`](crate::train::Recipe::validate).

use super::{Actions, Settings};
use crate::cli::{UsageError, usage};
use crate::parallel::Address;
use crate::train::DeviceChoice;

/// Threads, ranks or machines: more would only exhaust memory.
const MOST: u64 = 1024;
/// Seconds.
const WEEK: u64 = 7 * 24 * 3600;

impl Settings {
    /// The address that --rendezvous gives.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn address(&self) -> Result<Option<Address>, UsageError> {
        let address = self.rendezvous.as_deref().map(str::parse).transpose();
        address.or_else(|error| usage(format!("--rendezvous {error}")))
    }

    /// # Errors
    /// The first setting that is out of range or contradicts another one.
    pub fn check(&self, actions: &Actions) -> Result<(), UsageError> {
        let ranges = [
            ("profile", actions.profile, MOST, ""),
            ("max-steps", self.max_steps, u64::MAX, "; --dry-run takes no step"),
            ("threads", self.threads, MOST, ""),
            ("loader-threads", self.loader_threads, MOST, ""),
            ("gpus", self.gpus, MOST, "; --device cpu uses none"),
            ("ranks", self.ranks, MOST, ""),
            ("nodes", self.nodes, MOST, ""),
            ("rendezvous-timeout", self.rendezvous_timeout, WEEK, ""),
            ("watchdog", self.watchdog, WEEK, ""),
        ];
        for (flag, value, most, hint) in ranges {
            match value {
                Some(0) => return usage(format!("--{flag} 0: must be at least 1{hint}")),
                Some(value) if value > most => {
                    return usage(format!("--{flag} {value}: must be at most {most}"));
                }
                _ => {}
            }
        }
        if actions.demo && self.data.is_some() {
            return usage("--demo brings its own images: leave out --data, or --demo");
        }
        if self.init_weights.is_some() && self.init_from.is_none() && !actions.resume {
            return usage("--init-weights: --init-from names no file of weights");
        }
        self.address()?;
        match (self.gpus, self.ranks, self.device) {
            (Some(_), Some(_), _) => usage(
                "--ranks: every GPU has a rank of its own; give --gpus for GPUs, or --ranks for the CPU",
            ),
            (Some(_), None, Some(DeviceChoice::Cpu)) => {
                usage("--gpus: --device cpu uses none; leave one of them out")
            }
            (None, Some(ranks), Some(DeviceChoice::Cuda)) => usage(format!(
                "--ranks {ranks}: these are processes on the CPU; for GPUs give their number with --gpus {ranks}"
            )),
            _ => Ok(()),
        }
    }
}
