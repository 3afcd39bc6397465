//! The host harness as the engine's GPU: the same kernels run on the CPU and are watched.
//!
//! Ranks are threads, each with its own device; [`collectives`] contains their exchange.

mod collectives;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use collectives::{Collective, Collectives};
use effnet::host_bytes::{HostAllocator, HostBytes};
use effnet::ops::cuda::arguments::Field;
use effnet::ops::cuda::gpu::{Graph, Held, Launch, Mark, Piece, Properties, Staging};
use effnet::ops::cuda::{Address, Gpu};
use effnet::ops::{OpsError, Result};
use effnet::parallel::Group;
use effnet_kernel_host::{Count, Device, Options, Order};

/// What can be recorded.
#[derive(Clone)]
enum Command {
    Launch {
        kernel: String,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        fields: &'static [Field],
        size: usize,
        /// Words, so that they are aligned.
        arguments: Vec<u64>,
    },
    Fill(Address, u8, usize),
    Copy(Address, Address, usize),
    Collective(Collective),
}

struct StagingPair {
    host: Vec<u8>,
    device: Address,
    bytes: usize,
    /// A transfer to the device that was started and has not happened: bytes of `host`, and what is held elsewhere.
    sending: Option<(usize, Option<Held>)>,
    /// Memory that the last transfer has read.
    sent: Option<HostBytes>,
}

pub struct HostGpu {
    device: Device,
    pub options: Options,
    /// Transfers to the device happen when they are waited for; otherwise when they are started.
    pub late_transfers: bool,
    properties: Properties,
    allocations: BTreeMap<u64, usize>,
    places: BTreeMap<String, (Address, usize)>,
    recording: Option<Vec<Command>>,
    graphs: Vec<Option<Vec<Command>>>,
    /// Kernels that were launched outside of a capture.
    loaded: BTreeSet<String>,
    staging: Vec<StagingPair>,
    marks: Vec<Instant>,
    collectives: Collectives,
    /// Launches so far, including those of graphs.
    pub launches: u64,
}

fn device_error(text: impl Into<String>) -> OpsError {
    OpsError::Device(text.into())
}

impl HostGpu {
    pub fn new(options: Options) -> HostGpu {
        let properties = Properties {
            name: "host harness".into(),
            capability: (8, 0),
            multiprocessors: 4,
            clock: 0,
            memory_speed: 0,
            shared_per_block: 99 << 10,
            memory: 8 << 30,
        };
        HostGpu {
            device: Device::new().expect("address space"),
            options,
            late_transfers: options.late_copies,
            properties,
            allocations: BTreeMap::new(),
            places: BTreeMap::new(),
            recording: None,
            graphs: Vec::new(),
            loaded: BTreeSet::new(),
            staging: Vec::new(),
            marks: Vec::new(),
            collectives: Collectives::default(),
            launches: 0,
        }
    }

    /// Limits the card's memory.
    pub fn with_memory(self, bytes: u64) -> HostGpu {
        HostGpu { properties: Properties { memory: bytes, ..self.properties }, ..self }
    }

    /// Where what was [described](Gpu::describe) lies, and its bytes.
    pub fn place(&self, label: &str) -> (Address, usize) {
        self.places[label]
    }

    /// Forbids bytes to kernels.
    pub fn guard(&mut self, at: Address, bytes: usize) {
        self.inside(at, bytes).expect("the engine's memory");
        // SAFETY: the bytes lie in an allocation, as was just checked.
        unsafe { self.device.guard(at.0, bytes) }
    }

    /// Bytes loaded and stored by region since the last reset; only in the `race` build.
    pub fn counts(&self) -> Vec<Count> {
        self.device.counts()
    }

    pub fn reset_counts(&mut self) {
        self.device.reset_counts();
    }

    /// Checks that the bytes lie in one allocation.
    fn inside(&self, at: Address, bytes: usize) -> Result {
        let fits = |(start, length): (&u64, &usize)| at.0 + bytes as u64 <= start + *length as u64;
        match self.allocations.range(..=at.0).next_back().is_some_and(fits) {
            true => Ok(()),
            false => Err(device_error(format!("{bytes} bytes at {}", self.device.describe(at.0)))),
        }
    }

    fn not_recording(&self, what: &str) -> Result {
        match self.recording {
            None => Ok(()),
            Some(_) => Err(device_error(format!("{what} while capturing"))),
        }
    }

    fn run(&mut self, command: Command) -> Result {
        if let Some(recording) = &mut self.recording {
            recording.push(command);
            return Ok(());
        }
        self.execute(&command)
    }

