//! From counts to times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::block::{Done, Tally};
use crate::card::{self, Card, FROM_CACHE, ISSUE, WAVEFRONT};
use crate::instruction::Instruction;
use crate::listing::Kernel;
use crate::memory::SECTOR;
use crate::pipe::Pipe;

/// What a launch does, all its blocks together.
#[derive(Clone, Debug, Default)]
pub struct Count {
    /// Warp instructions, and those of each pipe.
    pub issued: f64,
    pub pipes: [f64; 11],
    /// Multiply-adds on tensor cores.
    pub products: f64,
    /// Of shared memory and of the first-level cache; what they would be without conflicts.
    pub wavefronts: f64,
    pub least: f64,
    pub sectors: f64,
    /// Bytes that blocks load and had not loaded before.
    pub loaded: f64,
    /// Cycles of a block alone, on average, and what the last of all blocks takes besides.
    pub cycles: f64,
    pub tail: f64,
    pub blocks: f64,
    /// Blocks of each kind of work, and cycles of such a block alone.
    pub kinds: Vec<[f64; 2]>,
    /// By instruction of the kernel, of all blocks.
    pub tallies: Vec<Share>,
}

/// Multiply-adds on tensor cores of one block.
pub fn products(kernel: &Kernel, done: &Done) -> f64 {
    let tallies = kernel.instructions.iter().zip(&done.tallies).filter(|(at, _)| at.name == "HMMA");
    let of = |(instruction, tally): (&Instruction, &Tally)| {
        tally.issued as f64 * if instruction.has("16816") { 2048.0 } else { 1024.0 }
    };
    tallies.map(of).sum()
}

/// A [`Tally`], scaled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Share {
    pub issued: f64,
    pub requests: f64,
    pub wavefronts: f64,
    pub least: f64,
    pub sectors: f64,
    pub cycles: f64,
}

impl Count {
    /// From some of a launch's blocks of each kind, each as often as said, and the number of that kind.
    pub fn of(kernel: &Kernel, kinds: &[(f64, Vec<(f64, Done)>)]) -> Count {
        let blocks = kinds.iter().map(|(blocks, _)| blocks).sum();
        let tallies = vec![Share::default(); kernel.instructions.len()];
        let mut count = Count { blocks, tallies, ..Count::default() };
        for (blocks, sample) in kinds {
            count.add_kind(kernel, *blocks, sample);
        }
        let cycles = count.kinds.iter().map(|[blocks, cycles]| blocks * cycles).sum::<f64>();
        count.cycles = cycles / count.blocks;
        count
    }

    fn add_kind(&mut self, kernel: &Kernel, blocks: f64, sample: &[(f64, Done)]) {
        let all: f64 = sample.iter().map(|(share, _)| share).sum();
        let mut cycles = 0.0;
        for (share, done) in sample {
            let scale = blocks * share / all;
            cycles += done.cycles as f64 * share / all;
            self.products += products(kernel, done) * scale;
            for (number, (instruction, tally)) in kernel.instructions.iter().zip(&done.tallies).enumerate() {
                self.add(instruction.pipe, number, tally, scale);
            }
        }
        if sample.iter().any(|(_, done)| !done.arrivals.is_empty()) {
            let longest = sample.iter().map(|(_, done)| done.cycles).max().unwrap_or(0);
            self.tail = self.tail.max(longest as f64 - cycles);
        }
        self.kinds.push([blocks, cycles]);
    }

    /// Cycles until all blocks are done, if so many run at once and a place that becomes free takes the next one. Of one
    /// kind these are whole waves, while there are few.
    pub fn span(&self, slots: f64) -> f64 {
        let waves = self.blocks / slots;
        match self.kinds[..] {
            [[_, cycles]] if waves > 8.0 => waves * cycles,
            [[_, cycles]] => waves.ceil().max(1.0) * cycles,
            _ => {
                let mut places: BinaryHeap<Reverse<u64>> = (0..slots as u64).map(|_| Reverse(0)).collect();
                let mut end = 0;
                for [blocks, cycles] in &self.kinds {
                    for _ in 0..*blocks as u64 {
                        let Reverse(free) = places.pop().unwrap_or(Reverse(end));
                        end = end.max(free + *cycles as u64);
                        places.push(Reverse(free + *cycles as u64));
                    }
                }
                end as f64
            }
        }
    }

