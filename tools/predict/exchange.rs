//! Sums of gradients over cards, which overlap the backward pass: how long one takes, and how much of it is exposed.
//!
//! A ring of N cards passes each piece on 2(N−1) times, so each card sends 2(N−1)/N of a bucket's bytes, and
//!
//! ```text
//! sum(bytes) = base + 2(N−1)·hop + 2(N−1)/N · bytes/rate
//! ```
//!
//! with `rate` what nccl-tests calls *busbw*. Base and hop are those by which NCCL itself chooses among its algorithms.
//! Sums run one after another on a stream of their own: one starts as soon as its bucket is complete and the sum before
//! has ended. What runs after the backward pass is exposed: the update waits for it.

/// How fast cards exchange.
#[derive(Clone, Copy, Debug)]
pub struct Bus {
    /// Microseconds of any sum.
    pub base: f64,
    /// Microseconds of each turn of the ring.
    pub hop: f64,
    /// 10⁹ bytes a second: bytes that a card sends, over the time of a large sum.
    pub rate: f64,
}

impl Bus {
    /// Microseconds until the first byte has travelled the ring twice.
    pub fn latency(&self, cards: usize) -> f64 {
        self.base + 2.0 * (cards as f64 - 1.0) * self.hop
    }

    /// Microseconds of a sum over this many cards.
    pub fn sum(&self, bytes: f64, cards: usize) -> f64 {
        let n = cards as f64;
        if cards < 2 { 0.0 } else { self.latency(cards) + 2.0 * (n - 1.0) / n * bytes / self.rate / 1e3 }
    }
}

/// A bucket of gradients: microseconds since the step began until it is complete, and its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub at: f64,
    pub bytes: f64,
}

/// When a bucket is summed, in microseconds since the step began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sum {
    pub start: f64,
    pub end: f64,
}

/// The sums of a step.
#[derive(Clone, Debug)]
pub struct Timeline {
    pub sums: Vec<Sum>,
    backward_end: f64,
}

impl Timeline {
    /// `buckets` are in the order in which they become complete, the last no later than the end of the backward pass.
    pub fn new(buckets: &[Ready], backward_end: f64, bus: &Bus, cards: usize) -> Timeline {
        let mut free = 0.0f64;
        let sums = buckets.iter().map(|bucket| {
            let start = free.max(bucket.at);
            free = start + bus.sum(bucket.bytes, cards);
            Sum { start, end: free }
        });
        Timeline { sums: sums.collect(), backward_end }
    }

    /// Microseconds in which a sum is under way.
    pub fn busy(&self) -> f64 {
        self.sums.iter().map(|sum| sum.end - sum.start).sum()
    }

    /// Of these, the ones after the backward pass.
    pub fn exposed(&self) -> f64 {
        self.sums.last().map_or(0.0, |sum| (sum.end - self.backward_end).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 µs of base, 0.5 of each hop, 10 GB/s: on four cards a latency of 4 µs, and 1.5 times the bytes travel.
    const BUS: Bus = Bus { base: 1.0, hop: 0.5, rate: 10.0 };

    #[test]
    fn sum_takes_its_latency_and_its_bytes() {
        assert_eq!(BUS.latency(4), 4.0);
        // 1.5 · 1 MB at 10 GB/s are 150 µs.
        assert_eq!(BUS.sum(1e6, 4), 154.0);
        // Two cards send each byte once; one card sends none.
        assert_eq!(BUS.sum(1e6, 2), 102.0);
        assert_eq!(BUS.sum(1e6, 1), 0.0);
    }

    /// Two buckets, worked out by hand: 1 MB complete at 100 µs, 0.2 MB at 200 µs, when the backward pass ends too. The
    /// first sum runs from 100 to 254 µs, so the second waits until then, and takes 4 + 30 µs: 88 µs are exposed.
    #[test]
    fn sum_waits_for_its_bucket_and_for_the_sum_before() {
        let [first, second] = [Ready { at: 100.0, bytes: 1e6 }, Ready { at: 200.0, bytes: 2e5 }];
        let timeline = Timeline::new(&[first, second], 200.0, &BUS, 4);
        assert_eq!(timeline.sums, [Sum { start: 100.0, end: 254.0 }, Sum { start: 254.0, end: 288.0 }]);
        assert_eq!((timeline.busy(), timeline.exposed()), (188.0, 88.0));
        // The first 60 µs earlier: it has ended when the second is complete, of which all is exposed.
        let early = Timeline::new(&[Ready { at: 40.0, ..first }, second], 200.0, &BUS, 4);
        assert_eq!(early.sums, [Sum { start: 40.0, end: 194.0 }, Sum { start: 200.0, end: 234.0 }]);
        assert_eq!((early.busy(), early.exposed()), (188.0, 34.0));
        // A backward pass that continues after the last bucket hides all.
        let long = Timeline::new(&[first, second], 300.0, &BUS, 4);
        assert_eq!((long.busy(), long.exposed()), (188.0, 0.0));
        // One card does not wait.
        let alone = Timeline::new(&[first, second], 200.0, &BUS, 1);
        assert_eq!((alone.busy(), alone.exposed()), (0.0, 0.0));
    }
}
