//! What a pass works with: the arena, the state buffers, the threads and their scratch memory.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::exchange::Exchange;
use super::gemm::PackedWeights;
use super::memory::{Memory, State};
use super::simd::Element;
use super::workers::Workers;
use crate::ops::plan::ALIGNMENT;
use crate::ops::{Kind, NormUse, Param, Part, Pass, Precision, StepParams, Tensor};

/// How the CPU runs a pass.
pub trait OnCpu {
    /// What the pass needs beside its tensors.
    fn workspace<E: Element>(&self) -> WorkspaceFloats {
        WorkspaceFloats::default()
    }

    /// Runs the pass on activations and gradients that are stored as `E`.
    ///
    /// # Safety
    /// No other pass runs at the same time, and [`Context::check_apart`] has accepted this one.
    unsafe fn run<E: Element>(&self, cx: &Context);
}

/// The workspace of a pass, in floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceFloats {
    /// Shared by all threads: packed weights, partial sums per task.
    pub shared: usize,
    /// Of each thread: the block of rows that stays in its L2 cache.
    pub per_thread: usize,
}

/// Everything a pass may use.
pub struct Context {
    /// Present if several ranks train together. It stands before the state that its threads work on, so that it is
    /// dropped first.
    pub exchange: Option<Exchange>,
    pub arena: Memory,
    /// How activations and their gradients are stored.
    pub precision: Precision,
    pub offsets: Vec<Option<usize>>,
    pub state: State,
    /// True while forward passes take their weights from the EMA buffer.
    pub ema_weights: bool,
    pub step: StepParams,
    /// Steps that the run has skipped, on a GPU with loss scaling. A step that is skipped here ends the run.
    pub skipped: u32,
    /// What the update multiplies gradients by.
    pub clip: f32,
    pub workers: Workers,
    pub shared: Memory,
    pub packed: PackedWeights,
    pub scratch: Vec<Memory>,
    /// True while tasks use the scratch memory.
    pub scratch_in_use: AtomicBool,
}

impl Context {
    fn offset(&self, tensor: Tensor) -> usize {
        match self.offsets.get(tensor.id as usize) {
            Some(Some(offset)) => *offset,
            _ => panic!("tensor {} is not in the bound plan", tensor.id),
        }
    }

    /// # Panics
    /// If a tensor, gradient or running statistic that the pass writes overlaps another one of the pass. No plan and no
    /// parameter table has such a pass.
    pub fn check_apart(&self, pass: &Pass) {
        let overlap = |a: Range<usize>, b: Range<usize>| a.start < b.end && b.start < a.end;
        let place = |tensor: Tensor| {
            let bytes = element_bytes(self.precision, tensor.kind);
            self.offset(tensor)..self.offset(tensor) + bytes * tensor.elements
        };
        pass.tensors(&mut |written, writes| {
            let mut users = 0;
            if writes {
                pass.tensors(&mut |other, _| users += usize::from(overlap(place(written), place(other))));
            }
            assert!(users <= 1, "{}: tensor {} is not apart in the bound plan", pass.name(), written.id);
        });
        pass.gradients(&mut |own| {
            let mut users = 0;
            pass.gradients(&mut |other| users += usize::from(overlap(own.range(), other.range())));
            assert!(users <= 1, "{}: the gradient at {} is not apart", pass.name(), own.offset);
        });
        pass.parts(&mut |part| {
            if let Part::Norm { bn, used: NormUse::TakesStatistics { .. } } = part {
                let apart = !overlap(bn.running_mean.range(), bn.running_var.range());
                assert!(apart, "{}: the running statistics are not apart", pass.name());
            }
        });
    }

    /// A tensor of floats to read.
    pub fn read(&self, tensor: Tensor) -> &[f32] {
        debug_assert_ne!(tensor.kind, Kind::Activation);
        // SAFETY: the callers of `write` promise that nothing reads a tensor while they write it.
        unsafe { self.arena.floats(self.offset(tensor), tensor.elements) }
    }

