//! The CUDA kernels, run on the CPU: a test instrument, never a backend.
//!
//! The same `.cu` files that nvcc compiles for GPUs are compiled by g++ against a small shim (`shim.h`). Each thread
//! of a block is a fiber; blocks run one after another. So every machine, without a GPU and without CUDA, can run
//! the engine at small sizes and observe more than a GPU shows.
//!
//! # What it finds
//! - Wrong indices and wrong arithmetic, by comparison with a reference.
//! - Barriers and warp operations that not all threads reach, or reach at different places: an error that lists which
//!   threads wait where.
//! - A missing barrier: in most cases one of the orders ([`Order`]) gives another result. The `race` build always detects
//!   it and names both places in the source.
//! - Shared memory that is read before it is written (it starts as NaN in every block), pieces that exceed the bytes of
//!   the launch, pieces about which threads disagree.
//! - Copies from global to shared memory that are not waited for, or whose buffer is still in use, by making them
//!   as late and as early as is allowed ([`Options::late_copies`]).
//! - Writes outside memory: canaries lie around allocations, shared pieces and bytes that a test forbids with
//!   [`Device::guard`]. The `address` and `race` builds detect reads too.
//! - Undefined behaviour of C++ (`address` build): misaligned vectors, overflowing indices, shifts.
//! - Arguments whose fields differ between Rust and the kernel.
//! - Bytes of traffic of every labelled region of memory (`race` build): [`Device::counts`].
//!
//! # What it cannot find
//! - Whether the PTX of `device.cuh` does the same as its replacement here.
//! - The device's rounding: `ex2.approx` and `rcp.approx`, contraction to fma, the order in which tensor cores add. Results agree
//!   with a GPU's within a tolerance, not bit by bit.
//! - Memory ordering between blocks that run at the same time, except that two of them access the same bytes and one
//!   writes (`race` build).
//! - Registers, spills, occupancy, bank conflicts, speed.
//!
//! # Builds
//! `EFFNET_HARNESS=plain|address|race` at build time; see `build.rs`. They find different mistakes, so all three are run.
//! `EFFNET_HARNESS_WITHOUT=stem.cu:235` at run time removes the barrier or wait in that line: `tools/remove_barriers.py`
//! does so for each of them and checks that a test fails.
//!
//! On other processors than x86-64 the crate is empty and [`AVAILABLE`] is false.

#[cfg_attr(not(target_arch = "x86_64"), path = "absent.rs")]
mod device;
pub use device::{Device, kernels};

/// Whether there is a harness on this processor.
pub const AVAILABLE: bool = cfg!(target_arch = "x86_64");

/// What watches the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    Plain,
    Address,
    Race,
}

/// What this build was made with.
pub const BUILD: Build = if cfg!(harness = "address") {
    Build::Address
} else if cfg!(harness = "race") {
    Build::Race
} else {
    Build::Plain
};

/// In which order threads and blocks run between two barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    #[default]
    Forward,
    Reverse,
    /// Drawn again at every barrier; the same for the same seed.
    Random(u64),
}

/// How a launch is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    pub order: Order,
    /// Copies from global to shared memory happen when they are waited for; otherwise when they are issued.
    pub late_copies: bool,
}

impl Options {
    /// Orders and copies that together find most mistakes.
    pub const ALL: [Options; 4] = [
        Options { order: Order::Forward, late_copies: false },
        Options { order: Order::Reverse, late_copies: true },
        Options { order: Order::Random(1), late_copies: true },
        Options { order: Order::Random(2), late_copies: false },
    ];
}

/// A field of an argument struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: &'a str,
    pub offset: usize,
    pub size: usize,
}

/// A kernel as it was compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    pub name: &'static str,
    /// Of the source.
    pub file: &'static str,
    pub threads: u32,
    /// Bytes of the arguments.
    pub size: usize,
    pub fields: Vec<Field<'static>>,
}

/// One launch without the values of the arguments.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// The arguments as Rust declares them.
    pub fields: &'a [Field<'a>],
    pub size: usize,
    pub options: Options,
}

/// Bytes that launches loaded from a region and stored to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub label: String,
    pub loaded: u64,
    pub stored: u64,
}
