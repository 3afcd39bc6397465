//! A warp: its registers, and which of its 32 lanes are where.

use crate::operand::{Change, Operand, Part, Predicate, Special, ZERO};

pub const LANES: usize = 32;
pub type Lanes = [u32; LANES];

/// What all warps of a block have in common.
pub struct Setting {
    pub block: [u32; 3],
    pub threads: u32,
    /// Constant bank 0: sizes of the launch and the argument.
    pub constants: Vec<u8>,
}

impl Setting {
    pub fn constant(&self, bank: u8, offset: u32) -> u32 {
        let at = offset as usize;
        match self.constants.get(at..at + 4) {
            Some(bytes) if bank == 0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            _ => 0,
        }
    }
}

/// Lanes that are at one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub at: u32,
    pub lanes: u32,
    /// Waits for the others of a convergence barrier, or of the warp.
    pub waits: Option<Waits>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Waits {
    Convergence(u8),
    Warp,
    Block,
}

pub struct Warp {
    pub number: u32,
    registers: Vec<Lanes>,
    uniform: [u32; 64],
    /// Lanes for which each predicate is true.
    predicates: [u32; 8],
    uniform_predicates: [bool; 8],
    pub groups: Vec<Group>,
    /// Of each convergence barrier and lane: the lanes that began it together with this one, and where they go on.
    pub convergence: [[(u32, u32); LANES]; 16],
    pub live: u32,
    /// Cycles since the block began, and when each scoreboard is clear.
    pub time: u64,
    pub scoreboards: [u64; 6],
    /// When each group of asynchronous copies is complete, and the one that is not closed yet.
    pub copies: Vec<u64>,
    pub open_copies: u64,
    /// At a barrier with a vote: whether a lane of this warp votes, and then, whether one of the block did.
    pub votes: bool,
    pub voted: bool,
}

impl Warp {
    pub fn new(number: u32) -> Warp {
        let all = Group { at: 0, lanes: u32::MAX, waits: None };
        Warp {
            number,
            registers: vec![[0; LANES]; 256],
            uniform: [0; 64],
            predicates: [0, 0, 0, 0, 0, 0, 0, u32::MAX],
            uniform_predicates: [false, false, false, false, false, false, false, true],
            groups: vec![all],
            convergence: [[(0, 0); LANES]; 16],
            live: u32::MAX,
            time: 0,
            scoreboards: [0; 6],
            copies: Vec::new(),
            open_copies: 0,
            votes: false,
            voted: false,
        }
    }

    pub fn condition(&self, predicate: Predicate) -> u32 {
        let number = usize::from(predicate.number);
        let lanes = match predicate.uniform {
            true if self.uniform_predicates[number] => u32::MAX,
            true => 0,
            false => self.predicates[number],
        };
        if predicate.not { !lanes } else { lanes }
    }

    pub fn set_condition(&mut self, predicate: Predicate, value: u32, lanes: u32) {
        let number = usize::from(predicate.number);
        if number == 7 {
            return;
        }
        if predicate.uniform {
            self.uniform_predicates[number] = value & lanes != 0;
        } else {
            self.predicates[number] = self.predicates[number] & !lanes | value & lanes;
        }
    }

    /// Registers of an operand one after the other: the first is 0.
    pub fn read(&self, setting: &Setting, operand: &Operand, word: u8) -> Lanes {
        match *operand {
            Operand::Register { number: ZERO, .. } => [0; LANES],
            Operand::Register { number, part, .. } => {
                let lanes = self.registers[usize::from(number + word)];
                match part {
                    Part::All => lanes,
                    Part::Half(half) => lanes.map(|bits| bits >> (16 * half) & 0xffff),
                    Part::Byte(byte) => lanes.map(|bits| bits >> (8 * byte) & 0xff),
                }
            }
            Operand::Uniform { number: ZERO, .. } => [0; LANES],
            Operand::Uniform { number, .. } => [self.uniform[usize::from(number + word)]; LANES],
            Operand::Bits(bits) if word == 0 => [bits; LANES],
            Operand::Bits(bits) => [((bits as i32) >> 31) as u32; LANES],
            Operand::Constant { bank, index: None, offset, .. } => {
                [setting.constant(bank, offset + 4 * u32::from(word)); LANES]
            }
            Operand::Constant { bank, index: Some(index), offset, .. } => {
                let index = if index == ZERO { [0; LANES] } else { self.registers[usize::from(index)] };
                index.map(|index| setting.constant(bank, index.wrapping_add(offset + 4 * u32::from(word))))
            }
            Operand::Special(special) => self.special(setting, special),
            Operand::Label(address) => [address; LANES],
            Operand::Predicate(predicate) => {
                let lanes = self.condition(predicate);
                std::array::from_fn(|lane| lanes >> lane & 1)
            }
            Operand::Place(_) | Operand::Barrier(_) => [0; LANES],
        }
    }

