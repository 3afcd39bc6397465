//! What the engine needs of a GPU: memory, launches, graphs, a second stream for what comes and goes, a third for what
//! ranks exchange.
//!
//! The engine is generic over [`Gpu`]. In the product it is NVIDIA's driver ([`super::driver`]); in tests it is also
//! the host harness, which runs the same kernels on the CPU. Everything is enqueued on one compute stream, in
//! order, and returns at once, unless a method says that it waits.
//!
//! Collectives run on a stream of their own, beside what is computed after them. [`Gpu::collective_begin`] makes them
//! wait for what was computed before, [`Gpu::collective_end`] makes what follows wait for them; every begin comes before
//! an end, within a recording too. All ranks enqueue the same collectives in the same order.

use std::ffi::c_void;
use std::sync::Arc;

use super::arguments::Field;
use crate::ops::Result;
use crate::parallel::Group;
pub use crate::parallel::nccl::Reduce;

/// A place in device memory; 0 is no place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    pub const NULL: Address = Address(0);

    /// `bytes` further on.
    pub fn offset(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// What a GPU says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes of shared memory that one block may ask for.
    pub shared_per_block: usize,
    /// Bytes of device memory in all.
    pub memory: u64,
}

/// One launch, but for the arguments themselves.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    /// Threads of a block; what the kernel was compiled for.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Layout of the argument struct, as the Rust side declares it.
    pub fields: &'static [Field],
    /// Its size.
    pub size: usize,
}

/// A captured sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub usize);

/// A pinned buffer on the host with a buffer of the same size on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staging(pub usize);

/// Elements of all ranks that become one, the same on all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub at: Address,
    pub elements: usize,
    pub how: Reduce,
}

/// A moment of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub usize);

pub trait Gpu: Send {
    fn properties(&self) -> &Properties;
    /// Bytes of device memory that could still be allocated.
    fn available(&mut self) -> Result<u64>;

    /// Zeroed device memory, aligned to 256 bytes, freed with the GPU. Not while capturing.
    ///
    /// # Errors
    /// Where the memory is not there.
    fn allocate(&mut self, bytes: usize) -> Result<Address>;
    /// Copies from the host, waiting until `bytes` may be changed again. Not while capturing.
    fn write(&mut self, to: Address, bytes: &[u8]) -> Result;
    /// Copies to the host, waiting for everything enqueued before.
    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result;
    /// Fills device memory with a byte.
    fn fill(&mut self, to: Address, value: u8, bytes: usize) -> Result;
    /// Copies within the device.
    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result;

    /// Enqueues a kernel.
    ///
    /// # Errors
    /// An unknown kernel, a layout or a block size that is not the kernel's, too much shared memory: before
    /// anything is launched.
    ///
    /// # Safety
    /// `arguments` points to `launch.size` bytes laid out as `launch.fields` says, and every address in them is
    /// memory that the kernel may use.
    unsafe fn launch(&mut self, launch: &Launch, arguments: *const c_void) -> Result;
    /// Waits for everything enqueued.
    fn synchronise(&mut self) -> Result;

    /// From here on launches, fills and device copies are recorded and not run.
    fn begin_capture(&mut self) -> Result;
    /// Ends the recording.
    fn end_capture(&mut self) -> Result<Graph>;
    /// Enqueues a recording.
    fn launch_graph(&mut self, graph: Graph) -> Result;

    /// Makes a pair of buffers of this size.
    fn staging(&mut self, bytes: usize) -> Result<Staging>;
    /// The device's buffer.
    fn staging_address(&self, staging: Staging) -> Address;
    /// The host's buffer, waiting until the last transfer out of it or into it has ended.
    fn staging_host(&mut self, staging: Staging) -> Result<&mut [u8]>;
    /// Starts the way of the first `bytes` to the device beside the compute stream, once that has
    /// [released](Gpu::staging_release) the device's buffer. What lies behind them there is undefined.
    fn staging_send(&mut self, staging: Staging, bytes: usize) -> Result;
    /// What is enqueued from here on waits until the last [`Gpu::staging_send`] has arrived.
    fn staging_acquire(&mut self, staging: Staging) -> Result;
    /// What was enqueued before is the last that needs the device's buffer for now.
    fn staging_release(&mut self, staging: Staging) -> Result;
    /// Copies the device's buffer to the host's after all that is enqueued, without waiting.
    fn staging_receive(&mut self, staging: Staging) -> Result;

    /// Joins the ranks of a group, once, before the first collective. Waits until all have joined.
    ///
    /// # Errors
    /// Where that cannot be; where the group is stopped meanwhile.
    fn connect(&mut self, ranks: &Arc<Group>) -> Result;
    /// Collectives that follow wait for all that is enqueued.
    ///
    /// # Errors
    /// Of this and all that follow up to the end: where no ranks were joined.
    fn collective_begin(&mut self) -> Result;
    /// Enqueues the reduction of these pieces over the ranks, as one exchange.
    fn all_reduce(&mut self, pieces: &[Piece]) -> Result;
    /// Enqueues: `to` becomes `bytes` bytes at `from` of every rank, in rank order.
    fn all_gather(&mut self, from: Address, to: Address, bytes: usize) -> Result;
    /// What is enqueued from here on waits for all collectives.
    fn collective_end(&mut self) -> Result;
    /// Notes a moment between collectives. Not while capturing.
    fn collective_mark(&mut self) -> Result<Mark>;

    /// Notes a moment of the compute stream.
    fn mark(&mut self) -> Result<Mark>;
    /// Microseconds between two moments, waiting for both; negative where they come the other way round.
    fn between(&mut self, from: Mark, to: Mark) -> Result<f64>;
    /// No more is asked about a moment.
    fn forget(&mut self, mark: Mark);
    /// Microseconds between two moments, waiting for the later; both are forgotten.
    fn elapsed(&mut self, from: Mark, to: Mark) -> Result<f64> {
        let microseconds = self.between(from, to)?;
        self.forget(from);
        self.forget(to);
        Ok(microseconds)
    }

    /// Says what lies where; for the harness, which watches the memory around and counts what is touched.
    fn describe(&mut self, _at: Address, _bytes: usize, _label: &str) {}
}
