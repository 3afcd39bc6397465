//! What a pass works with: the arena, the state buffers, the threads and their scratch memory.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::exchange::Exchange;
use crate::ops::{Param, StepParams, Tensor, plan::ALIGNMENT};

/// Scratch floats that a pass needs beside its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Seen by all threads: packed weights, partial sums per task.
    pub shared: usize,
    /// Each thread's own: the block of rows that stays in its L2 cache.
    pub per_thread: usize,
}

/// Memory that is allocated once, aligned, and handed out in pieces that the caller knows to be disjoint.
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

// SAFETY: all access goes through `unsafe` functions whose callers promise that no element is written by
// one thread while another uses it.
unsafe impl Sync for Memory {}

impl Memory {
    /// Zeroed memory for at least `bytes`.
    pub fn new(bytes: usize) -> Memory {
        let bytes = bytes.next_multiple_of(ALIGNMENT);
        let alignment = if bytes >= 2 * HUGE { HUGE } else { ALIGNMENT };
        // Zeroed pages come from the system untouched, so a large arena costs nothing until it is used. That
        // is so only up to the alignment that malloc gives anyway, hence the room to align by hand.
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
    /// Nobody may write these elements while the slice lives.
    pub unsafe fn floats(&self, byte_offset: usize, elements: usize) -> &[f32] {
        assert!(byte_offset.is_multiple_of(4) && byte_offset + elements * 4 <= self.bytes);
        let start = self.block.as_ptr().cast::<f32>();
        // SAFETY: in bounds and aligned by the assertion; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(start.add(self.first + byte_offset / 4), elements) }
    }

    /// # Safety
    /// Nobody else may use these elements while the slice lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn floats_mut(&self, byte_offset: usize, elements: usize) -> &mut [f32] {
        assert!(byte_offset.is_multiple_of(4) && byte_offset + elements * 4 <= self.bytes);
        let start = UnsafeCell::raw_get(self.block.as_ptr());
        // SAFETY: in bounds and aligned by the assertion; the caller rules out other users.
        unsafe { std::slice::from_raw_parts_mut(start.add(self.first + byte_offset / 4), elements) }
    }

    /// Asks the system to back a large block by huge pages. The passes stream through hundreds of megabytes:
    /// with pages of 4 KiB they wait for address translation (measured on one core of a virtual machine:
    /// 16 GB/s of reading instead of 31). It is advice, so a refusal is no error.
    fn ask_for_huge_pages(&self) {
        #[cfg(target_os = "linux")]
        if self.bytes >= 2 * HUGE {
            let start = self.block[self.first..].as_ptr().cast_mut().cast();
            // SAFETY: the range lies inside this allocation, and the advice changes no contents.
            unsafe { libc::madvise(start, self.bytes, libc::MADV_HUGEPAGE) };
        }
    }
}

/// A slice that tasks write to at the same time, each its own part.
#[derive(Clone, Copy)]
pub struct Shared<'a, T = f32> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the only way to the elements is the unsafe `part`, whose callers promise disjointness.
unsafe impl<T: Send> Send for Shared<'_, T> {}
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), life: std::marker::PhantomData }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first element, for kernels whose parts are not contiguous. Writing through it is under the same
    /// promise as [`Shared::part`].
    pub fn start(&self) -> *mut T {
        self.start
    }

    /// # Safety
    /// No two parts that live at the same time may overlap.
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

/// Everything a pass may use.
pub struct Context {
    /// Where ranks share the work. Before the state that it works on, so that it is dropped first.
    pub exchange: Option<Exchange>,
    pub arena: Memory,
    pub offsets: Vec<Option<usize>>,
    pub state: State,
    /// True while forward passes take their weights from the EMA buffer.
    pub ema_weights: bool,
    pub step: StepParams,
    pub pool: Arc<rayon::ThreadPool>,
    pub shared: Memory,
    pub scratch: Vec<Memory>,
}

