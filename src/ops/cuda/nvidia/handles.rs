//! Streams, events, memory, graphs: each frees its object when dropped.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use cudarc::driver::sys::{self, CUevent, CUgraph, CUgraphExec, CUresult, CUstream, CUstreamCaptureMode};

use super::device::DriverContext;
use super::wait::{notice, wait};
use super::{DriverError, Failure, Result, call, check};
use crate::host_bytes::HostMemory;
use crate::ops::cuda::gpu::Address;

/// Graphs are captured in this mode: calls of other threads, such as those of another GPU, do not disturb a capture.
const CAPTURE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// Nodes keep the priority of the stream that they were captured from. Without this flag the exchange between ranks
/// would wait behind computation that is not urgent.
const INSTANTIATE: u64 =
    sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY.0 as u64;

/// A queue of work in order.
#[derive(Debug)]
pub struct Stream(CUstream);

/// A moment in a stream: to wait for, or with a time.
#[derive(Debug)]
pub struct Event(CUevent);

/// Device memory.
#[derive(Debug)]
pub struct Memory(Address);

/// Host memory that the GPU accesses directly. Where no more can be pinned (WSL2 allows little), it is ordinary memory,
/// from which the driver copies more slowly.
#[derive(Debug)]
pub struct Pinned {
    at: NonNull<u8>,
    bytes: usize,
    pageable: bool,
}

/// A graph ready to launch.
#[derive(Debug)]
pub struct Launchable(CUgraphExec);

// SAFETY: the driver's objects may be used from any thread that has entered their context.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Send for Event {}
// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: as for streams.
unsafe impl Send for Launchable {}

/// Whether a failure says that there is no memory.
fn out_of_memory(failure: &Failure) -> bool {
    failure.code == CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32
}

/// The result of asking whether something has ended. "Not yet" is no failure, and is asked for too often to be made one.
fn ready(call: &'static str, answer: CUresult) -> Result<bool> {
    if answer == CUresult::CUDA_ERROR_NOT_READY {
        return Ok(false);
    }
    check(call, answer)?;
    Ok(true)
}

/// Free and total bytes of device memory.
pub fn memory_info() -> Result<(u64, u64)> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: writes two numbers.
    unsafe { call!(cuMemGetInfo_v2(&mut free, &mut total)) }?;
    Ok((free as u64, total as u64))
}

impl Stream {
    /// A stream that does not wait for the default stream.
    pub fn new() -> Result<Stream> {
        let mut raw = null_mut();
        // SAFETY: writes one pointer.
        unsafe { call!(cuStreamCreate(&mut raw, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32)) }?;
        Ok(Stream(raw))
    }

    /// A stream whose work runs first if others are ready too.
    pub fn urgent() -> Result<Stream> {
        let (mut least, mut greatest, mut raw) = (0, 0, null_mut());
        // SAFETY: writes two numbers.
        unsafe { call!(cuCtxGetStreamPriorityRange(&mut least, &mut greatest)) }?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one pointer.
        unsafe { call!(cuStreamCreateWithPriority(&mut raw, flags, greatest)) }?;
        Ok(Stream(raw))
    }

    pub(in crate::ops::cuda) fn raw(&self) -> CUstream {
        self.0
    }

    /// Whether everything enqueued has ended.
    pub fn idle(&self) -> Result<bool> {
        // SAFETY: the stream exists.
        ready("cuStreamQuery", unsafe { sys::cuStreamQuery(self.0) })
    }

    /// Waits for everything enqueued.
    pub fn synchronise(&self) -> Result {
        wait(|| self.idle())
    }

    /// Work enqueued from here on waits for the event's last record.
    pub fn wait(&self, event: &Event) -> Result {
        // SAFETY: both exist.
        unsafe { call!(cuStreamWaitEvent(self.0, event.0, 0)) }?;
        Ok(())
    }

    /// # Safety
    /// `bytes` bytes at `from` do not change until the stream has done this copy; `to` has room for them.
    pub unsafe fn send(&self, from: *const u8, to: Address, bytes: usize) -> Result {
        // SAFETY: as the caller promises.
        unsafe { call!(cuMemcpyHtoDAsync_v2(to.0, from.cast::<c_void>(), bytes, self.0)) }?;
        Ok(())
    }