    fn add(&mut self, pipe: Pipe, number: usize, tally: &Tally, scale: f64) {
        let issued = tally.issued as f64 * scale;
        self.issued += issued;
        self.pipes[pipe.index()] += issued;
        let [wavefronts, least, sectors, fresh] =
            [tally.cost.wavefronts, tally.cost.least, tally.cost.sectors, tally.cost.fresh]
                .map(|count| count as f64 * scale);
        self.wavefronts += wavefronts;
        self.least += least;
        self.sectors += sectors;
        self.loaded += fresh * SECTOR as f64;
        let share = &mut self.tallies[number];
        share.issued += issued;
        share.requests += tally.requests as f64 * scale;
        share.wavefronts += wavefronts;
        share.least += least;
        share.sectors += sectors;
        share.cycles += tally.cycles as f64 * scale;
    }
}

/// What may limit a launch.
pub const LIMITS: [&str; 8] = [
    "memory",
    "latency",
    "issue",
    "fp32 and integer units",
    "fp64",
    "special functions",
    "tensor cores",
    "shared memory",
];

/// Of a launch on a card.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Microseconds by each of [`LIMITS`].
    pub by: [f64; 8],
    /// Blocks that fit a multiprocessor, and how often the card is filled.
    pub resident: f64,
    pub waves: f64,
    /// KiB that a multiprocessor has under way, and that memory needs.
    pub under_way: f64,
    pub needed: f64,
}

impl Time {
    pub fn longest(&self) -> (f64, usize) {
        (0..LIMITS.len())
            .map(|limit| (self.by[limit], limit))
            .fold((0.0, 0), |a, b| if b.0 > a.0 { b } else { a })
    }
}

/// `bytes`: what the launch must move through memory. `cycles` of the count are those of this card's clock.
pub fn time(card: &Card, count: &Count, bytes: f64, resident: u32) -> Time {
    let units = &card.units;
    let resident = f64::from(resident.max(1));
    let machine = card.multiprocessors * card.clock * 1e3; // cycles a microsecond, of all multiprocessors
    let pipe = |pipe: Pipe| count.pipes[pipe.index()] * 32.0;
    let integer = pipe(Pipe::Alu) / units.integer;
    let multiply = pipe(Pipe::IntegerFma) / units.integer.min(units.fp32);
    let fp32 = (pipe(Pipe::Fma) + pipe(Pipe::IntegerFma)) / units.fp32 + pipe(Pipe::Half) / units.half;
    let mut arithmetic = integer.max(multiply).max(fp32);
    if units.shared_lanes {
        let all = pipe(Pipe::Fma) + pipe(Pipe::Half) + pipe(Pipe::IntegerFma) + pipe(Pipe::Alu);
        arithmetic = arithmetic.max(all / units.fp32);
    }
    let from_cache = count.sectors * SECTOR as f64 / FROM_CACHE;
    let slots = card.multiprocessors * resident;
    let waves = count.blocks / slots;
    let latency = (count.span(slots) + count.tail) / card.clock / 1e3;
    let by = [
        bytes / card.copy / 1e6,
        latency,
        count.issued / ISSUE / machine,
        arithmetic / machine,
        pipe(Pipe::Fp64) / units.fp64 / machine,
        pipe(Pipe::Special) / units.special / machine,
        count.products / units.tensor / machine,
        (count.wavefronts / WAVEFRONT).max(from_cache) / machine,
    ];
    let here = waves.min(1.0) * resident;
    let seconds = count.cycles / card.clock;
    let under_way = here * count.loaded / count.blocks * card.latency / seconds.max(1.0) / 1024.0;
    // Half of what memory moves are loads, or more: all of it is the safe side.
    let needed = card.latency * card.copy * 1e3 / card.multiprocessors / 1024.0;
    Time { by, resident, waves, under_way, needed }
}

/// Blocks that fit a multiprocessor.
pub fn resident(architecture: u32, registers: u32, threads: u32, shared: u32) -> Option<u32> {
    let room = card::room(architecture)?;
    let warps = threads.div_ceil(32);
    // Registers are dealt out to the four schedulers' warps, 256 at a time.
    let of_warp = (registers * 32).next_multiple_of(256);
    let by_registers = (65536 / 4) / of_warp * 4 / warps;
    let by_shared = (room.shared << 10) / (shared + 1024);
    Some(by_registers.min(by_shared).min(room.blocks).min(room.warps / warps))
}
