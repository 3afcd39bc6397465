//! How long results take on an idle machine, in cycles.
//!
//! Fixed latencies are in the machine code: the cycles until the next instruction. The others are rounded from published
//! microbenchmarks (Jia et al. 2018 for Volta and Turing, Luo et al. 2024, "Benchmarking and Dissecting the Nvidia
//! Hopper GPU Architecture", for Ampere, Ada and Hopper), and are assumptions where those do not agree.

use crate::code::Code;
use crate::instruction::Instruction;
use crate::pipe::Pipe;

/// Which memory answers a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Level {
    /// The first-level cache.
    First,
    /// The second-level cache.
    Second,
    Memory,
}

pub struct Latency {
    /// Of a load, by what answers it.
    pub memory: u64,
    pub second: u64,
    pub first: u64,
    /// Until the second-level cache has what the thread wrote.
    pub fence: u64,
    pub shared: u64,
    pub special: u64,
    pub fp64: u64,
    pub tensor: u64,
    pub constant: u64,
    pub barrier: u64,
    /// Until an instruction has read its registers.
    pub operands: u64,
}

impl Latency {
    /// `memory` in nanoseconds, `clock` in GHz.
    pub fn of_card(memory: f64, clock: f64) -> Latency {
        Latency {
            memory: (memory * clock) as u64,
            second: 270,
            first: 35,
            fence: 540, // there and back twice
            shared: 29,
            special: 22,
            fp64: 24,
            tensor: 33,
            constant: 30,
            barrier: 10,
            operands: 12,
        }
    }

    /// Until the result of an instruction is there, if that is told by a scoreboard.
    pub fn of(&self, instruction: &Instruction, from: Level, wavefronts: u64) -> u64 {
        match (instruction.pipe, instruction.code) {
            (Pipe::Global, Code::Store { .. }) => self.operands + wavefronts,
            (Pipe::Global, Code::Arrive) => self.second + wavefronts,
            (Pipe::Global, _) => match from {
                Level::First => self.first + wavefronts,
                Level::Second => self.second + wavefronts,
                Level::Memory => self.memory + wavefronts,
            },
            (Pipe::Shared, _) => self.shared + wavefronts.saturating_sub(1),
            (Pipe::Special, _) => self.special,
            (Pipe::Fp64, _) => self.fp64,
            (Pipe::Tensor, _) => self.tensor,
            _ => self.constant,
        }
    }
}