    /// A tensor of floats to write, for a pass.
    ///
    /// # Safety
    /// Nothing else uses the tensor while the slice lives. In a pass, this follows from the promise of [`OnCpu::run`]
    /// if the pass takes the tensor only once.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write(&self, tensor: Tensor) -> &mut [f32] {
        debug_assert_ne!(tensor.kind, Kind::Activation);
        // SAFETY: the caller's promise.
        unsafe { self.arena.floats_mut(self.offset(tensor), tensor.elements) }
    }

    /// An activation, or a gradient at one, to read.
    pub fn activation<E: Element>(&self, tensor: Tensor) -> &[E] {
        self.check_stored_as::<E>(tensor);
        // SAFETY: as for `read`.
        unsafe { self.arena.elements(self.offset(tensor), tensor.elements) }
    }

    /// An activation, or a gradient at one, to write.
    ///
    /// # Safety
    /// As for [`Context::write`].
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write_activation<E: Element>(&self, tensor: Tensor) -> &mut [E] {
        self.check_stored_as::<E>(tensor);
        // SAFETY: the caller's promise.
        unsafe { self.arena.elements_mut(self.offset(tensor), tensor.elements) }
    }

    fn check_stored_as<E: Element>(&self, tensor: Tensor) {
        debug_assert_eq!(tensor.kind, Kind::Activation);
        assert_eq!(
            size_of::<E>(),
            self.precision.bytes(),
            "the activations are stored as {}",
            self.precision
        );
    }

    /// A tensor to write, between passes.
    pub fn tensor_mut(&mut self, tensor: Tensor) -> &mut [f32] {
        // SAFETY: `self` is borrowed mutably for as long as the slice lives.
        unsafe { self.write(tensor) }
    }

    /// A weight of the forward pass: raw or EMA.
    pub fn weight(&self, param: Param) -> &[f32] {
        let buffer = if self.ema_weights { &self.state.ema } else { &self.state.parameters };
        // SAFETY: the callers of `parameter_mut` promise that nothing reads what they write. Only the update writes
        // other parameters, and it reads none through here.
        unsafe { buffer.floats(param.offset * 4, param.elements) }
    }

    /// A tensor of the raw parameters to write: running statistics.
    ///
    /// # Safety
    /// As for [`Context::write`]: a pass takes each parameter once.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn parameter_mut(&self, param: Param) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.state.parameters.floats_mut(param.offset * 4, param.elements) }
    }

    /// The gradient of a parameter, to be added to.
    ///
    /// # Safety
    /// As for [`Context::write`]: a pass takes each gradient once.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn gradient_mut(&self, param: Param) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { self.state.gradients.floats_mut(param.offset * 4, param.elements) }
    }

    /// The shared workspace, cut into pieces of the given lengths (each rounded up to a cache line).
    ///
    /// # Safety
    /// As for [`Context::write`]: a pass takes the workspace once.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn workspace<const N: usize>(&self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let mut offset = 0;
        lengths.map(|len| {
            let start = offset;
            offset += (len * 4).next_multiple_of(ALIGNMENT);
            // SAFETY: the pieces do not overlap, and the caller takes the workspace once.
            unsafe { self.shared.floats_mut(start, len) }
        })
    }

    /// Runs `task(number, scratch)` for each number below `tasks` on all threads, in no particular order.
    ///
    /// `scratch` is the running thread's own memory, with undefined contents. The threads take the numbers from a
    /// counter, which allocates nothing.
    ///
    /// # Panics
    /// If a task calls this: its thread's scratch memory is in use.
    pub fn parallel(&self, tasks: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        let _in_use = InUse::new(&self.scratch_in_use);
        let scratch = |thread: usize| {
            let memory = &self.scratch[thread];
            // SAFETY: a thread uses only its own scratch, and no other call of `parallel` is in progress.
            unsafe { memory.floats_mut(0, memory.bytes() / 4) }
        };
        if tasks <= 1 || self.threads() == 1 {
            return (0..tasks).for_each(|number| task(number, scratch(0)));
        }
        let next = AtomicUsize::new(0);
        self.workers.run(&|thread| {
            let own = scratch(thread);
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
        self.workers.count()
    }
}

/// Bytes of one element.
pub fn element_bytes(precision: Precision, kind: Kind) -> usize {
    if kind == Kind::Activation { precision.bytes() } else { 4 }
}

/// Marks the scratch memory as in use while it lives.
struct InUse<'a>(&'a AtomicBool);

impl InUse<'_> {
    fn new(flag: &AtomicBool) -> InUse<'_> {
        assert!(!flag.swap(true, Ordering::Acquire), "a task cannot start tasks");
        InUse(flag)
    }
}

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
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
