//! The bits of a JPEG's entropy-coded data, and the Huffman codes in them.

use std::fmt;

use super::segments::next_segment;

/// Why a scan is not whole.
pub(super) enum Fault {
    /// A marker or the file's end where data should be.
    Short,
    /// Bits that are no code, or a code that cannot stand there.
    Senseless,
    /// Another marker, or none, where a restart marker should be.
    Restart(u8),
    /// Data after the last code.
    Excess,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Fault::Short => write!(f, "its data end"),
            Fault::Senseless => write!(f, "its data make no sense"),
            Fault::Restart(number) => write!(f, "restart marker {number} is missing"),
            Fault::Excess => write!(f, "data are left over"),
        }
    }
}

/// Codes of up to so many bits are looked up; longer ones are searched for.
const SHORT: u32 = 10;
const LOOKUPS: usize = 1 << SHORT;

/// A Huffman table.
pub(super) struct Codes {
    /// By the next [`SHORT`] bits: the code's length and its symbol. Length 0 for longer codes.
    short: Box<[(u8, u8); LOOKUPS]>,
    /// By length: the first code, the number of codes, and the index of the first symbol.
    long: [(u32, u32, u32); 17],
    symbols: Vec<u8>,
}

impl Codes {
    pub fn new(counts: &[u8], symbols: &[u8]) -> Option<Codes> {
        let (mut code, mut index) = (0_u32, 0_u32);
        let mut codes =
            Codes { short: Box::new([(0, 0); LOOKUPS]), long: [(0, 0, 0); 17], symbols: symbols.to_vec() };
        for (length, &count) in (1_u32..).zip(counts) {
            code <<= 1;
            codes.long[length as usize] = (code, count.into(), index);
            for _ in 0..count {
                if code >= 1 << length {
                    return None;
                }
                if let Some(free) = SHORT.checked_sub(length) {
                    let first = (code << free) as usize;
                    codes.short[first..first + (1 << free)].fill((length as u8, symbols[index as usize]));
                }
                code += 1;
                index += 1;
            }
        }
        Some(codes)
    }
}

/// What codes of AC coefficients do where each block is coded whole.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Bits of the codes and of the values behind them. 0 if a code is longer than what was looked up, or wrong.
    bits: u8,
    /// Coefficients passed, plus [`Step::END`] if the block ends there.
    coefficients: u8,
}

impl Step {
    const END: u8 = 128;

    fn new((length, symbol): (u8, u8)) -> Step {
        match (symbol >> 4, symbol & 15) {
            _ if length == 0 => Step::default(),
            (0, 0) => Step { bits: length, coefficients: Step::END },
            (zeros, 1..=10) | (zeros @ 15, 0) => {
                Step { bits: length + (symbol & 15), coefficients: zeros + 1 }
            }
            _ => Step::default(),
        }
    }
}

/// The AC codes of blocks that are coded whole. Values are passed, never looked at, so that several codes and their
/// values are one lookup: a third of the time that one at a time takes.
pub(super) struct Steps<'a> {
    codes: &'a Codes,
    /// By the next [`SHORT`] bits: the first code.
    one: Box<[Step; LOOKUPS]>,
    /// The first code, and those behind it that stand in these bits with their values.
    several: Box<[Step; LOOKUPS]>,
}

impl Steps<'_> {
    pub fn new(codes: &Codes) -> Steps<'_> {
        let one = Box::new(codes.short.map(Step::new));
        let mut several = one.clone();
        for (ahead, step) in several.iter_mut().enumerate() {
            while step.bits > 0 && u32::from(step.bits) < SHORT && step.coefficients < Step::END {
                let next = one[ahead << step.bits & (LOOKUPS - 1)];
                let passed = step.coefficients + (next.coefficients & !Step::END);
                if next.bits == 0 || u32::from(step.bits + next.bits) > SHORT || passed >= 64 {
                    break;
                }
                step.bits += next.bits;
                step.coefficients += next.coefficients;
            }
        }
        Steps { codes, one, several }
    }
}

/// The bits of a scan up to the next marker.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    pub at: usize,
    /// Unread bits, the next one on top, zeros below them.
    buffer: u64,
    count: u32,
}

/// Whether one of the eight bytes is 0xff: then its complement has a byte of 0.
fn has_ff(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 255;
    (!word).wrapping_sub(ONES) & word & (ONES << 7) != 0
}

