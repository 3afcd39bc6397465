//! Runs the machine code of one block on the CPU and counts.
//!
//! Control and addresses are exact, because they follow from integers. Global memory has no contents: every load gives
//! the same number. So a branch that depends on data goes one fixed way.

use std::collections::HashMap;

use crate::code::Code;
use crate::flow::{control, merge, next, settle, vote};
use crate::instruction::Instruction;
use crate::latency::{Latency, Level};
use crate::listing::Kernel;
use crate::memory::{self, Cost, Touched};
use crate::operand::Operand;
use crate::warp::{LANES, Lanes, Setting, Waits, Warp};
use crate::{floats, integers};

/// What one instruction did, in all warps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Times that it was issued, and lanes that it was done for.
    pub issued: u64,
    pub lanes: u64,
    pub requests: u64,
    pub cost: Cost,
    /// Until the next instruction could begin, waits included, of all warps.
    pub cycles: u64,
}

impl Tally {
    fn add(&mut self, cost: Cost) {
        self.requests += 1;
        self.cost.wavefronts += cost.wavefronts;
        self.cost.least += cost.least;
        self.cost.sectors += cost.sectors;
        self.cost.fresh += cost.fresh;
    }
}

/// What a block did.
pub struct Done {
    /// By the kernel's instructions.
    pub tallies: Vec<Tally>,
    /// Cycles of the block if it were alone on an idle machine.
    pub cycles: u64,
    /// Every global store: address and bytes. Kept where asked for.
    pub stores: Vec<(u64, u32)>,
    /// Of each count of blocks that this one came to: how many blocks come there.
    pub arrivals: Vec<u32>,
    pub last: Last,
}

pub struct Block<'a> {
    kernel: &'a Kernel,
    setting: &'a Setting,
    latency: &'a Latency,
    run: Run,
    shared: Vec<u8>,
    touched: Touched,
    tallies: Vec<Tally>,
    stores: Option<Vec<(u64, u32)>>,
    arrivals: Vec<u32>,
}

/// Whether a block is the last that comes to a count of blocks.
pub enum Last {
    /// It is, at the first counts that it comes to.
    At(usize),
    /// The blocks that ran before are counted, by the count's address.
    Counted(HashMap<u64, u32>),
}

/// How a block is run.
pub struct Run {
    /// What global memory holds everywhere.
    pub fill: u32,
    /// Keeps the stores.
    pub keep: bool,
    pub last: Last,
    /// The launch's tensors lie in the second-level cache.
    pub cached: bool,
}

/// Bytes of a block's shared memory; on sm_90 the first KiB is the system's.
const SHARED: usize = 256 << 10;
/// No kernel's block takes as many instructions: it does not end.
const PATIENCE: u64 = 20_000_000;

impl<'a> Block<'a> {
    pub fn new(kernel: &'a Kernel, setting: &'a Setting, latency: &'a Latency, run: Run) -> Self {
        let tallies = vec![Tally::default(); kernel.instructions.len()];
        let (shared, touched) = (vec![0; SHARED], Touched::default());
        let (stores, arrivals) = (run.keep.then(Vec::new), Vec::new());
        Block { kernel, setting, latency, run, shared, touched, tallies, stores, arrivals }
    }

    pub fn run(mut self) -> Result<Done, String> {
        let mut warps: Vec<Warp> = (0..self.setting.threads.div_ceil(32)).map(Warp::new).collect();
        let mut issued = 0;
        loop {
            for warp in &mut warps {
                self.advance(warp, &mut issued).map_err(|error| format!("{}: {error}", self.kernel.name))?;
            }
            // All that are left wait for each other.
            let now = warps.iter().filter(|warp| warp.live != 0).map(|warp| warp.time).max();
            let Some(now) = now else { break };
            vote(&mut warps);
            for warp in warps.iter_mut().filter(|warp| warp.live != 0) {
                let after = now + self.latency.barrier;
                // The group stands behind the barrier.
                self.tallies[warp.groups[0].at as usize / 16 - 1].cycles += after - warp.time;
                warp.time = after;
                warp.groups.iter_mut().for_each(|group| group.waits = None);
                merge(&mut warp.groups);
            }
        }
        let cycles = warps.iter().map(|warp| warp.time).max().unwrap_or(0);
        let stores = self.stores.unwrap_or_default();
        Ok(Done { tallies: self.tallies, cycles, stores, arrivals: self.arrivals, last: self.run.last })
    }

