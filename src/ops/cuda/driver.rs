//! A GPU through NVIDIA's driver.
//!
//! There are two streams: one computes, the other transfers batches to the device in parallel. Two events of a batch's
//! staging order them: the copy waits until the computation has *released* the device's buffer, and the computation
//! waits until the batch has *arrived*. Results return on the compute stream, which already orders them.
//! If ranks were joined there is a third stream, see [`collectives`](super::nvidia::collectives). Every wait then also
//! checks the other ranks.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::embedded::Embedded;
use super::gpu::*;
use super::nvidia::collectives::Collectives;
use super::nvidia::device::{DriverContext, Library, fits, properties};
use super::nvidia::handles::{Event, Launchable, Memory, Pinned, PinnedBytes, Stream, memory_info};
use super::nvidia::kernels::Kernels;
use super::nvidia::wait::wait;
use super::nvidia::{self, DriverError};
use super::usable::{synchronous, usable};
use crate::host_bytes::{HostAllocator, HostBytes};
use crate::ops::{OpsError, Result};
use crate::parallel::Group;

/// A GPU. Dropping it frees everything that was allocated on it.
#[derive(Debug)]
pub struct Driver {
    // Fields are dropped in this order: first what streams may still use, last the context.
    graphs: Vec<Option<Launchable>>,
    // Dropped after the graphs that contain its collectives.
    collectives: Option<Collectives>,
    kernels: Kernels,
    marks: Marks,
    stagings: Vec<Option<Buffers>>,
    memory: Vec<Memory>,
    compute: Stream,
    transfer: Stream,
    properties: Properties,
    /// Every launch is waited for, see [`Driver::wait_after_each_launch`].
    synchronous: bool,
    context: Arc<DriverContext>,
}

/// Events of recorded moments. Freed ones are used again.
#[derive(Debug, Default)]
struct Marks {
    events: Vec<Event>,
    free: Vec<usize>,
}

/// The buffers of a [`Staging`].
#[derive(Debug)]
struct Buffers {
    host: Pinned,
    device: Memory,
    bytes: usize,
    /// What the last batch is copied from, beside `host`.
    held: Option<HostBytes>,
    /// The last batch has arrived on the device.
    arrived: Event,
    /// The computation no longer needs the device's buffer.
    released: Event,
    /// The device's buffer was copied to the host.
    returned: Event,
}

impl Driver {
    /// A GPU that can run this program's kernels, counted from 0.
    ///
    /// # Errors
    /// [`DriverError`], in one line with the remedy.
    pub fn open(index: usize) -> Result<Driver> {
        let (library, embedded) = usable(index)?;
        let mut driver = Driver::with_kernels(library, index, embedded)?;
        driver.synchronous = synchronous()?;
        Ok(driver)
    }

    /// The same with other kernels.
    ///
    /// # Errors
    /// As for [`Driver::open`].
    pub fn with_kernels(library: Library, index: usize, embedded: &Embedded) -> nvidia::Result<Driver> {
        let device = library.device(index)?;
        let properties = properties(device)?;
        fits(&properties, library.version, embedded)?;
        let context = Arc::new(DriverContext::of(device)?);
        context.enter()?;
        Ok(Driver {
            kernels: Kernels::new(embedded, library.version, &properties),
            graphs: Vec::new(),
            collectives: None,
            marks: Marks::default(),
            stagings: Vec::new(),
            memory: Vec::new(),
            compute: Stream::new()?,
            transfer: Stream::new()?,
            properties,
            synchronous: false,
            context,
        })
    }

    /// From here on every launch is waited for, and nothing is captured. So a fault has the name of its kernel.
    pub fn wait_after_each_launch(&mut self) {
        self.synchronous = true;
    }
}

/// The engine frees a staging when it takes another in its place.
const FREED: &str = "a staging that was not freed";

/// Waits for everything enqueued on a stream.
fn drained(collectives: &Option<Collectives>, stream: &Stream) -> Result {
    match collectives {
        Some(collectives) => collectives.wait_for(stream),
        None => Ok(stream.synchronise()?),
    }
}

/// Waits for an event.
fn reached(collectives: &Option<Collectives>, event: &Event) -> Result {
    match collectives {
        Some(collectives) => collectives.wait_until(event),
        None => Ok(wait(|| event.reached())?),
    }
}

impl Driver {
    fn collectives(&self) -> Result<&Collectives> {
        self.context.enter()?;
        self.collectives.as_ref().ok_or(OpsError::NotConnected)
    }

    /// With other ranks: waits for everything enqueued, and checks the ranks meanwhile. The driver's own wait that
    /// follows then depends on no other rank.
    fn ranks_are_well(&self) -> Result {
        match &self.collectives {
            Some(collectives) => collectives.wait_for(&self.compute),
            None => Ok(()),
        }
    }