impl Bits<'_> {
    pub fn new(bytes: &[u8], at: usize) -> Bits<'_> {
        Bits { bytes, at, buffer: 0, count: 0 }
    }

    /// The next byte of data; `None` at a marker.
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        if byte == 0xff {
            if self.bytes.get(self.at + 1) != Some(&0) {
                return None;
            }
            self.at += 1;
        }
        self.at += 1;
        Some(byte)
    }

    #[inline(always)]
    fn fill(&mut self) {
        // Eight bytes at once, where none of them is stuffed or begins a marker.
        if let Some(&eight) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_be_bytes(eight);
            if !has_ff(word) && self.count < 64 {
                let bytes = (64 - self.count) / 8;
                let filled = self.count + 8 * bytes;
                self.buffer |= word >> self.count;
                // At most seven bits too many.
                self.buffer = self.buffer >> (64 - filled) << (64 - filled);
                self.count = filled;
                self.at += bytes as usize;
                return;
            }
        }
        self.fill_slowly();
    }

    /// Byte by byte.
    #[cold]
    fn fill_slowly(&mut self) {
        while self.count <= 56 {
            let Some(byte) = self.byte() else { return };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    pub fn take(&mut self, bits: u32) -> Result<u32, Fault> {
        if self.count < bits {
            self.fill();
            if self.count < bits {
                return Err(Fault::Short);
            }
        }
        if bits == 0 {
            return Ok(0);
        }
        let value = (self.buffer >> (64 - bits)) as u32;
        self.buffer <<= bits;
        self.count -= bits;
        Ok(value)
    }

    pub fn symbol(&mut self, codes: &Codes) -> Result<u8, Fault> {
        if self.count < 16 {
            self.fill();
        }
        let (length, symbol) = codes.short[(self.buffer >> (64 - SHORT)) as usize];
        if length > 0 {
            self.take(length.into())?;
            return Ok(symbol);
        }
        for length in SHORT + 1..=16 {
            let code = (self.buffer >> (64 - length)) as u32;
            let (first, count, index) = codes.long[length as usize];
            if code >= first && code < first + count {
                self.take(length)?;
                return Ok(codes.symbols[(index + code - first) as usize]);
            }
        }
        Err(if self.count < 16 { Fault::Short } else { Fault::Senseless })
    }

    /// Passes the AC coefficients of a block that is coded whole.
    pub fn coefficients(&mut self, steps: &Steps) -> Result<(), Fault> {
        // Registers, but for what is rare.
        let Bits { mut buffer, mut count, .. } = *self;
        let mut at = 1;
        while at < 64 {
            if count < 32 {
                (self.buffer, self.count) = (buffer, count);
                self.fill();
                (buffer, count) = (self.buffer, self.count);
            }
            let ahead = (buffer >> (64 - SHORT)) as usize;
            let mut step = steps.several[ahead];
            if at + (step.coefficients & !Step::END) >= 64 {
                // What follows this block is no AC code.
                step = steps.one[ahead];
            }
            if step.bits > 0 && u32::from(step.bits) <= count {
                buffer <<= step.bits;
                count -= u32::from(step.bits);
            } else {
                (self.buffer, self.count) = (buffer, count);
                step = self.rare_step(steps.codes)?;
                (buffer, count) = (self.buffer, self.count);
            }
            at += step.coefficients;
            if (65..Step::END).contains(&at) {
                return Err(Fault::Senseless);
            }
        }
        (self.buffer, self.count) = (buffer, count);
        Ok(())
    }

    /// A step with a long code, or at the end of the data.
    #[cold]
    fn rare_step(&mut self, codes: &Codes) -> Result<Step, Fault> {
        let symbol = self.symbol(codes)?;
        let step = Step::new((1, symbol));
        if step.bits == 0 {
            return Err(Fault::Senseless);
        }
        self.take((symbol & 15).into())?;
        Ok(step)
    }

    /// A number of `bits` bits, of which the upper half of the range is positive.
    pub fn signed(&mut self, bits: u32) -> Result<i32, Fault> {
        let value = self.take(bits)? as i32;
        Ok(if bits == 0 || value >> (bits - 1) == 1 { value } else { value - (1 << bits) + 1 })
    }

    /// Goes to the marker at the end of the data. Some encoders fill up with zeros or ones.
    pub fn finish(&mut self) -> Result<(), Fault> {
        self.take(self.count % 8)?;
        let mut filler = None;
        loop {
            let byte = if self.count > 0 { Some(self.take(8)? as u8) } else { self.byte() };
            let Some(byte) = byte else { return Ok(()) };
            if !matches!(byte, 0 | 0xff) || *filler.get_or_insert(byte) != byte {
                return Err(Fault::Excess);
            }
        }
    }

    /// Passes a restart marker.
    pub fn restart(&mut self, number: u8) -> Result<(), Fault> {
        self.finish()?;
        match next_segment(self.bytes, self.at) {
            Some(segment) if segment.marker == 0xd0 + number => self.at = segment.end,
            _ => return Err(Fault::Restart(number)),
        }
        Ok(())
    }
}
