//! PyTorch's files of weights: those that torch.save wrote, those that somebody wrote to do harm, and damaged ones.
//!
//! The allocator counts what each thread holds, so these tests have a program of their own.

mod damage;
mod files;
mod form;
mod hostile;
mod write;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use effnet::model::formats::pth::{self, PthError};
use effnet::model::formats::stored::Tensors;

struct Counting;

thread_local! {
    /// Bytes that this thread holds, and the most that it held since [`memory_of`] began.
    static HELD: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

fn change(more: usize, less: usize) {
    // A value that another thread made may be dropped here, so the number may pass 0.
    HELD.set(HELD.get().wrapping_add(more).wrapping_sub(less));
    if HELD.get() <= isize::MAX as usize {
        MOST.set(MOST.get().max(HELD.get()));
    }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        change(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        change(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While it moves, both blocks exist.
        change(size, 0);
        change(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        change(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A function's result, and the most bytes that it held at once.
fn memory_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    MOST.set(before);
    let result = work();
    (result, MOST.get().wrapping_sub(before))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pth")
}

fn read(bytes: &[u8]) -> Result<Tensors, PthError> {
    pth::read(&mut Cursor::new(bytes), bytes.len() as u64)
}

/// Why a file is refused: a line that makes sense after its name, and that holds no control characters.
fn refused(bytes: &[u8]) -> String {
    let message = match read(bytes) {
        Ok(tensors) => panic!("{} tensors are read", tensors.len()),
        Err(error) => error.to_string(),
    };
    assert!(!message.chars().any(char::is_control) && message.len() < 400, "{message}");
    message
}
