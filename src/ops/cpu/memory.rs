//! The memory of the CPU: blocks that are allocated once, slices that several threads write to, the state buffers.

use std::cell::UnsafeCell;
use std::ops::Range;

use bytemuck::Pod;

use crate::ops::plan::ALIGNMENT;

/// An aligned block that is allocated once and used in pieces. The callers keep the pieces apart.
///
/// It is made of `UnsafeCell`s, so that tasks may write to disjoint parts of it at the same time.
pub struct Memory {
    block: Box<[UnsafeCell<f32>]>,
    /// The first aligned element of the block.
    first: usize,
    bytes: usize,
}

/// Size of a huge page, to which large memory is aligned.
const HUGE: usize = 2 << 20;

// SAFETY: all access goes through `unsafe` functions. Their callers promise that no thread writes an element while
// another one uses it.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory for at least `bytes`.
    pub fn new(bytes: usize) -> Memory {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let alignment = if bytes >= 2 * HUGE { HUGE } else { ALIGNMENT };
        // The system maps zeroed pages on first use, so a large arena costs nothing until then. An allocation with a
        // larger alignment than malloc's would be zeroed by hand, so the block is longer and aligned here.
        let zeroed = vec![0.0f32; (bytes + alignment) / 4].into_boxed_slice();
        // SAFETY: an `UnsafeCell` has the layout of what it holds.
        let block = unsafe { Box::from_raw(Box::into_raw(zeroed) as *mut [UnsafeCell<f32>]) };
        let address = block.as_ptr() as usize;
        let first = (address.next_multiple_of(alignment) - address) / 4;
        let memory = Memory { block, first, bytes };
        memory.ask_for_huge_pages();
        memory
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// # Safety
    /// Nothing writes these elements while the slice lives.
    pub unsafe fn floats(&self, byte_offset: usize, elements: usize) -> &[f32] {
        // SAFETY: the caller's promise.
        unsafe { self.elements(byte_offset, elements) }
    }

    /// # Safety
    /// Nothing else uses these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn floats_mut(&self, byte_offset: usize, elements: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.elements_mut(byte_offset, elements) }
    }

    /// # Safety
    /// Nothing writes these elements while the slice lives.
    pub unsafe fn elements<T: Pod>(&self, byte_offset: usize, elements: usize) -> &[T] {
        let start = self.place::<T>(byte_offset, elements);
        // SAFETY: in bounds and aligned by `place`, any bits are a number; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(start, elements) }
    }

    /// # Safety
    /// Nothing else uses these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn elements_mut<T: Pod>(&self, byte_offset: usize, elements: usize) -> &mut [T] {
        let start = self.place::<T>(byte_offset, elements);
        // SAFETY: in bounds and aligned by `place`, any bits are a number; the caller rules out other users.
        unsafe { std::slice::from_raw_parts_mut(start, elements) }
    }

    /// Where elements lie, which are in bounds and aligned.
    fn place<T: Pod>(&self, byte_offset: usize, elements: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(byte_offset.is_multiple_of(size) && byte_offset + elements * size <= self.bytes);
        let start = UnsafeCell::raw_get(self.block.as_ptr()).wrapping_add(self.first).cast::<T>();
        start.wrapping_byte_add(byte_offset)
    }

    /// Asks the system to back a large block by huge pages. The passes stream through hundreds of megabytes:
    /// with pages of 4 KiB they wait for address translation (measured on one core of a virtual machine:
    /// 16 GB/s of reading instead of 31). This is advice, so a refusal is no error.
    fn ask_for_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if self.bytes >= 2 * HUGE {
            let start = self.block[self.first..].as_ptr().cast_mut().cast();
            // SAFETY: the range lies inside this allocation, and the advice changes no contents.
            unsafe { libc::madvise(start, self.bytes, libc::MADV_HUGEPAGE) };
        }
    }
}

/// A slice that tasks write to at the same time, each to its own part.
#[derive(Clone, Copy)]
pub struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: as for `&mut [T]`, which `part` cuts into pieces: its callers promise that the pieces are disjoint.
unsafe impl<T: Send> Send for Shared<'_, T> {}
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Borrows the slice mutably, so that nothing but this value and its copies can use it.
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element, for kernels whose parts are not contiguous. Writes through this pointer need the same promise
    /// as [`Shared::part`], and stay within the slice.
    pub fn start(&self) -> *mut T {
        self.start
    }

    /// # Safety
    /// Parts that live at the same time do not overlap.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// The flat state buffers (see [`crate::ops::Buffer`]).
pub struct State {
    pub parameters: Memory,
    pub gradients: Memory,
    pub slots: Vec<Memory>,
    pub decay_factors: Memory,
    pub ema: Memory,
    /// Trainable elements: the length of gradients, slots and decay factors.
    pub trainable: usize,
    /// All elements: the length of parameters and EMA.
    pub total: usize,
}