    /// # Safety
    /// Nothing else accesses `bytes` bytes at `to` until the stream has done this copy; `from` has as many.
    pub unsafe fn receive(&self, from: Address, to: *mut u8, bytes: usize) -> Result {
        // SAFETY: as the caller promises.
        unsafe { call!(cuMemcpyDtoHAsync_v2(to.cast::<c_void>(), from.0, bytes, self.0)) }?;
        Ok(())
    }

    pub fn fill(&self, to: Address, value: u8, bytes: usize) -> Result {
        // SAFETY: the driver refuses a range that is not within one allocation.
        unsafe { call!(cuMemsetD8Async(to.0, value, bytes, self.0)) }?;
        Ok(())
    }

    pub fn copy(&self, from: Address, to: Address, bytes: usize) -> Result {
        // SAFETY: as for `fill`.
        unsafe { call!(cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.0)) }?;
        Ok(())
    }

    pub fn begin_capture(&self) -> Result {
        // SAFETY: the stream exists.
        unsafe { call!(cuStreamBeginCapture_v2(self.0, CAPTURE)) }?;
        Ok(())
    }

    /// The captured graph, ready to launch and already on the device.
    pub fn end_capture(&self) -> Result<Launchable> {
        let mut graph: CUgraph = null_mut();
        // SAFETY: writes one pointer.
        unsafe { call!(cuStreamEndCapture(self.0, &mut graph)) }?;
        let mut raw = null_mut();
        // SAFETY: writes one pointer; the graph exists, and is no longer needed once it is instantiated.
        let made = unsafe {
            let made = call!(cuGraphInstantiateWithFlags(&mut raw, graph, INSTANTIATE));
            made.and(call!(cuGraphDestroy(graph)))
        };
        made?;
        let launchable = Launchable(raw);
        // SAFETY: both exist.
        unsafe { call!(cuGraphUpload(raw, self.0)) }?;
        Ok(launchable)
    }

    /// # Safety
    /// The memory that the captured work uses is still allocated.
    pub unsafe fn launch(&self, graph: &Launchable) -> Result {
        // SAFETY: both exist; the rest is the caller's promise.
        unsafe { call!(cuGraphLaunch(graph.0, self.0)) }?;
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by `new`. The driver finishes the enqueued work.
        let _ = unsafe { call!(cuStreamDestroy_v2(self.0)) };
    }
}

impl Event {
    /// An event to wait for.
    pub fn new() -> Result<Event> {
        Event::with_flags(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32)
    }

    /// An event that records the time.
    pub fn timed() -> Result<Event> {
        Event::with_flags(sys::CUevent_flags::CU_EVENT_DEFAULT as u32)
    }

    fn with_flags(flags: u32) -> Result<Event> {
        let mut raw = null_mut();
        // SAFETY: writes one pointer.
        unsafe { call!(cuEventCreate(&mut raw, flags)) }?;
        Ok(Event(raw))
    }

    pub fn record(&self, stream: &Stream) -> Result {
        // SAFETY: both exist.
        unsafe { call!(cuEventRecord(self.0, stream.0)) }?;
        Ok(())
    }

    /// Whether the stream has reached the last record. True if there was none.
    pub fn reached(&self) -> Result<bool> {
        // SAFETY: the event exists.
        ready("cuEventQuery", unsafe { sys::cuEventQuery(self.0) })
    }

    /// Microseconds from this moment to a later one that has been reached.
    pub fn until(&self, later: &Event) -> Result<f64> {
        let mut milliseconds = 0.0_f32;
        // SAFETY: writes one number. Not `_v2`, which drivers before 12.8 lack.
        unsafe { call!(cuEventElapsedTime(&mut milliseconds, self.0, later.0)) }?;
        Ok(f64::from(milliseconds) * 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `with_flags`.
        let _ = unsafe { call!(cuEventDestroy_v2(self.0)) };
    }
}

impl Memory {
    /// Not initialised, aligned to 256 bytes.
    pub fn new(bytes: usize) -> Result<Memory> {
        let mut at = 0;
        // SAFETY: writes one number.
        match unsafe { call!(cuMemAlloc_v2(&mut at, bytes)) } {
            Ok(()) => Ok(Memory(Address(at))),
            Err(failure) if out_of_memory(&failure) => {
                let free = memory_info().map_or(0, |(free, _)| free);
                Err(DriverError::OutOfMemory { wanted: bytes as u64, free })
            }
            Err(failure) => Err(failure.into()),
        }
    }

