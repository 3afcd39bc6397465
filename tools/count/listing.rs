//! Reads what `nvdisasm -c -g -hex` prints of a cubin.

use std::collections::HashMap;

use crate::instruction::Instruction;

/// One kernel's machine code.
pub struct Kernel {
    pub name: String,
    pub registers: u32,
    pub instructions: Vec<Instruction>,
}

/// Kernels by name, and the source lines that instructions name by index: file and line.
#[derive(Default)]
pub struct Listing {
    pub kernels: HashMap<String, Kernel>,
    pub lines: Vec<(String, u32)>,
}

/// An instruction before its labels are known.
struct Raw<'a> {
    address: u32,
    text: &'a str,
    upper: u64,
    line: usize,
}

impl Listing {
    /// Adds what a listing says of the kernels that are wanted.
    pub fn read(&mut self, text: &str, wanted: &dyn Fn(&str) -> bool) -> Result<(), String> {
        let mut known: HashMap<(String, u32), usize> = HashMap::new();
        for section in text.split("\n//-----").skip(1) {
            let Some(name) = section.lines().next().and_then(|line| line.split(".text.").nth(1)) else {
                continue;
            };
            let name = name.split_whitespace().next().unwrap_or_default();
            if wanted(name) {
                let kernel = self.section(name, section, &mut known)?;
                self.kernels.insert(name.to_string(), kernel);
            }
        }
        Ok(())
    }

    /// Adds how many registers a thread takes, from what `cuobjdump -res-usage` prints.
    pub fn registers(&mut self, text: &str) {
        let mut name = "";
        for row in text.lines().map(str::trim) {
            if let Some(rest) = row.strip_prefix("Function ") {
                name = rest.trim_end_matches(':');
            } else if let Some(rest) = row.strip_prefix("REG:")
                && let Some(kernel) = self.kernels.get_mut(name)
            {
                kernel.registers = rest.split(' ').next().and_then(|digits| digits.parse().ok()).unwrap_or(0);
            }
        }
    }

    fn section(
        &mut self,
        name: &str,
        text: &str,
        known: &mut HashMap<(String, u32), usize>,
    ) -> Result<Kernel, String> {
        let (mut raw, mut labels) = (Vec::<Raw>::new(), HashMap::<&str, u32>::new());
        let (mut line, mut next) = (0, 0);
        for row in text.lines() {
            let trimmed = row.trim();
            if let Some(place) = trimmed.strip_prefix("//## File ") {
                line = self.line(place, known).unwrap_or(line);
            } else if let Some(instruction) = instruction(trimmed, line) {
                next = instruction.address + 16;
                raw.push(instruction);
            } else if let Some(upper) = encoding(trimmed)
                && trimmed.starts_with("/* 0x")
            {
                raw.last_mut().ok_or("an encoding without an instruction")?.upper = upper;
            } else if let Some(label) = trimmed.strip_suffix(':')
                && !label.contains(' ')
            {
                labels.insert(label, next);
            }
        }
        let label = |name: &str| labels.get(name).copied();
        let mut kernel = Kernel { name: name.into(), registers: 0, instructions: Vec::new() };
        for Raw { address, text, upper, line } in raw {
            let mut instruction = Instruction::parse(address, text, upper, &label)
                .map_err(|error| format!("{name}: {error}"))?;
            instruction.line = line;
            if address as usize != kernel.instructions.len() * 16 {
                return Err(format!("{name}: the listing has a hole before {address:x}"));
            }
            kernel.instructions.push(instruction);
        }
        match kernel.instructions.is_empty() {
            true => Err(format!("{name}: no machine code in the listing")),
            false => Ok(kernel),
        }
    }

    /// `"/a/kernels/depthwise.cu", line 35`
    fn line(&mut self, place: &str, known: &mut HashMap<(String, u32), usize>) -> Option<usize> {
        let (file, rest) = place.strip_prefix('"')?.split_once('"')?;
        let number = rest.split("line ").nth(1)?.split_whitespace().next()?.parse().ok()?;
        let key = (file.rsplit('/').next()?.to_string(), number);
        Some(*known.entry(key).or_insert_with_key(|key| {
            self.lines.push(key.clone());
            self.lines.len() - 1
        }))
    }
}

/// `/*0010*/  MOV R1, R2 ;  /* 0x… */`
fn instruction(row: &str, line: usize) -> Option<Raw<'_>> {
    let (address, rest) = row.strip_prefix("/*")?.split_once("*/")?;
    let address = u32::from_str_radix(address, 16).ok()?;
    let (text, _) = rest.split_once(';')?;
    Some(Raw { address, text: text.trim(), upper: 0, line })
}

fn encoding(row: &str) -> Option<u64> {
    let digits = row.rsplit_once("/* 0x")?.1.split(' ').next()?;
    u64::from_str_radix(digits, 16).ok()
}
