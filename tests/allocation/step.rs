//! A step allocates nothing large, on any thread, its own or the loader's.

use std::sync::atomic::AtomicBool;

use effnet::train::events::{Event, Reporter};
use effnet::train::{Recipe, RunOptions, train};

use crate::common::{data, training};
use crate::{alone, large_allocations, take_largest};

/// Counts from the end of step 5, when all buffers have been used once, to that of step 11.
#[derive(Default)]
struct Counts {
    steps: Vec<u64>,
    before: usize,
    within: Option<(usize, usize)>,
}

impl Reporter for &mut Counts {
    fn report(&mut self, event: Event) {
        match event {
            Event::Step(record) => {
                self.steps.push(record.step);
                if record.step == 5 {
                    self.before = large_allocations();
                    take_largest();
                } else if record.step == 11 {
                    self.within = Some((large_allocations() - self.before, take_largest()));
                }
            }
            Event::Evaluating { .. } => {
                assert!(
                    !(5..11).contains(&self.steps.len()),
                    "no evaluation belongs into the measured steps"
                );
            }
            _ => {}
        }
    }
}

#[test]
fn step_allocates_nothing_large() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("data");
    data::pack_grey(&set, 100, 10, 28, 1 << 20);
    let source = data::open(&set);
    // 32 images are 96 KiB of pixels: a new batch would be seen. Three steps an epoch.
    let recipe = Recipe {
        batch_size: 32,
        micro_batch: 16,
        epochs: 4.0,
        warmup_epochs: 0.0,
        eval_every: 100.0,
        ..training::recipe()
    };
    let options = RunOptions { loader_threads: 2, ..training::options(&dir.path().join("run")) };
    let mut counts = Counts::default();
    train(&recipe, &options, source, &mut &mut counts, &AtomicBool::new(false)).unwrap();
    assert_eq!(counts.steps, (1..=13).collect::<Vec<u64>>());
    let (large, largest) = counts.within.expect("step 11 was reported");
    assert_eq!(large, 0, "the largest allocation within the steps: {largest} bytes");
    assert!(largest > 0 && counts.before > 10, "the allocator counts nothing");
}
