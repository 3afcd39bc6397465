//! A [`Gpu`] that runs nothing and records every launch. The launchers are the product's own, so kernels, grids,
//! threads, shared memory and arguments are exactly what a card would get. What ranks exchange is not recorded:
//! NCCL launches that.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use effnet::ops::cuda::gpu::{Graph, Held, Launch, Mark, Piece, Properties, Staging};
use effnet::ops::cuda::{Address, Gpu};
use effnet::ops::{OpsError, Result};
use effnet::parallel::Group;

/// One launch, or a fill or copy of device memory, which the driver does with its own kernel.
#[derive(Clone, Debug)]
pub struct Launched {
    pub kernel: String,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// The kernel's argument, as it lies in memory.
    pub argument: Vec<u8>,
    arguments: HashMap<&'static str, Argument>,
    /// Addresses in arrays among the arguments.
    listed: Vec<(&'static str, Address)>,
    /// Where the argument has addresses of this GPU: the first bytes.
    pub addresses: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Argument {
    Number(i32),
    /// An address, or a number of 64 bits.
    Long(u64),
}

impl Launched {
    pub fn blocks(&self) -> u64 {
        self.grid.iter().map(|&side| u64::from(side)).product()
    }

    /// A number among the arguments.
    pub fn number(&self, name: &str) -> Option<f64> {
        match self.arguments.get(name) {
            Some(Argument::Number(value)) => Some(f64::from(*value)),
            Some(Argument::Long(value)) => Some(*value as f64),
            None => None,
        }
    }

    /// The arguments that point somewhere.
    pub fn pointers(&self) -> impl Iterator<Item = (&'static str, Address)> {
        let alone = self.arguments.iter().filter_map(|(name, argument)| match argument {
            Argument::Long(0) | Argument::Number(_) => None,
            Argument::Long(at) => Some((*name, Address(*at))),
        });
        alone.chain(self.listed.iter().copied())
    }

    pub fn points(&self, name: &str) -> bool {
        matches!(self.arguments.get(name), Some(Argument::Long(at)) if *at != 0)
    }
}

/// The first address.
const FIRST: u64 = 1 << 40;

pub struct RecordingGpu {
    properties: Properties,
    next: u64,
    pub launched: Vec<Launched>,
    /// By label, what was [described](Gpu::describe).
    pub places: BTreeMap<String, (Address, usize)>,
    staging: Vec<(Vec<u8>, Address)>,
}

impl RecordingGpu {
    /// Launchers divide the work by shapes alone, so the properties do not matter.
    pub fn new() -> RecordingGpu {
        RecordingGpu::with_memory(1 << 40)
    }

    /// One with so many bytes of memory.
    pub fn with_memory(memory: u64) -> RecordingGpu {
        let properties = Properties {
            name: "none".into(),
            capability: (8, 0),
            multiprocessors: 1,
            clock: 0,
            memory_speed: 0,
            shared_per_block: 99 << 10,
            memory,
        };
        RecordingGpu {
            properties,
            next: FIRST,
            launched: Vec::new(),
            places: BTreeMap::new(),
            staging: Vec::new(),
        }
    }

    fn moved(&mut self, kernel: &str, bytes: usize) -> Result {
        let arguments = HashMap::from([("kibibytes", Argument::Number(bytes.div_ceil(1024) as i32))]);
        let kernel = kernel.to_string();
        self.launched.push(Launched {
            kernel,
            grid: [0; 3],
            threads: 0,
            shared: 0,
            argument: Vec::new(),
            arguments,
            listed: Vec::new(),
            addresses: Vec::new(),
        });
        Ok(())
    }

    /// The words of a field that are addresses of this GPU, and where they begin. No float is one: as the upper half of a
    /// word, each but 0 is larger.
    fn addresses(&self, field: Range<usize>, bytes: &[u8]) -> Vec<(usize, Address)> {
        let words = bytes[field.clone()].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let found = field.step_by(8).zip(words).filter(|(_, word)| (FIRST..self.next).contains(word));
        found.map(|(at, word)| (at, Address(word))).collect()
    }
}

fn no<T>(what: &str) -> Result<T> {
    Err(OpsError::Device(format!("{what}: nothing runs here")))
}

impl Gpu for RecordingGpu {
    fn properties(&self) -> &Properties {
        &self.properties
    }
    fn available(&mut self) -> Result<u64> {
        Ok(self.properties.memory)
    }
    fn allocate(&mut self, bytes: usize) -> Result<Address> {
        let at = self.next;
        self.next += (bytes as u64 + 256).next_multiple_of(256);
        Ok(Address(at))
    }
    fn write(&mut self, _: Address, _: &[u8]) -> Result {
        Ok(())
    }
    fn read(&mut self, _: Address, _: &mut [u8]) -> Result {
        no("a copy to the host")
    }
    fn fill(&mut self, _: Address, _: u8, bytes: usize) -> Result {
        self.moved("(fill)", bytes)
    }
    fn copy(&mut self, _: Address, _: Address, bytes: usize) -> Result {
        self.moved("(copy)", bytes)
    }

    unsafe fn launch(&mut self, launch: &Launch, arguments: *const c_void) -> Result {
        // SAFETY: the caller guarantees `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts(arguments.cast::<u8>(), launch.size) };
        let value = |offset: usize, size: usize| match size {
            4 => Some(Argument::Number(i32::from_le_bytes(bytes[offset..offset + 4].try_into().ok()?))),
            8 => Some(Argument::Long(u64::from_le_bytes(bytes[offset..offset + 8].try_into().ok()?))),
            _ => None,
        };
        let arguments = launch.fields.iter().filter_map(|f| Some((f.name, value(f.offset, f.size)?)));
        let (mut listed, mut addresses) = (Vec::new(), Vec::new());
        for field in launch.fields {
            for (at, address) in self.addresses(field.offset..field.offset + field.size, bytes) {
                addresses.push(at);
                if field.size > 8 {
                    listed.push((field.name, address));
                }
            }
        }
        self.launched.push(Launched {
            kernel: launch.kernel.to_string(),
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            argument: bytes.to_vec(),
            arguments: arguments.collect(),
            listed,
            addresses,
        });
        Ok(())
    }
    fn synchronise(&mut self) -> Result {
        Ok(())
    }
    fn begin_capture(&mut self) -> Result {
        no("a capture")
    }
    fn end_capture(&mut self) -> Result<Graph> {
        no("a capture")
    }
    fn launch_graph(&mut self, _: Graph) -> Result {
        no("a graph")
    }
    fn free_graph(&mut self, _: Graph) {}

    fn staging(&mut self, bytes: usize, host: usize) -> Result<Staging> {
        let device = self.allocate(bytes)?;
        self.staging.push((vec![0; host], device));
        Ok(Staging(self.staging.len() - 1))
    }
    fn free_staging(&mut self, _: Staging) -> Result {
        Ok(())
    }
    fn staging_address(&self, staging: Staging) -> Address {
        self.staging[staging.0].1
    }
    fn staging_host(&mut self, staging: Staging) -> Result<&mut [u8]> {
        Ok(&mut self.staging[staging.0].0)
    }
    fn staging_send(&mut self, _: Staging, _: usize, _: Option<Held>) -> Result {
        Ok(())
    }
    fn staging_let_go(&mut self, _: Staging) -> Result {
        Ok(())
    }
    fn staging_acquire(&mut self, _: Staging) -> Result {
        Ok(())
    }
    fn staging_release(&mut self, _: Staging) -> Result {
        Ok(())
    }
    fn staging_receive(&mut self, _: Staging) -> Result {
        Ok(())
    }
    fn mark(&mut self) -> Result<Mark> {
        no("a time")
    }
    fn reach(&mut self, _: Mark) -> Result {
        no("a time")
    }
    fn between(&mut self, _: Mark, _: Mark) -> Result<f64> {
        no("a time")
    }
    fn forget(&mut self, _: Mark) {}

    fn connect(&mut self, _: &Arc<Group>) -> Result {
        no("ranks")
    }
    fn collective_begin(&mut self) -> Result {
        Ok(())
    }
    fn all_reduce(&mut self, _: &[Piece]) -> Result {
        Ok(())
    }
    fn all_gather(&mut self, _: Address, _: Address, _: usize) -> Result {
        Ok(())
    }
    fn collective_end(&mut self) -> Result {
        Ok(())
    }
    fn collective_mark(&mut self) -> Result<Mark> {
        no("a time")
    }
    fn describe(&mut self, at: Address, bytes: usize, label: &str) {
        self.places.insert(label.to_string(), (at, bytes));
    }
}