    fn execute(&mut self, command: &Command) -> Result {
        match command {
            Command::Launch { kernel, grid, threads, shared, fields, size, arguments } => {
                let field =
                    |f: &Field| effnet_kernel_host::Field { name: f.name, offset: f.offset, size: f.size };
                let fields: Vec<_> = fields.iter().map(field).collect();
                let mut options = self.options;
                if let Order::Random(seed) = &mut options.order {
                    *seed ^= self.launches << 32;
                }
                self.launches += 1;
                let launch = effnet_kernel_host::Launch {
                    kernel,
                    grid: *grid,
                    threads: *threads,
                    shared: *shared,
                    fields: &fields,
                    size: *size,
                    options,
                };
                // SAFETY: the arguments were copied from what the caller of `Gpu::launch` guarantees.
                let ran = unsafe { self.device.launch(&launch, arguments.as_ptr().cast()) };
                ran.map_err(OpsError::Device)
            }
            Command::Fill(to, value, bytes) => {
                self.inside(*to, *bytes)?;
                // SAFETY: the bytes lie in an allocation of this device, which nothing else uses.
                unsafe { std::ptr::write_bytes(to.0 as *mut u8, *value, *bytes) };
                Ok(())
            }
            Command::Copy(from, to, bytes) => {
                self.inside(*from, *bytes)?;
                self.inside(*to, *bytes)?;
                // SAFETY: as above.
                unsafe { std::ptr::copy(from.0 as *const u8, to.0 as *mut u8, *bytes) };
                Ok(())
            }
            Command::Collective(collective) => self.collective(collective),
        }
    }

    /// Completes a transfer to the device that was started.
    fn finish_sending(&mut self, staging: Staging) {
        let pair = &mut self.staging[staging.0];
        let Some((bytes, held)) = pair.sending.take() else { return };
        let to = pair.device.0 as *mut u8;
        // SAFETY: the device's buffer has this length, and what is copied to it lies within, as `staging_send` has
        // checked. The bytes that are not sent are undefined: they get values that tests notice.
        unsafe {
            std::ptr::write_bytes(to, 0xa5, pair.bytes);
            std::ptr::copy(pair.host.as_ptr(), to, bytes);
            if let Some(held) = &held {
                let from = &held.memory.bytes()[held.bytes.clone()];
                std::ptr::copy(from.as_ptr(), to.add(held.to), from.len());
            }
        }
        pair.sent = held.map(|held| held.memory);
    }
}

impl Gpu for HostGpu {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn available(&mut self) -> Result<u64> {
        let used: usize = self.allocations.values().sum();
        Ok(self.properties.memory.saturating_sub(used as u64))
    }

    fn allocate(&mut self, bytes: usize) -> Result<Address> {
        self.not_recording("an allocation")?;
        let at = self.device.allocate(bytes).map_err(OpsError::Device)?;
        self.allocations.insert(at, bytes);
        Ok(Address(at))
    }

