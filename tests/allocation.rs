//! A step allocates nothing of 64 KiB or more, on any thread, its own or the loader's.

mod data_support;
mod train_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use effnet::train::events::{Reporter, StepRecord};
use effnet::train::{Recipe, RunOptions, train};

const LARGE: usize = 64 << 10;
static ARMED: AtomicBool = AtomicBool::new(false);
static INSIDE: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
static OUTSIDE: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count(size: usize) {
    if ARMED.load(Ordering::SeqCst) {
        LARGEST.fetch_max(size, Ordering::SeqCst);
        INSIDE.fetch_add(usize::from(size >= LARGE), Ordering::SeqCst);
    } else {
        OUTSIDE.fetch_add(usize::from(size >= LARGE), Ordering::SeqCst);
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Arms the counter between the end of step 5, when all buffers have been round once, and that of step 11.
struct Armed(Mutex<Vec<u64>>);

impl Reporter for &Armed {
    fn step(&mut self, record: &StepRecord) {
        ARMED.store((5..11).contains(&record.step), Ordering::SeqCst);
        self.0.lock().unwrap().push(record.step);
    }
    fn evaluating(&mut self, _: u64) {
        assert!(!ARMED.load(Ordering::SeqCst), "no evaluation belongs into the measured steps");
    }
}

#[test]
fn a_step_allocates_nothing_large() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    data_support::pack_grey(&data, 100, 10, 28, 1 << 20);
    let source = data_support::open(&data);
    // 32 images are 96 KiB of pixels: a batch that is made anew would be seen. Three steps an epoch.
    let recipe = Recipe {
        batch_size: 32,
        micro_batch: 16,
        epochs: 4.0,
        warmup_epochs: 0.0,
        eval_every: 100.0,
        ..train_support::recipe()
    };
    let options = RunOptions { loader_threads: 2, ..train_support::options(&dir.path().join("run")) };
    let armed = Armed(Mutex::default());
    train(&recipe, &options, source, &mut &armed, &AtomicBool::new(false)).unwrap();
    assert_eq!(*armed.0.lock().unwrap(), (1..=13).collect::<Vec<u64>>());
    let largest = LARGEST.load(Ordering::SeqCst);
    assert_eq!(INSIDE.load(Ordering::SeqCst), 0, "the largest allocation within the steps: {largest} bytes");
    assert!(largest > 0 && OUTSIDE.load(Ordering::SeqCst) > 10, "the counter counts nothing");
}