impl Context {
    fn offset(&self, tensor: Tensor) -> usize {
        match self.offsets.get(tensor.id as usize) {
            Some(Some(offset)) => *offset,
            _ => panic!("tensor {} is not in the bound plan", tensor.id),
        }
    }

    /// A tensor to read.
    pub fn read(&self, tensor: Tensor) -> &[f32] {
        // SAFETY: a pass never writes what it reads: the plan keeps tensors of one pass disjoint.
        unsafe { self.arena.floats(self.offset(tensor), tensor.elements) }
    }

    /// A tensor to write. Each tensor of a pass is taken once.
    #[allow(clippy::mut_from_ref)]
    pub fn write(&self, tensor: Tensor) -> &mut [f32] {
        // SAFETY: as for `read`; `Context` is not handed to two passes at a time (the passes take &mut Ops).
        unsafe { self.arena.floats_mut(self.offset(tensor), tensor.elements) }
    }

    /// A weight of the forward pass: raw or EMA.
    pub fn weight(&self, param: Param) -> &[f32] {
        let buffer = if self.ema_weights { &self.state.ema } else { &self.state.parameters };
        // SAFETY: weights change only in the update pass, which reads none through here.
        unsafe { buffer.floats(param.offset * 4, param.elements) }
    }

    /// A tensor of the raw parameters to write: running statistics.
    #[allow(clippy::mut_from_ref)]
    pub fn parameter_mut(&self, param: Param) -> &mut [f32] {
        // SAFETY: only the pass that owns this batch norm touches its running statistics.
        unsafe { self.state.parameters.floats_mut(param.offset * 4, param.elements) }
    }

    /// The gradient of a parameter, to be added to.
    #[allow(clippy::mut_from_ref)]
    pub fn gradient_mut(&self, param: Param) -> &mut [f32] {
        // SAFETY: each parameter's gradient belongs to one pass.
        unsafe { self.state.gradients.floats_mut(param.offset * 4, param.elements) }
    }

    /// The shared workspace, cut into pieces of the given lengths (each rounded up to a cache line).
    #[allow(clippy::mut_from_ref)]
    pub fn workspace<const N: usize>(&self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let mut offset = 0;
        lengths.map(|len| {
            let start = offset;
            offset += (len * 4).next_multiple_of(ALIGNMENT);
            // SAFETY: the pieces do not overlap, and one pass runs at a time.
            unsafe { self.shared.floats_mut(start, len) }
        })
    }

    /// Runs `task(number, scratch)` for each number below `tasks` on all threads, in no particular order.
    ///
    /// `scratch` is the running thread's own memory, with undefined contents. Tasks are handed out by a
    /// counter, which allocates nothing.
    pub fn parallel(&self, tasks: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        let scratch = |thread: usize| {
            let memory = &self.scratch[thread];
            // SAFETY: a thread uses its own scratch, and `parallel` does not nest.
            unsafe { memory.floats_mut(0, memory.bytes() / 4) }
        };
        if tasks <= 1 || self.scratch.len() == 1 {
            return (0..tasks).for_each(|number| task(number, scratch(0)));
        }
        let next = AtomicUsize::new(0);
        self.pool.broadcast(|thread| {
            let own = scratch(thread.index());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= tasks {
                    break;
                }
                task(number, own);
            }
        });
    }

    pub fn threads(&self) -> usize {
        self.scratch.len()
    }
}

/// Floats that [`Context::workspace`] takes for these lengths.
pub fn workspace_floats(lengths: &[usize]) -> usize {
    lengths.iter().map(|len| len.next_multiple_of(ALIGNMENT / 4)).sum()
}

/// The rows of part `number` of `parts` nearly equal parts of `rows`.
pub fn part_of(rows: usize, parts: usize, number: usize) -> Range<usize> {
    rows * number / parts..rows * (number + 1) / parts
}