    fn write(&mut self, to: Address, bytes: &[u8]) -> Result {
        self.not_recording("a copy from the host")?;
        self.inside(to, bytes.len())?;
        // SAFETY: the bytes lie in an allocation of this device, which nothing else uses.
        unsafe { std::ptr::copy(bytes.as_ptr(), to.0 as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&mut self, from: Address, bytes: &mut [u8]) -> Result {
        self.not_recording("a copy to the host")?;
        self.inside(from, bytes.len())?;
        // SAFETY: as above.
        unsafe { std::ptr::copy(from.0 as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn fill(&mut self, to: Address, value: u8, bytes: usize) -> Result {
        self.run(Command::Fill(to, value, bytes))
    }

    fn copy(&mut self, from: Address, to: Address, bytes: usize) -> Result {
        self.run(Command::Copy(from, to, bytes))
    }

    unsafe fn launch(&mut self, launch: &Launch, arguments: *const c_void) -> Result {
        let Launch { kernel, grid, threads, shared, fields, size } = *launch;
        if shared > self.properties.shared_per_block {
            return Err(device_error(format!("{kernel}: {shared} bytes of shared memory")));
        }
        // A GPU loads a kernel's code at its first launch, which older drivers refuse in a capture.
        if self.recording.is_none() {
            if !self.loaded.contains(kernel) {
                self.loaded.insert(kernel.to_string());
            }
        } else if !self.loaded.contains(kernel) {
            return Err(device_error(format!(
                "{kernel} is first launched in a capture, where it cannot be loaded"
            )));
        }
        let mut words = vec![0u64; size.div_ceil(8)];
        // SAFETY: the caller guarantees `size` bytes.
        unsafe { std::ptr::copy_nonoverlapping(arguments.cast::<u8>(), words.as_mut_ptr().cast(), size) };
        self.run(Command::Launch {
            kernel: kernel.to_string(),
            grid,
            threads,
            shared,
            fields,
            size,
            arguments: words,
        })
    }

    fn synchronise(&mut self) -> Result {
        self.not_recording("a wait")
    }

    fn begin_capture(&mut self) -> Result {
        self.not_recording("a capture")?;
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&mut self) -> Result<Graph> {
        let recording = self.recording.take().ok_or_else(|| device_error("no capture was begun"))?;
        self.collectives.capture_ends()?;
        self.graphs.push(Some(recording));
        Ok(Graph(self.graphs.len() - 1))
    }

    fn launch_graph(&mut self, graph: Graph) -> Result {
        self.not_recording("a graph")?;
        let commands = self.graphs[graph.0].take().ok_or_else(|| device_error("a graph that was freed"))?;
        let ran = commands.iter().try_for_each(|command| self.execute(command));
        self.graphs[graph.0] = Some(commands);
        ran
    }

    fn free_graph(&mut self, graph: Graph) {
        self.graphs[graph.0] = None;
    }

    fn host_memory(&self) -> Option<HostAllocator> {
        Some(HostAllocator::new(|bytes| Some(HostBytes::new(vec![0; bytes]))))
    }

    fn staging(&mut self, bytes: usize, host: usize) -> Result<Staging> {
        let device = self.allocate(bytes)?;
        self.device.label(device.0, bytes, &format!("staging {}", self.staging.len()));
        let host = vec![0; host];
        self.staging.push(StagingPair { host, device, bytes, sending: None, sent: None });
        Ok(Staging(self.staging.len() - 1))
    }

    /// The memory stays, filled with values that tests notice if something still uses it.
    fn free_staging(&mut self, staging: Staging) -> Result {
        self.finish_sending(staging);
        let StagingPair { device, bytes, .. } = &mut self.staging[staging.0];
        let (at, bytes) = (*device, std::mem::take(bytes));
        self.fill(at, 0xa5, bytes)
    }

    fn staging_address(&self, staging: Staging) -> Address {
        self.staging[staging.0].device
    }

    fn staging_host(&mut self, staging: Staging) -> Result<&mut [u8]> {
        self.finish_sending(staging);
        let pair = &mut self.staging[staging.0];
        pair.sent = None;
        Ok(&mut pair.host)
    }

    fn staging_send(&mut self, staging: Staging, bytes: usize, held: Option<Held>) -> Result {
        let pair = &mut self.staging[staging.0];
        let end = held.as_ref().map_or(0, |held| held.to + held.bytes.len());
        if bytes > pair.host.len() || bytes.max(end) > pair.bytes {
            return Err(device_error("a transfer of more than the buffer holds"));
        }
        pair.sending = Some((bytes, held));
        if !self.late_transfers {
            self.finish_sending(staging);
        }
        Ok(())
    }

    fn staging_let_go(&mut self, staging: Staging) -> Result {
        self.staging[staging.0].sent = None;
        Ok(())
    }

    fn staging_acquire(&mut self, staging: Staging) -> Result {
        self.finish_sending(staging);
        Ok(())
    }

    fn staging_release(&mut self, _: Staging) -> Result {
        Ok(())
    }

    fn staging_receive(&mut self, staging: Staging) -> Result {
        self.not_recording("a transfer to the host")?;
        self.finish_sending(staging);
        let pair = &mut self.staging[staging.0];
        // SAFETY: the device's buffer was allocated with the host's length.
        unsafe { std::ptr::copy(pair.device.0 as *const u8, pair.host.as_mut_ptr(), pair.host.len()) };
        Ok(())
    }

    fn mark(&mut self) -> Result<Mark> {
        self.marks.push(Instant::now());
        Ok(Mark(self.marks.len() - 1))
    }

    fn reach(&mut self, _: Mark) -> Result {
        Ok(())
    }

    fn between(&mut self, from: Mark, to: Mark) -> Result<f64> {
        let (from, to) = (self.marks[from.0], self.marks[to.0]);
        let microseconds = |later: Instant, earlier| later.duration_since(earlier).as_secs_f64() * 1e6;
        Ok(if to >= from { microseconds(to, from) } else { -microseconds(from, to) })
    }

    fn forget(&mut self, _: Mark) {}

    fn connect(&mut self, ranks: &Arc<Group>) -> Result {
        self.not_recording("joining ranks")?;
        self.collectives.connect(ranks)
    }

    fn collective_begin(&mut self) -> Result {
        self.enqueue(Collective::Begin)
    }

    fn all_reduce(&mut self, pieces: &[Piece]) -> Result {
        self.enqueue(Collective::AllReduce(pieces.to_vec()))
    }

    fn all_gather(&mut self, from: Address, to: Address, bytes: usize) -> Result {
        self.enqueue(Collective::AllGather(from, to, bytes))
    }

    fn collective_end(&mut self) -> Result {
        self.enqueue(Collective::End)
    }

    fn collective_mark(&mut self) -> Result<Mark> {
        self.collectives.group()?;
        self.not_recording("a moment between collectives")?;
        self.mark()
    }

    /// The workspace is filled with NaN. Afterwards a pass finds there what the previous one wrote.
    fn describe(&mut self, at: Address, bytes: usize, label: &str) {
        self.device.label(at.0, bytes, label);
        self.places.insert(label.to_string(), (at, bytes));
        if label == "workspace" {
            self.fill(at, 0xff, bytes).expect("the engine's memory");
        }
    }
}
