//! The cards that times are predicted for, and the least time of work on each.

use crate::work::Work;

pub struct Card {
    pub name: &'static str,
    pub multiprocessors: f64,
    /// 10⁹ cycles a second under load: the vendor's boost clock of the RTX 3080; of the H100 the
    /// PCIe card's, below the 1.98 that an SXM card may reach.
    pub clock: f64,
    /// 10¹² bytes a second, read and written by a plain copy.
    pub copy: f64,
    /// Multiply-adds of a multiprocessor in a cycle by `mma.sync` in half precision with fp32 sums.
    pub tensor: f64,
    /// fp32 instructions of a multiprocessor in a cycle: its four schedulers issue one for 32 threads each.
    pub fp32: f64,
    /// Special-function operations of a multiprocessor in a cycle, four for each scheduler.
    pub special: f64,
}

/// `mma.sync` reaches about 0.6 of what Hopper's own `wgmma` does: 1024 of 2048 is conservative.
pub const CARDS: [Card; 2] = [
    Card {
        name: "H100",
        multiprocessors: 132.0,
        clock: 1.755,
        copy: 3.0,
        tensor: 1024.0,
        fp32: 128.0,
        special: 16.0,
    },
    Card {
        name: "RTX 3080",
        multiprocessors: 68.0,
        clock: 1.71,
        copy: 0.70,
        tensor: 256.0,
        fp32: 128.0,
        special: 16.0,
    },
];

/// Microseconds that a launch costs besides its work, in a graph: an assumption.
pub const LAUNCH: f64 = 2.0;

/// What limits a time.
pub const LIMITS: [&str; 4] = ["memory", "tensor cores", "fp32", "special functions"];

impl Card {
    /// Microseconds by each of [`LIMITS`].
    pub fn times(&self, work: &Work) -> [f64; 4] {
        let cycles = self.multiprocessors * self.clock * 1e3; // a microsecond, of all multiprocessors
        [
            work.bytes / self.copy / 1e6,
            work.tensor / self.tensor / cycles,
            work.fp32 / self.fp32 / cycles,
            work.special / self.special / cycles,
        ]
    }

    /// The least microseconds of a launch.
    pub fn bound(&self, work: &Work) -> f64 {
        self.times(work).into_iter().fold(0.0, f64::max)
    }
}
