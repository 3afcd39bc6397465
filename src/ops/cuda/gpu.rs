//! What the engine needs from a GPU: memory, launches, graphs, a second stream for transfers, a third for collectives.
//!
//! The engine is generic over [`Gpu`]. In the product it is NVIDIA's driver ([`super::driver`]); in tests it is also
//! the host harness, which runs the same kernels on the CPU. Everything is enqueued on one compute stream, in
//! order, and returns at once, unless a method says that it waits.
//!
//! Collectives run on their own stream, in parallel with the computation enqueued after them.
//! [`Gpu::collective_begin`] makes them wait for earlier computation, [`Gpu::collective_end`] makes later computation
//! wait for them. Every begin has an end, also within a captured graph. All ranks enqueue the same collectives in the
//! same order.
//!
//! Addresses passed to a GPU come from its own allocations.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use crate::host_bytes::{HostAllocator, HostBytes};
use crate::ops::Result;
use crate::parallel::Group;
pub use crate::parallel::nccl::Reduce;

/// An address in device memory; 0 is null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    pub const NULL: Address = Address(0);

    /// The address `bytes` further.
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// Properties of a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Of a multiprocessor, in Hz; 0 if the driver does not say.
    pub clock: u64,
    /// Bytes a second that the memory moves at most; 0 if the driver does not say.
    pub memory_speed: u64,
    /// Maximum bytes of shared memory of one block.
    pub shared_per_block: usize,
    /// Total bytes of device memory.
    pub memory: u64,
}

impl Properties {
    /// Bytes that the memory moves in the time in which the multiprocessors issue an instruction of a warp: each issues
    /// four a cycle. None if unknown.
    pub fn balance(&self) -> Option<f64> {
        let issued = 4 * u64::from(self.multiprocessors) * self.clock;
        (issued > 0 && self.memory_speed > 0).then(|| self.memory_speed as f64 / issued as f64)
    }
}

/// One field of an argument struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// One launch without the values of its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    /// Threads of a block, as many as the kernel was compiled for.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Layout of the argument struct in Rust.
    pub fields: &'static [Field],
    /// Its size.
    pub size: usize,
}

/// A captured sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub usize);

/// Bytes in memory from [`Gpu::host_memory`], and where they go in the device's buffer.
#[derive(Clone, Debug)]
pub struct Held {
    pub memory: HostBytes,
    pub bytes: Range<usize>,
    pub to: usize,
}

/// A pinned buffer on the host with a buffer on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging(pub usize);

/// Elements to combine over all ranks. Afterwards they are equal on all ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub at: Address,
    pub elements: usize,
    pub how: Reduce,
}

/// A moment in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub usize);

pub trait Gpu: Send {
    fn properties(&self) -> &Properties;
    /// Its PCI address such as `0000:3b:00.0`, if known.
    fn place(&self) -> Option<String> {
        None
    }
    /// Free bytes of device memory.
    fn available(&mut self) -> Result<u64>;

    /// Zeroed device memory, aligned to 256 bytes, freed with the GPU. Not while capturing.
    ///
    /// # Errors
    /// Out of memory.
    fn allocate(&mut self, bytes: usize) -> Result<Address>;
    /// Copies from the host and waits until `bytes` may be changed again. Not while capturing.
    fn write(&mut self, to: Address, bytes: &[u8]) -> Result;
    /// Waits for everything enqueued before and copies to the host.
    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result;
    /// Fills device memory with a byte.
    fn fill(&mut self, to: Address, value: u8, bytes: usize) -> Result;
    /// Copies within the device.
    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result;

    /// Enqueues a kernel.
    ///
    /// # Errors
    /// An unknown kernel, another layout or block size than the kernel's, or too much shared memory. Then nothing is
    /// launched.
    ///
    /// # Safety
    /// `arguments` points to `launch.size` bytes laid out as `launch.fields` says, and every address in them is
    /// memory that the kernel may use.
    unsafe fn launch(&mut self, launch: &Launch, arguments: *const c_void) -> Result;
    /// Waits for everything enqueued.
    fn synchronise(&mut self) -> Result;

