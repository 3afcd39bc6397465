//! What is allocated once everything runs: nothing large.
//!
//! The allocator counts for the whole process, so these tests have a program of their own and run one at a time.

#[path = "../common/mod.rs"]
mod common;
mod loader;
mod step;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Bytes from which on an allocation is large.
const LARGE: usize = 64 << 10;
static LARGE_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

fn count(size: usize) {
    LARGEST.fetch_max(size, Ordering::SeqCst);
    LARGE_ALLOCATIONS.fetch_add(usize::from(size >= LARGE), Ordering::SeqCst);
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

/// Large allocations of the process so far.
fn large_allocations() -> usize {
    LARGE_ALLOCATIONS.load(Ordering::SeqCst)
}

/// Bytes of the largest allocation since this function was last called.
fn take_largest() -> usize {
    LARGEST.swap(0, Ordering::SeqCst)
}

/// Keeps the other tests from allocating.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