    /// Until the warp ends or waits for the block.
    fn advance(&mut self, warp: &mut Warp, issued: &mut u64) -> Result<(), String> {
        while warp.live != 0 {
            let Some(number) = next(&warp.groups) else {
                if settle(warp) {
                    continue;
                }
                return match warp.groups.iter().all(|group| group.waits == Some(Waits::Block)) {
                    true => Ok(()),
                    false => Err("lanes wait for each other for ever".into()),
                };
            };
            *issued += 1;
            if *issued > PATIENCE {
                return Err("does not end".into());
            }
            self.step(warp, number)?;
            if warp.groups.len() > 1 {
                warp.groups.retain(|group| group.lanes != 0);
                merge(&mut warp.groups);
            } else if warp.groups[0].lanes == 0 {
                warp.groups.clear();
            }
        }
        Ok(())
    }

    /// One instruction of one group of lanes.
    fn step(&mut self, warp: &mut Warp, number: usize) -> Result<(), String> {
        let kernel = self.kernel;
        let group = warp.groups[number];
        let index = group.at as usize / 16;
        let instruction =
            kernel.instructions.get(index).ok_or_else(|| format!("nothing at {:x}", group.at))?;
        let control = instruction.control;
        let began = warp.time;
        for scoreboard in (0..6).filter(|scoreboard| control.wait >> scoreboard & 1 == 1) {
            warp.time = warp.time.max(warp.scoreboards[scoreboard]);
        }
        let lanes = integers::guarded(warp, instruction.guard, group.lanes);
        let before = self.tallies[index].cost;
        self.tallies[index].issued += 1;
        self.tallies[index].lanes += u64::from(lanes.count_ones());
        warp.groups[number].at += 16;
        if lanes != 0 || matches!(instruction.code, Code::Join | Code::Barrier | Code::BarrierVote) {
            self.perform(warp, number, index, lanes)?;
        }
        let after = self.tallies[index].cost;
        let fresh = after.fresh > before.fresh;
        // What other blocks have written just before is in the second-level cache.
        let from = match fresh {
            true if self.run.cached || !self.arrivals.is_empty() => Level::Second,
            true => Level::Memory,
            false => Level::First,
        };
        let ready = warp.time + self.latency.of(instruction, from, after.wavefronts - before.wavefronts);
        if let Some(scoreboard) = control.writes {
            let board = &mut warp.scoreboards[usize::from(scoreboard)];
            *board = (*board).max(ready);
        }
        if let Some(scoreboard) = control.reads {
            let board = &mut warp.scoreboards[usize::from(scoreboard)];
            *board = (*board).max(warp.time + self.latency.operands);
        }
        if instruction.code == Code::CopyAsync && lanes != 0 {
            warp.open_copies = warp.open_copies.max(ready);
        }
        if instruction.code == Code::Fence && lanes != 0 {
            warp.time += self.latency.fence;
        }
        warp.time += u64::from(control.stall.max(1));
        self.tallies[index].cycles += warp.time - began;
        Ok(())
    }

    fn perform(&mut self, warp: &mut Warp, number: usize, index: usize, lanes: u32) -> Result<(), String> {
        let instruction = &self.kernel.instructions[index];
        match instruction.code {
            Code::Load { .. }
            | Code::Store { .. }
            | Code::CopyAsync
            | Code::LoadMatrix
            | Code::Atomic { .. }
            | Code::Arrive => self.access(warp, index, lanes),
            Code::CopyGroup => {
                let complete = warp.open_copies.max(warp.copies.last().copied().unwrap_or(0));
                warp.copies.push(complete);
                warp.open_copies = 0;
                Ok(())
            }
            Code::Wait => {
                // `DEPBAR.LE SB0, 0x1`: all groups of copies but the last ones are complete.
                let rest = instruction.from.iter().find_map(|operand| match operand {
                    Operand::Bits(bits) => Some(*bits as usize),
                    _ => None,
                });
                if let Some(last) = warp.copies.len().checked_sub(1 + rest.unwrap_or(0)) {
                    warp.time = warp.time.max(warp.copies[last]);
                }
                Ok(())
            }
            _ if integers::run(warp, self.setting, instruction, lanes) => Ok(()),
            _ if floats::run(warp, self.setting, instruction, lanes) => Ok(()),
            _ => control(warp, self.setting, instruction, number, lanes),
        }
    }