    /// Whether sequences are captured as graphs. Where not, they are enqueued anew each time.
    fn captures(&self) -> bool {
        true
    }
    /// From here on launches, fills and device copies are recorded instead of run. All kernels were launched before:
    /// code cannot be loaded in a capture.
    fn begin_capture(&mut self) -> Result;
    /// Ends recording.
    fn end_capture(&mut self) -> Result<Graph>;
    /// Enqueues a recorded graph.
    fn launch_graph(&mut self, graph: Graph) -> Result;
    /// Frees a graph, which may still run.
    fn free_graph(&mut self, graph: Graph);

    /// Allocates a pair of buffers of these sizes.
    fn staging(&mut self, device: usize, host: usize) -> Result<Staging>;
    /// Memory of the host for [`Held`]; none if transfers from other memory than stagings are not faster.
    fn host_memory(&self) -> Option<HostAllocator> {
        None
    }
    /// Frees such a pair, after everything enqueued. Graphs that use it must be freed before.
    fn free_staging(&mut self, staging: Staging) -> Result;
    /// The device's buffer.
    fn staging_address(&self, staging: Staging) -> Address;
    /// The host's buffer. Waits for the last transfer from or into it.
    fn staging_host(&mut self, staging: Staging) -> Result<&mut [u8]>;
    /// Starts to copy the first `bytes`, and those that are held elsewhere, to the device, in parallel with the compute
    /// stream, after that stream has [released](Gpu::staging_release) the device's buffer. The rest of the device's
    /// buffer is then undefined.
    fn staging_send(&mut self, staging: Staging, bytes: usize, held: Option<Held>) -> Result;
    /// Gives up the memory that the last [`Gpu::staging_send`] holds, if its bytes have arrived.
    fn staging_let_go(&mut self, staging: Staging) -> Result;
    /// Work enqueued from here on waits until the last [`Gpu::staging_send`] has arrived.
    fn staging_acquire(&mut self, staging: Staging) -> Result;
    /// The device's buffer may be overwritten once the work enqueued so far is done.
    fn staging_release(&mut self, staging: Staging) -> Result;
    /// Enqueues a copy of the device's buffer to the host's.
    fn staging_receive(&mut self, staging: Staging) -> Result;

    /// Joins the ranks of a group, once, before the first collective. Waits until all have joined.
    ///
    /// # Errors
    /// The ranks cannot be joined, or the group is stopped meanwhile.
    fn connect(&mut self, ranks: &Arc<Group>) -> Result;
    /// Later collectives wait for everything enqueued so far.
    ///
    /// # Errors
    /// Of this and all collectives up to the end: no ranks were joined.
    fn collective_begin(&mut self) -> Result;
    /// Enqueues the reduction of these pieces over the ranks, as one exchange.
    fn all_reduce(&mut self, pieces: &[Piece]) -> Result;
    /// Enqueues: `to` becomes `bytes` bytes at `from` of every rank, in rank order.
    fn all_gather(&mut self, from: Address, to: Address, bytes: usize) -> Result;
    /// Work enqueued from here on waits for all collectives.
    fn collective_end(&mut self) -> Result;
    /// Records a moment between collectives. Not while capturing.
    fn collective_mark(&mut self) -> Result<Mark>;

    /// Records a moment of the compute stream.
    fn mark(&mut self) -> Result<Mark>;
    /// Waits for a moment.
    fn reach(&mut self, mark: Mark) -> Result;
    /// The microseconds between two moments, negative if `to` is the earlier. Both were reached.
    fn between(&mut self, from: Mark, to: Mark) -> Result<f64>;
    /// Frees a moment.
    fn forget(&mut self, mark: Mark);
    /// Waits for two moments, returns the microseconds between them, and frees both.
    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<f64> {
        self.reach(from)?;
        self.reach(to)?;
        let microseconds = self.between(from, to)?;
        self.forget(from);
        self.forget(to);
        Ok(microseconds)
    }

    /// Names a piece of memory, for the harness: it guards the bytes around it and counts accesses.
    fn describe(&mut self, _at: Address, _bytes: usize, _label: &str) {}
}