    fn buffers(&self, staging: Staging) -> &Buffers {
        self.stagings[staging.0].as_ref().expect(FREED)
    }

    /// Records a moment of a stream.
    fn mark_on(marks: &mut Marks, stream: &Stream) -> Result<Mark> {
        let index = match marks.free.pop() {
            Some(index) => index,
            None => {
                marks.events.push(Event::timed()?);
                marks.events.len() - 1
            }
        };
        marks.events[index].record(stream)?;
        Ok(Mark(index))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Dropping the handles needs the current context, and nothing in use may be freed. After a fault all of this
        // fails, and the driver frees everything when the process ends.
        let _ = self.synchronise();
    }
}

impl Gpu for Driver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn place(&self) -> Option<String> {
        self.context.place().ok()
    }

    fn available(&mut self) -> Result<u64> {
        self.context.enter()?;
        Ok(memory_info()?.0)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Address> {
        self.context.enter()?;
        let memory = Memory::new(bytes.max(1))?;
        let address = memory.address();
        self.compute.fill(address, 0, bytes)?;
        self.memory.push(memory);
        Ok(address)
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result {
        self.context.enter()?;
        self.ranks_are_well()?;
        // SAFETY: the bytes stay borrowed until the stream was waited for.
        let sent = unsafe { self.compute.send(bytes.as_ptr(), to, bytes.len()) };
        Ok(sent.and(self.compute.synchronise())?)
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result {
        self.context.enter()?;
        self.ranks_are_well()?;
        // SAFETY: as in `write`.
        let received = unsafe { self.compute.receive(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(received.and(self.compute.synchronise())?)
    }

    fn fill(&mut self, to: Address, value: u8, bytes: usize) -> Result {
        self.context.enter()?;
        Ok(self.compute.fill(to, value, bytes)?)
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result {
        self.context.enter()?;
        Ok(self.compute.copy(from, to, bytes)?)
    }

    unsafe fn launch(&mut self, launch: &Launch, arguments: *const c_void) -> Result {
        self.context.enter()?;
        // SAFETY: as the caller promises.
        unsafe { self.kernels.launch(&self.compute, launch, arguments) }?;
        if !self.synchronous {
            return Ok(());
        }
        drained(&self.collectives, &self.compute).map_err(|error| match error {
            OpsError::Cuda(DriverError::Call(failure)) => {
                DriverError::Launch { kernel: launch.kernel.into(), failure }.into()
            }
            other => other,
        })
    }

    fn synchronise(&mut self) -> Result {
        self.context.enter()?;
        let computed = drained(&self.collectives, &self.compute);
        drained(&self.collectives, &self.transfer).and(computed)
    }

    fn captures(&self) -> bool {
        !self.synchronous
    }

    fn begin_capture(&mut self) -> Result {
        self.context.enter()?;
        Ok(self.compute.begin_capture()?)
    }

    fn end_capture(&mut self) -> Result<Graph> {
        self.context.enter()?;
        self.graphs.push(Some(self.compute.end_capture()?));
        Ok(Graph(self.graphs.len() - 1))
    }

    fn launch_graph(&mut self, graph: Graph) -> Result {
        self.context.enter()?;
        let graph = self.graphs[graph.0].as_ref().expect("a graph that was not freed");
        // SAFETY: whoever frees memory that a graph uses frees the graph first.
        Ok(unsafe { self.compute.launch(graph) }?)
    }

    /// The driver frees a graph that runs when it has ended.
    fn free_graph(&mut self, graph: Graph) {
        if self.context.enter().is_ok() {
            self.graphs[graph.0] = None;
        }
    }

    fn host_memory(&self) -> Option<HostAllocator> {
        let context = self.context.clone();
        Some(HostAllocator::new(move |bytes| {
            context.enter().ok()?;
            // Where no more can be pinned, the driver would copy from there on the calling thread.
            Pinned::new(bytes).ok().filter(Pinned::is_direct).map(|memory| {
                HostBytes::new(PinnedBytes { memory: ManuallyDrop::new(memory), context: context.clone() })
            })
        }))
    }

    fn staging(&mut self, bytes: usize, host: usize) -> Result<Staging> {
        self.context.enter()?;
        let device = Memory::new(bytes.max(1))?;
        self.compute.fill(device.address(), 0, bytes)?;
        let staging = Buffers {
            host: Pinned::new(host)?,
            device,
            bytes,
            held: None,
            arrived: Event::new()?,
            released: Event::new()?,
            returned: Event::new()?,
        };
        // The first batch waits for the zeros.
        staging.released.record(&self.compute)?;
        self.stagings.push(Some(staging));
        Ok(Staging(self.stagings.len() - 1))
    }

    fn free_staging(&mut self, staging: Staging) -> Result {
        self.synchronise()?;
        self.stagings[staging.0] = None;
        Ok(())
    }

    fn staging_address(&self, staging: Staging) -> Address {
        self.buffers(staging).device.address()
    }

    fn staging_host(&mut self, staging: Staging) -> Result<&mut [u8]> {
        self.context.enter()?;
        let buffers = self.buffers(staging);
        reached(&self.collectives, &buffers.arrived)?;
        reached(&self.collectives, &buffers.returned)?;
        let buffers = self.stagings[staging.0].as_mut().expect(FREED);
        buffers.held = None;
        // SAFETY: both transfers were waited for, and while the bytes are borrowed no other can be enqueued.
        Ok(unsafe { buffers.host.bytes() })
    }

    fn staging_send(&mut self, staging: Staging, bytes: usize, held: Option<Held>) -> Result {
        self.context.enter()?;
        let buffers = self.stagings[staging.0].as_mut().expect(FREED);
        self.transfer.wait(&buffers.released)?;
        assert!(bytes <= buffers.host.size() && bytes <= buffers.bytes, "more than the buffers hold");
        let to = buffers.device.address();
        if bytes > 0 {
            // SAFETY: the bytes are accessed only through `staging_host`, which waits for `arrived`.
            unsafe { self.transfer.send(buffers.host.start(), to, bytes) }?;
        }
        if let Some(Held { memory, bytes, to: at }) = held {
            let from = &memory.bytes()[bytes];
            assert!(at + from.len() <= buffers.bytes, "more than the device's buffer holds");
            // SAFETY: nobody changes the bytes or frees them while this holder exists: until they have arrived.
            unsafe { self.transfer.send(from.as_ptr(), to.offset(at), from.len()) }?;
            buffers.held = Some(memory);
        }
        Ok(buffers.arrived.record(&self.transfer)?)
    }

    fn staging_let_go(&mut self, staging: Staging) -> Result {
        self.context.enter()?;
        let buffers = self.stagings[staging.0].as_mut().expect(FREED);
        if buffers.held.is_some() && buffers.arrived.reached()? {
            buffers.held = None;
        }
        Ok(())
    }

    fn staging_acquire(&mut self, staging: Staging) -> Result {
        self.context.enter()?;
        Ok(self.compute.wait(&self.buffers(staging).arrived)?)
    }

    fn staging_release(&mut self, staging: Staging) -> Result {
        self.context.enter()?;
        Ok(self.buffers(staging).released.record(&self.compute)?)
    }

    fn staging_receive(&mut self, staging: Staging) -> Result {
        self.context.enter()?;
        let staging = self.buffers(staging);
        // SAFETY: the bytes are accessed only through `staging_host`, which waits for `returned`.
        unsafe { self.compute.receive(staging.device.address(), staging.host.start(), staging.host.size()) }?;
        Ok(staging.returned.record(&self.compute)?)
    }

    fn connect(&mut self, ranks: &Arc<Group>) -> Result {
        self.context.enter()?;
        // Drop the old ones first, so that their collectives do not run in parallel with new ones.
        self.collectives = None;
        self.collectives = Some(Collectives::join(&self.context, &self.properties.name, ranks)?);
        Ok(())
    }

    fn collective_begin(&mut self) -> Result {
        Ok(self.collectives()?.begin(&self.compute)?)
    }

    fn all_reduce(&mut self, pieces: &[Piece]) -> Result {
        self.collectives()?.all_reduce(pieces)
    }

    fn all_gather(&mut self, from: Address, to: Address, bytes: usize) -> Result {
        self.collectives()?.all_gather(from, to, bytes)
    }

    fn collective_end(&mut self) -> Result {
        Ok(self.collectives()?.end(&self.compute)?)
    }

    fn collective_mark(&mut self) -> Result<Mark> {
        self.context.enter()?;
        let collectives = self.collectives.as_ref().ok_or(OpsError::NotConnected)?;
        Driver::mark_on(&mut self.marks, collectives.stream())
    }

    fn mark(&mut self) -> Result<Mark> {
        self.context.enter()?;
        Driver::mark_on(&mut self.marks, &self.compute)
    }

    fn reach(&mut self, mark: Mark) -> Result {
        self.context.enter()?;
        reached(&self.collectives, &self.marks.events[mark.0])
    }

    fn between(&mut self, from: Mark, to: Mark) -> Result<f64> {
        self.context.enter()?;
        Ok(self.marks.events[from.0].until(&self.marks.events[to.0])?)
    }

    fn forget(&mut self, mark: Mark) {
        self.marks.free.push(mark.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Machines that run tests often have no driver: then one line says so, with a remedy.
    #[test]
    fn opening_without_a_driver_or_a_card_says_so() {
        let Err(error) = Driver::open(0) else { return };
        let text = error.to_string();
        assert!(text.contains("; ") && !text.contains('\n'), "{text}");
        match crate::ops::cuda::usable::count() {
            Ok(devices) => assert!(devices > 0),
            Err(error) => assert_eq!(error.to_string(), text),
        }
    }
}