    fn access(&mut self, warp: &mut Warp, index: usize, lanes: u32) -> Result<(), String> {
        let instruction = &self.kernel.instructions[index];
        let width = instruction.width();
        let mut places = instruction.from.iter().filter_map(|operand| match operand {
            Operand::Place(place) => Some(warp.addresses(place)),
            _ => None,
        });
        let addresses = places.next().ok_or_else(|| format!("no address: {}", instruction.text))?;
        let mut cost;
        match instruction.code {
            Code::Load { shared: false } => {
                cost = self.touched.global(&addresses, lanes, width);
                let fill = self.run.fill;
                let filled = if width < 4 { fill & ((1 << (8 * width)) - 1) } else { fill };
                for word in 0..width.div_ceil(4) as u8 {
                    warp.write(instruction.to, word, &[filled; LANES], lanes);
                }
            }
            Code::Store { shared: false } => {
                cost = self.touched.global(&addresses, lanes, width);
                cost.fresh = 0;
                if let Some(stores) = &mut self.stores {
                    stores.extend((0..LANES).filter(|i| lanes >> i & 1 == 1).map(|i| (addresses[i], width)));
                }
            }
            Code::Atomic { shared: false, .. } => cost = self.touched.global(&addresses, lanes, width),
            Code::Arrive => {
                cost = self.touched.global(&addresses, lanes, width);
                self.arrive(warp, instruction, &addresses, lanes)?;
            }
            Code::Load { shared: true } => {
                cost = memory::shared(&addresses, lanes, width);
                self.load(warp, instruction, &addresses, lanes)?;
            }
            Code::Store { shared: true } => {
                cost = memory::shared(&addresses, lanes, width);
                self.store(warp, instruction, &addresses, lanes)?;
            }
            Code::Atomic { returns, .. } => {
                cost = memory::shared(&addresses, lanes, width);
                if returns {
                    warp.write(instruction.to, 0, &[0; LANES], lanes);
                }
            }
            Code::LoadMatrix => {
                let count = if instruction.has("4") {
                    4
                } else if instruction.has("2") {
                    2
                } else {
                    1
                };
                cost = memory::matrices(&addresses, count);
                for word in 0..count as u8 {
                    warp.write(instruction.to, word, &[0; LANES], lanes);
                }
            }
            _ => {
                let read = instruction.conditions.first().map_or(u32::MAX, |c| warp.condition(*c)) & lanes;
                let from = places.next().ok_or("a copy without a source")?;
                let shared = memory::shared(&addresses, lanes, width);
                cost = self.touched.global(&from, read, width);
                cost.wavefronts += shared.wavefronts;
                cost.least += shared.least;
            }
        }
        self.tallies[index].add(cost);
        Ok(())
    }

    /// One lane of a block counts it. What comes back is the limit if this block is the last.
    fn arrive(
        &mut self,
        warp: &mut Warp,
        at: &Instruction,
        addresses: &[u64; LANES],
        lanes: u32,
    ) -> Result<(), String> {
        let limit = at.from.get(1).ok_or_else(|| format!("no limit: {}", at.text))?;
        let lane = lanes.trailing_zeros() as usize;
        let limit = warp.integer(self.setting, limit)[lane];
        let before = match &mut self.run.last {
            Last::At(first) if self.arrivals.len() < *first => limit,
            Last::At(_) => 0,
            Last::Counted(counts) => {
                let count = counts.entry(addresses[lane]).or_default();
                let before = *count;
                *count = if before >= limit { 0 } else { before + 1 };
                before
            }
        };
        self.arrivals.push(limit.saturating_add(1));
        warp.write(at.to, 0, &[before; LANES], lanes);
        Ok(())
    }

    fn load(
        &self,
        warp: &mut Warp,
        at: &Instruction,
        addresses: &[u64; LANES],
        lanes: u32,
    ) -> Result<(), String> {
        let width = at.width() as usize;
        for word in 0..width.div_ceil(4) {
            let mut value: Lanes = [0; LANES];
            for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
                let from = addresses[lane] as usize + 4 * word;
                let bytes = self.shared.get(from..from + width.min(4)).ok_or_else(|| outside(at))?;
                value[lane] = bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            }
            warp.write(at.to, word as u8, &value, lanes);
        }
        Ok(())
    }

    fn store(
        &mut self,
        warp: &Warp,
        at: &Instruction,
        addresses: &[u64; LANES],
        lanes: u32,
    ) -> Result<(), String> {
        let width = at.width() as usize;
        let what = at.from.get(1).ok_or_else(|| format!("nothing to store: {}", at.text))?;
        for word in 0..width.div_ceil(4) {
            let value = warp.read(self.setting, what, word as u8);
            for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
                let to = addresses[lane] as usize + 4 * word;
                let bytes = self.shared.get_mut(to..to + width.min(4)).ok_or_else(|| outside(at))?;
                bytes.copy_from_slice(&value[lane].to_le_bytes()[..width.min(4)]);
            }
        }
        Ok(())
    }
}

fn outside(at: &Instruction) -> String {
    format!("outside shared memory at {:x}: {}", at.address, at.text)
}
