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

/// A Huffman table.
pub(super) struct Codes {
    /// By the next 9 bits: the code's length and its symbol. Length 0 for longer codes.
    short: Box<[(u8, u8); 512]>,
    /// By length: the first code, the number of codes, and the index of the first symbol.
    long: [(u32, u32, u32); 17],
    symbols: Vec<u8>,
}

impl Codes {
    pub fn new(counts: &[u8], symbols: &[u8]) -> Option<Codes> {
        let (mut code, mut index) = (0_u32, 0_u32);
        let mut codes =
            Codes { short: Box::new([(0, 0); 512]), long: [(0, 0, 0); 17], symbols: symbols.to_vec() };
        for (length, &count) in (1_usize..).zip(counts) {
            code <<= 1;
            codes.long[length] = (code, count.into(), index);
            for _ in 0..count {
                if code >= 1 << length {
                    return None;
                }
                if length <= 9 {
                    let first = (code << (9 - length)) as usize;
                    codes.short[first..first + (1 << (9 - length))]
                        .fill((length as u8, symbols[index as usize]));
                }
                code += 1;
                index += 1;
            }
        }
        Some(codes)
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

    fn fill(&mut self) {
        // Eight bytes at once, where none of them is stuffed or begins a marker.
        if let Some(&eight) = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            let word = u64::from_be_bytes(eight);
            if !has_ff(word) {
                let bytes = (64 - self.count) / 8;
                let filled = self.count + 8 * bytes;
                self.buffer |= word.checked_shr(self.count).unwrap_or(0);
                self.buffer &= u64::MAX.checked_shl(64 - filled).unwrap_or(0);
                self.count = filled;
                self.at += bytes as usize;
                return;
            }
        }
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
        let (length, symbol) = codes.short[(self.buffer >> 55) as usize];
        if length > 0 {
            self.take(length.into())?;
            return Ok(symbol);
        }
        for length in 10..=16 {
            let code = (self.buffer >> (64 - length)) as u32;
            let (first, count, index) = codes.long[length as usize];
            if code >= first && code < first + count {
                self.take(length)?;
                return Ok(codes.symbols[(index + code - first) as usize]);
            }
        }
        Err(if self.count < 16 { Fault::Short } else { Fault::Senseless })
    }

    /// [`Bits::symbol`], and passes as many bits as its lower half says, if they and a short code are at hand; otherwise
    /// returns false, and they are still to be taken.
    #[inline]
    pub fn symbol_and_value(&mut self, codes: &Codes) -> Result<(u8, bool), Fault> {
        if self.count < 32 {
            self.fill();
        }
        let (length, symbol) = codes.short[(self.buffer >> 55) as usize];
        let total = u32::from(length) + u32::from(symbol & 15);
        if length > 0 && total <= self.count {
            self.buffer <<= total;
            self.count -= total;
            return Ok((symbol, true));
        }
        Ok((self.symbol(codes)?, false))
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