    fn special(&self, setting: &Setting, special: Special) -> Lanes {
        let thread = |lane: usize| self.number * 32 + lane as u32;
        match special {
            // Blocks have one dimension.
            Special::Thread(0) => std::array::from_fn(thread),
            Special::Thread(_) | Special::Zero => [0; LANES],
            Special::Block(side) => [setting.block[usize::from(side)]; LANES],
            Special::Lane => std::array::from_fn(|lane| lane as u32),
            Special::Predicates => std::array::from_fn(|lane| {
                (0..7).fold(0, |bits, number| bits | (self.predicates[number] >> lane & 1) << number)
            }),
        }
    }

    pub fn set_predicates(&mut self, bits: &Lanes, mask: u32, lanes: u32) {
        for number in (0..7).filter(|number| mask >> number & 1 == 1) {
            let value = (0..LANES).fold(0, |value, lane| value | (bits[lane] >> number & 1) << lane);
            self.predicates[number] = self.predicates[number] & !lanes | value & lanes;
        }
    }

    /// As an integer.
    pub fn integer(&self, setting: &Setting, operand: &Operand) -> Lanes {
        let change = change(operand);
        let mut value = self.read(setting, operand, 0);
        if change.absolute {
            value = value.map(|bits| (bits as i32).unsigned_abs());
        }
        if change.invert {
            value = value.map(|bits| !bits);
        }
        if change.negate {
            value = value.map(u32::wrapping_neg);
        }
        value
    }

    /// As an integer of 64 bits.
    pub fn wide(&self, setting: &Setting, operand: &Operand) -> [u64; LANES] {
        let (low, high) = (self.read(setting, operand, 0), self.read(setting, operand, 1));
        let value: [u64; LANES] =
            std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32);
        let change = change(operand);
        match () {
            _ if change.negate => value.map(u64::wrapping_neg),
            _ if change.invert => value.map(|bits| !bits),
            _ => value,
        }
    }

    pub fn float(&self, setting: &Setting, operand: &Operand) -> [f32; LANES] {
        signed(self.read(setting, operand, 0).map(f32::from_bits), change(operand))
    }

    /// A double; of a number in the instruction, and of what only has its upper half, the lower is zero.
    pub fn double(&self, setting: &Setting, operand: &Operand) -> [f64; LANES] {
        let value: [f64; LANES] = match operand {
            Operand::Bits(bits) => [f64::from_bits(u64::from(*bits) << 32); LANES],
            _ => {
                let (low, high) = (self.read(setting, operand, 0), self.read(setting, operand, 1));
                std::array::from_fn(|i| f64::from_bits(u64::from(low[i]) | u64::from(high[i]) << 32))
            }
        };
        let change = change(operand);
        value.map(|x| {
            let x = if change.absolute { x.abs() } else { x };
            if change.negate { -x } else { x }
        })
    }

    pub fn write(&mut self, operand: Option<Operand>, word: u8, value: &Lanes, lanes: u32) {
        match operand {
            Some(Operand::Register { number, .. }) if number != ZERO => {
                let register = &mut self.registers[usize::from(number + word)];
                if lanes == u32::MAX {
                    *register = *value;
                } else {
                    for lane in (0..LANES).filter(|lane| lanes >> lane & 1 == 1) {
                        register[lane] = value[lane];
                    }
                }
            }
            Some(Operand::Uniform { number, .. }) if number != ZERO && lanes != 0 => {
                self.uniform[usize::from(number + word)] = value[lanes.trailing_zeros() as usize];
            }
            _ => {}
        }
    }

    pub fn write_wide(&mut self, operand: Option<Operand>, value: &[u64; LANES], lanes: u32) {
        self.write(operand, 0, &value.map(|bits| bits as u32), lanes);
        self.write(operand, 1, &value.map(|bits| (bits >> 32) as u32), lanes);
    }

    /// Addresses of an access.
    pub fn addresses(&self, place: &crate::operand::Place) -> [u64; LANES] {
        let uniform = match place.uniform {
            Some(number) if number != ZERO => {
                let at = usize::from(number);
                let low = u64::from(self.uniform[at]);
                // With a wide base, or none, the uniform part is 64 bits for global memory; shared memory takes 32.
                if place.wide { low | u64::from(self.uniform[at + 1]) << 32 } else { low }
            }
            _ => 0,
        };
        let base: [u64; LANES] = match place.base {
            Some(number) if number != ZERO => {
                let low = self.registers[usize::from(number)];
                match place.wide {
                    true => {
                        let high = self.registers[usize::from(number) + 1];
                        std::array::from_fn(|lane| u64::from(low[lane]) | u64::from(high[lane]) << 32)
                    }
                    false => low.map(|bits| u64::from(bits << place.shift)),
                }
            }
            _ => [0; LANES],
        };
        base.map(|base| base.wrapping_add(uniform).wrapping_add(place.offset as u64))
    }
}

pub fn change(operand: &Operand) -> Change {
    match *operand {
        Operand::Register { change, .. }
        | Operand::Uniform { change, .. }
        | Operand::Constant { change, .. } => change,
        _ => Change::default(),
    }
}

pub fn signed(value: [f32; LANES], change: Change) -> [f32; LANES] {
    value.map(|x| {
        let x = if change.absolute { x.abs() } else { x };
        if change.negate { -x } else { x }
    })
}
