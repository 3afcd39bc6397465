//! A step on several cards: when its buckets are complete, and how long it takes with their sums.
//!
//! A card's own time is the bound of each launch and [what a launch costs](LAUNCH) besides. So the backward pass is
//! shorter here than it will be, and hides less.

use effnet::model::Variant;
use effnet::ops::cuda::Precision;
use effnet::ops::{Buckets, Result};

use crate::card::{Card, LAUNCH};
use crate::exchange::{Bus, Ready, Timeline};
use crate::step::{self, Case, Recorded};
use crate::work::Work;

/// A card among equal ones: its number among [`CARDS`](crate::card::CARDS), and how they are connected, worst and best case.
pub struct Machine {
    pub card: usize,
    pub joined: &'static str,
    pub buses: [Bus; 2],
}

/// Base and hop: of a ring, "Simple" protocol, in NCCL's `src/graph/tuning.cc`; in the worst case both are twice that. The rates'
/// sources are in docs/scaling.md.
pub const MACHINES: [Machine; 2] = [
    Machine {
        card: 1,
        joined: "PCIe through host memory",
        buses: [Bus { base: 16.8, hop: 11.4, rate: 4.0 }, Bus { base: 8.4, hop: 5.7, rate: 10.0 }],
    },
    Machine {
        card: 0,
        joined: "NVLink and NVSwitch",
        buses: [Bus { base: 16.8, hop: 6.8, rate: 370.0 }, Bus { base: 8.4, hop: 3.4, rate: 480.0 }],
    },
];

/// The work of a card in a step: equal micro-batches.
pub struct Load {
    pub case: Case,
    pub micro_batches: usize,
}

impl Load {
    pub fn images(&self) -> usize {
        self.case.images * self.micro_batches
    }
}

/// What is predicted.
pub fn loads() -> [Load; 5] {
    let load = |model: Variant, images, micro_batches| {
        let side = model.scaling().resolution;
        Load { case: Case::new(model, side, images, Precision::Fp16), micro_batches }
    };
    [
        load(Variant::B0, 512, 1),
        load(Variant::B0, 64, 1),
        load(Variant::B0, 64, 8),
        load(Variant::B7, 8, 1),
        load(Variant::B7, 8, 8),
    ]
}

/// A network's step, recorded.
pub struct Step {
    pub case: Case,
    pub passes: Vec<Recorded>,
    pub buckets: Buckets,
    trainable: usize,
    /// Bytes that go along with the last bucket: running statistics, and the step's figures.
    along: f64,
    /// Of each bucket, the first tensor in it.
    pub first: Vec<String>,
}

impl Step {
    pub fn record(case: Case) -> Result<Step> {
        let (buckets, table) = step::buckets(case)?;
        let first = |start| table.entries().iter().find(|e| e.offset == start).map(|e| e.name.clone());
        let first =
            buckets.iter().map(|(_, bucket)| first(bucket.elements.start).unwrap_or_default()).collect();
        let (trainable, statistics) = (table.trainable(), table.total() - table.trainable());
        let along = (4 * statistics + 16) as f64;
        Ok(Step { case, passes: step::record(case)?, buckets, trainable, along, first })
    }

    /// Bytes of each bucket, with those that go along.
    pub fn bytes(&self) -> Vec<f64> {
        let own = self.buckets.iter().map(|(_, bucket)| (4 * bucket.elements.len()) as f64);
        let last = self.buckets.iter().len() - 1;
        own.enumerate()
            .map(|(number, bytes)| if number == last { bytes + self.along } else { bytes })
            .collect()
    }

    /// A step on one card, where kernels take `slow` times their bound.
    pub fn alone(&self, card: &Card, micro_batches: usize, slow: f64) -> Alone {
        let time = |work: &Work| slow * card.bound(work) + LAUNCH;
        let mut now = 0.0;
        // The input comes before the passes, the update after them.
        let ends: Vec<f64> = self
            .passes
            .iter()
            .map(|pass| {
                now += pass.launches.iter().map(|(_, work)| time(work)).sum::<f64>();
                now
            })
            .collect();
        let backward_end = ends[ends.len() - 2];
        let before = (micro_batches - 1) as f64 * backward_end;
        let complete = self.buckets.iter().map(|(pass, _)| before + ends[pass + 1]).collect();
        // Several cards search the sums again for numbers that are not finite.
        let look = time(&Work { bytes: 4.0 * self.trainable as f64, ..Work::default() });
        let update = ends[ends.len() - 1] - backward_end;
        Alone { complete, backward_end: before + backward_end, update, look }
    }

    /// A step on several cards.
    pub fn among(&self, alone: &Alone, bus: &Bus, cards: usize) -> Among {
        let buckets = alone.complete.iter().zip(self.bytes());
        let buckets: Vec<Ready> = buckets.map(|(&at, bytes)| Ready { at, bytes }).collect();
        let timeline = Timeline::new(&buckets, alone.backward_end, bus, cards);
        let (sums, exposed) = (timeline.busy(), timeline.exposed());
        let own = alone.step() + if cards > 1 { alone.look } else { 0.0 };
        Among { sums, exposed, step: own + exposed, unhidden: own + sums, alone: alone.step() }
    }
}

/// Microseconds of a step on one card: when each bucket is complete, when the backward pass ends, the update, and the
/// search of the sums that several cards need.
pub struct Alone {
    pub complete: Vec<f64>,
    pub backward_end: f64,
    pub update: f64,
    look: f64,
}

impl Alone {
    pub fn step(&self) -> f64 {
        self.backward_end + self.update
    }
}

/// Microseconds of a step on several cards; `unhidden` if no sum overlapped the backward pass.
pub struct Among {
    pub sums: f64,
    pub exposed: f64,
    pub step: f64,
    unhidden: f64,
    alone: f64,
}

impl Among {
    pub fn efficiency(&self) -> f64 {
        100.0 * self.alone / self.step
    }
    pub fn efficiency_unhidden(&self) -> f64 {
        100.0 * self.alone / self.unhidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::CARDS;

    /// Buckets hold every gradient once, and the statistics; each is complete within the backward pass, the last at its
    /// end; and more cards are never faster each.
    #[test]
    fn step_of_several_cards_is_not_shorter_than_that_of_one() {
        let step = Step::record(loads()[1].case).unwrap();
        let bytes: f64 = step.bytes().iter().sum();
        // B0: 5,288,548 parameters; 42,016 running means and variances.
        assert_eq!(bytes, 4.0 * (5_288_548.0 + 42_016.0) + 16.0);
        for machine in &MACHINES {
            let alone = step.alone(&CARDS[machine.card], 2, 1.0);
            assert!(alone.complete.is_sorted());
            assert_eq!(alone.complete.last(), Some(&alone.backward_end));
            // The first bucket of the second micro-batch is complete in the second half.
            assert!(alone.complete[0] > alone.backward_end / 2.0);
            for bus in &machine.buses {
                let among = [1, 2, 4, 8].map(|cards| step.among(&alone, bus, cards));
                assert!(among.is_sorted_by(|a, b| a.step < b.step));
                assert_eq!(among[0].step, alone.step());
                assert!(among.iter().all(|a| a.step <= a.unhidden && a.exposed <= a.sums));
            }
        }
    }
}
