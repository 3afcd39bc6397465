//! After warm-up the loader allocates nothing large: batches are recycled and each thread keeps its buffers.

use effnet::data::{Batch, CropMode, Form, Loader, LoaderConfig, Policy};

use crate::common::data::{self, LOADER};
use crate::{alone, large_allocations};

/// 20,000 samples, so that a permutation alone is larger than the bound; the run crosses the ends of ten epochs.
#[test]
fn loader_allocates_nothing_large_after_warm_up() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    data::pack_grey(dir.path(), 20_000, 10, 12, 1 << 20);
    let source = data::open(dir.path());
    let edited = Policy { color_jitter: 0.3, random_erasing: 0.5, ..Policy::STANDARD };
    for (crop, form, policy) in [
        (CropMode::Pad, Form::Squares, Policy::STANDARD),
        (CropMode::Resized, Form::Squares, edited),
        (CropMode::Pad, Form::Raw { images: 1_000 }, edited),
        (CropMode::Resized, Form::Raw { images: 2_000 }, Policy::STANDARD),
    ] {
        let augment = Some(policy);
        let config = LoaderConfig { batch: 2_000, crop, form, augment, steps: 40, threads: 2, ..LOADER };
        let mut loader = Loader::start(source.clone(), config).unwrap();
        // The caller's batch and three ahead: as many as ever exist at a time later.
        let held: Vec<Batch> = (0..4).map(|_| loader.next().unwrap().unwrap()).collect();
        held.into_iter().for_each(|batch| loader.recycle(batch));
        let mut steady = 0;
        for step in 4..40 {
            if step == 12 {
                steady = large_allocations();
                assert!(steady > 0, "the counter counts");
            }
            let batch = loader.next().unwrap().unwrap();
            loader.recycle(batch);
        }
        assert_eq!(large_allocations(), steady, "{crop}, {form:?}");
    }
}
