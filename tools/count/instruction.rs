//! A machine instruction: its text taken apart, and what its encoding says about when it may be issued.

use crate::operand::{self, Number, Operand, Predicate};
use crate::pipe::Pipe;

/// The scheduling bits of an encoding, the same from Volta to Hopper.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Control {
    /// Cycles until the warp's next instruction.
    pub stall: u32,
    /// The scoreboard that is raised until the result is there, and that which is raised until operands are read.
    pub writes: Option<u8>,
    pub reads: Option<u8>,
    /// Scoreboards to wait for, as bits.
    pub wait: u8,
}

impl Control {
    /// From the upper 64 bits of an encoding.
    pub fn of(upper: u64) -> Control {
        let field = |at: u32, bits: u32| (upper >> at & ((1 << bits) - 1)) as u8;
        let scoreboard = |number: u8| (number < 6).then_some(number);
        Control {
            stall: u32::from(field(41, 4)),
            writes: scoreboard(field(46, 3)),
            reads: scoreboard(field(49, 3)),
            wait: field(52, 6),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Instruction {
    pub address: u32,
    pub text: String,
    pub guard: Predicate,
    /// `LDG`, and what follows it: `E`, `128`.
    pub name: String,
    pub words: Vec<String>,
    /// Registers that it writes; predicates that it writes; what it reads, predicates apart.
    pub to: Option<Operand>,
    pub flags: Vec<Predicate>,
    pub from: Vec<Operand>,
    pub conditions: Vec<Predicate>,
    pub control: Control,
    pub pipe: Pipe,
    /// File and line of the source.
    pub line: usize,
    /// Does nothing that the count needs but cost time: arithmetic whose result never steers.
    pub code: crate::code::Code,
}

/// Instructions whose first operand is no result.
const WITHOUT_RESULT: [&str; 36] = [
    "ISETP",
    "UISETP",
    "FSETP",
    "DSETP",
    "HSETP2",
    "FCHK",
    "STG",
    "STS",
    "ST",
    "STL",
    "LDGSTS",
    "BRA",
    "BSSY",
    "BSYNC",
    "BREAK",
    "WARPSYNC",
    "CALL",
    "RET",
    "EXIT",
    "BAR",
    "NOP",
    "DEPBAR",
    "LDGDEPBAR",
    "RED",
    "PLOP3",
    "R2P",
    "YIELD",
    "MEMBAR",
    "ERRBAR",
    "CGAERRBAR",
    "REDG",
    "ENDCOLLECTIVE",
    "CCTL",
    "BRX",
    "UPLOP3",
    "BMOV",
];

impl Instruction {
    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|known| known == word)
    }

    /// Bytes of a lane's access to memory.
    pub fn width(&self) -> u32 {
        self.words
            .iter()
            .find_map(|word| match word.as_str() {
                "U8" | "S8" => Some(1),
                "U16" | "S16" => Some(2),
                "64" => Some(8),
                "128" => Some(16),
                _ => None,
            })
            .unwrap_or(4)
    }

    /// `text` is without the semicolon.
    pub fn parse(
        address: u32,
        text: &str,
        upper: u64,
        label: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<Instruction, String> {
        let wrong = |what: &str| format!("cannot read the {what} of `{text}`");
        let mut rest = text.trim();
        let mut guard = Predicate::TRUE;
        if let Some(guarded) = rest.strip_prefix('@') {
            let (condition, after) = guarded.split_once(char::is_whitespace).ok_or_else(|| wrong("guard"))?;
            guard = operand::predicate(condition).ok_or_else(|| wrong("guard"))?;
            rest = after.trim();
        }
        let (mnemonic, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let mut words = mnemonic.split('.').map(str::to_string);
        let name = words.next().unwrap_or_default();
        let words: Vec<String> = words.collect();
        let number = match name.as_bytes().first() {
            _ if name.starts_with("F2F") => Number::Float,
            Some(b'D') if name != "DEPBAR" => Number::Double,
            Some(b'H') => Number::Half,
            _ => Number::Float,
        };
        let mut found = Vec::new();
        // Where `BRX` may go is not followed: a kernel that runs it cannot be counted.
        let operands = if name == "BRX" { "" } else { operands };
        for part in operands.split(", ").filter(|part| !part.trim().is_empty()) {
            // `RET.REL.NODEC R8 `(kernel)` has a blank where others have a comma.
            let part = if name == "RET" { part.split(' ').next().unwrap_or(part) } else { part };
            found.push(operand::parse(part, label, number).ok_or_else(|| wrong("operand"))?);
        }
        let mut instruction = Instruction {
            address,
            text: rest.to_string(),
            guard,
            pipe: Pipe::of(&name),
            code: crate::code::Code::of(&name, &words),
            name,
            words,
            to: None,
            flags: Vec::new(),
            from: Vec::new(),
            conditions: Vec::new(),
            control: Control::of(upper),
            line: 0,
        };
        instruction.sort(&found);
        Ok(instruction)
    }

    /// Deals the operands out to results and sources.
    fn sort(&mut self, operands: &[Operand]) {
        let has_result = !WITHOUT_RESULT.contains(&self.name.as_str());
        let flags = match self.name.as_str() {
            "PLOP3" | "UPLOP3" | "ISETP" | "UISETP" | "FSETP" | "DSETP" | "HSETP2" => 2,
            "FCHK" | "VOTE" | "VOTEU" | "B2R" => 1,
            "BRA" | "LDGSTS" | "BAR" | "WARPSYNC" | "EXIT" => 0,
            _ => 2,
        };
        let mut head = true;
        for operand in operands {
            match *operand {
                Operand::Predicate(predicate) if head && !predicate.not && self.flags.len() < flags => {
                    self.flags.push(predicate);
                }
                Operand::Predicate(predicate) => {
                    head = false;
                    self.conditions.push(predicate);
                }
                Operand::Register { .. } | Operand::Uniform { .. }
                    if head && has_result && self.to.is_none() =>
                {
                    self.to = Some(*operand);
                }
                _ => {
                    head = false;
                    self.from.push(*operand);
                }
            }
        }
    }
}
