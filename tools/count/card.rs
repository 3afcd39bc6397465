//! The cards that times are predicted for.
//!
//! Operations of a multiprocessor in a cycle are from the table "Throughput of Native Arithmetic Instructions" of
//! NVIDIA's CUDA C++ Programming Guide (Arithmetic Instructions, by compute capability 8.0, 8.6, 8.9, 9.0), warps, blocks,
//! registers and shared memory from its table "Technical Specifications per Compute Capability". Multiprocessors and
//! clocks are from the white papers of the A100, GA102, Ada and H100 and the data sheet of the H200. How fast a plain copy
//! runs is from published measurements, rounded down.

pub struct Card {
    pub name: &'static str,
    /// 8.6 as 86.
    pub architecture: u32,
    pub multiprocessors: f64,
    /// 10⁹ cycles a second under load.
    pub clock: f64,
    /// 10¹² bytes a second, read and written by a plain copy.
    pub copy: f64,
    /// GB of memory, as it is sold.
    pub memory: u64,
    /// Whether a run computes expanded tensors again there: `MOST_BALANCE` in src/ops/cuda/expand_depthwise.rs.
    pub recomputes: bool,
    /// 10⁶ bytes of the second-level cache.
    pub cache: f64,
    /// Nanoseconds of a load that no cache holds, of a machine that is busy.
    pub latency: f64,
    pub units: Units,
}

/// Threads' operations of a multiprocessor in a cycle.
pub struct Units {
    pub fp32: f64,
    /// Halves of a register count as one.
    pub half: f64,
    /// Logic, comparisons, integer additions; integer multiplications, which the fp32 unit does.
    pub integer: f64,
    pub fp64: f64,
    pub special: f64,
    /// Multiply-adds by `mma.sync` of half-precision numbers with fp32 sums.
    pub tensor: f64,
    /// Whether fp32 and integers share half of the lanes (compute capability 8.6 and 8.9).
    pub shared_lanes: bool,
}

/// Of a multiprocessor: warps, blocks, KiB of shared memory (a block takes 1 KiB besides its own).
pub struct Room {
    pub warps: u32,
    pub blocks: u32,
    pub shared: u32,
}

pub fn room(architecture: u32) -> Option<Room> {
    Some(match architecture {
        80 => Room { warps: 64, blocks: 32, shared: 164 },
        86 => Room { warps: 48, blocks: 16, shared: 100 },
        89 => Room { warps: 48, blocks: 24, shared: 100 },
        90 => Room { warps: 64, blocks: 32, shared: 228 },
        _ => return None,
    })
}

/// Warp instructions of a multiprocessor in a cycle: one for each scheduler.
pub const ISSUE: f64 = 4.0;
/// Bytes of a multiprocessor in a cycle: of shared memory and first-level cache, and between that and the second level.
pub const WAVEFRONT: f64 = 1.0;
pub const FROM_CACHE: f64 = 64.0;
/// Microseconds that a launch costs besides its work, in a graph: an assumption.
pub const LAUNCH: f64 = 3.0;

const DATA_CENTRE: Units = Units {
    fp32: 128.0,
    half: 128.0,
    integer: 64.0,
    fp64: 64.0,
    special: 16.0,
    // Half of what Hopper's own `wgmma` does.
    tensor: 1024.0,
    shared_lanes: false,
};
const GEFORCE: Units = Units {
    fp32: 128.0,
    half: 128.0,
    integer: 64.0,
    fp64: 2.0,
    special: 16.0,
    tensor: 256.0,
    shared_lanes: true,
};

pub const CARDS: [Card; 5] = [
    Card {
        name: "A100",
        architecture: 80,
        multiprocessors: 108.0,
        clock: 1.41,
        copy: 1.35,
        memory: 40,
        recomputes: true,
        cache: 40.0,
        latency: 600.0,
        units: Units {
            fp32: 64.0,
            half: 256.0,
            integer: 64.0,
            fp64: 32.0,
            special: 16.0,
            tensor: 1024.0,
            shared_lanes: false,
        },
    },
    Card {
        name: "RTX 3080",
        architecture: 86,
        multiprocessors: 68.0,
        clock: 1.71,
        copy: 0.70,
        memory: 10,
        recomputes: true,
        cache: 5.0,
        latency: 600.0,
        units: GEFORCE,
    },
    Card {
        name: "RTX 4090",
        architecture: 89,
        multiprocessors: 128.0,
        clock: 2.52,
        copy: 0.92,
        memory: 24,
        recomputes: true,
        cache: 72.0,
        latency: 600.0,
        units: GEFORCE,
    },
    Card {
        name: "H100",
        architecture: 90,
        multiprocessors: 132.0,
        clock: 1.755,
        copy: 3.0,
        memory: 80,
        recomputes: false,
        cache: 50.0,
        latency: 650.0,
        units: DATA_CENTRE,
    },
    Card {
        name: "H200",
        architecture: 90,
        multiprocessors: 132.0,
        clock: 1.755,
        copy: 4.3,
        memory: 141,
        recomputes: false,
        cache: 50.0,
        latency: 650.0,
        units: DATA_CENTRE,
    },
];