    pub fn address(&self) -> Address {
        self.0
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`. The driver waits for the work that uses it.
        let _ = unsafe { call!(cuMemFree_v2(self.0.0)) };
    }
}

impl Pinned {
    /// Zeroed. Not write-combined, because the host also reads results from it.
    pub fn new(bytes: usize) -> Result<Pinned> {
        let mut at: *mut c_void = null_mut();
        // SAFETY: writes one pointer. At least one byte, so that the pointer is not null.
        match unsafe { call!(cuMemHostAlloc(&mut at, bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE)) } {
            Ok(()) => {}
            Err(failure) if out_of_memory(&failure) => return Pinned::pageable(bytes),
            Err(failure) => return Err(failure.into()),
        }
        let Some(at) = NonNull::new(at.cast::<u8>()) else { return Pinned::pageable(bytes) };
        // SAFETY: that many bytes were allocated.
        unsafe { at.write_bytes(0, bytes) };
        Ok(Pinned { at, bytes, pageable: false })
    }

    fn pageable(bytes: usize) -> Result<Pinned> {
        let mut memory = Vec::new();
        let wanted = bytes as u64;
        memory.try_reserve_exact(bytes).map_err(|_| DriverError::OutOfHostMemory { wanted })?;
        memory.resize(bytes, 0);
        notice(&format!(
            "{} MiB of the host's memory cannot be pinned, so batches travel more slowly; raise ulimit -l (under WSL2: \
             memory in .wslconfig)",
            wanted.div_ceil(1 << 20)
        ));
        let at = NonNull::from(Box::leak(memory.into_boxed_slice())).cast();
        Ok(Pinned { at, bytes, pageable: true })
    }

    /// Whether the GPU reads it without the host's help.
    pub fn is_direct(&self) -> bool {
        !self.pageable
    }

    pub fn size(&self) -> usize {
        self.bytes
    }

    pub fn start(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// # Safety
    /// No transfer is running.
    pub unsafe fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated and zeroed by `new`, borrowed as a whole; the caller promises that no device writes.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.pageable {
            let memory = NonNull::slice_from_raw_parts(self.at, self.bytes);
            // SAFETY: leaked by `pageable`, and freed here only.
            drop(unsafe { Box::from_raw(memory.as_ptr()) });
            return;
        }
        // SAFETY: allocated by `new`. Its owner has waited for transfers.
        let _ = unsafe { call!(cuMemFreeHost(self.at.as_ptr().cast::<c_void>())) };
    }
}

/// Pinned memory that may outlive its driver and be freed on any thread.
#[derive(Debug)]
pub struct PinnedBytes {
    pub memory: ManuallyDrop<Pinned>,
    pub context: Arc<DriverContext>,
}

// SAFETY: shared, it is only read.
unsafe impl Sync for PinnedBytes {}

impl HostMemory for PinnedBytes {
    fn bytes(&self) -> &[u8] {
        // SAFETY: allocated and zeroed by `Pinned::new`. Transfers only read it, and they hold it.
        unsafe { std::slice::from_raw_parts(self.memory.at.as_ptr(), self.memory.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else holds it, a transfer least of all.
        unsafe { self.memory.bytes() }
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        // Without its context it cannot be freed, and the process is about to end.
        if self.context.enter().is_ok() {
            // SAFETY: dropped here only.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

impl Drop for Launchable {
    fn drop(&mut self) {
        // SAFETY: made by `end_capture`. The driver finishes running launches.
        let _ = unsafe { call!(cuGraphExecDestroy(self.0)) };
    }
}
