//! After warm-up the loader allocates nothing large: batches are recycled and each thread keeps its buffers.

mod data_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use effnet::data::{Batch, CropMode, Form, Loader, LoaderConfig, Policy, Share, Split};

const LARGE: usize = 64 << 10;
static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if size >= LARGE {
            COUNT.fetch_add(1, Ordering::SeqCst);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// 20,000 samples, so that a permutation alone is larger than the bound; the run crosses the ends of ten epochs.
#[test]
fn loader_allocates_nothing_large_after_warm_up() {
    let dir = tempfile::tempdir().unwrap();
    data_support::pack_grey(dir.path(), 20_000, 10, 12, 1 << 20);
    let source = data_support::open(dir.path());
    for (crop, form) in [
        (CropMode::Pad, Form::Squares),
        (CropMode::Resized, Form::Squares),
        (CropMode::Pad, Form::Raw { images: 1_000 }),
        (CropMode::Resized, Form::Raw { images: 2_000 }),
    ] {
        let config = LoaderConfig {
            split: Split::Train,
            batch: 2_000,
            share: Share::WHOLE,
            resolution: 32,
            crop,
            form,
            augment: Some(Policy::Standard),
            seed: 0,
            first_step: 0,
            steps: 40,
            threads: 2,
            ahead: 3,
            processors: Vec::new(),
        };
        let mut loader = Loader::start(source.clone(), config).unwrap();
        // The caller's batch and three ahead: as many as ever exist at a time later.
        let held: Vec<Batch> = (0..4).map(|_| loader.next().unwrap().unwrap()).collect();
        held.into_iter().for_each(|batch| loader.recycle(batch));
        let mut steady = 0;
        for step in 4..40 {
            if step == 12 {
                steady = COUNT.load(Ordering::SeqCst);
                assert!(steady > 0, "the counter counts");
            }
            let batch = loader.next().unwrap().unwrap();
            loader.recycle(batch);
        }
        assert_eq!(COUNT.load(Ordering::SeqCst), steady, "{crop}, {form:?}");
    }
}
