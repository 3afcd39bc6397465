//! Whether the entropy-coded data of a JPEG are whole.
//!
//! Decoders fill what is missing with grey and tell nobody: of a file that was cut and closed with an end marker, of one
//! with a hole or a block of zeros in it. So the codes are read here once more, without their pixels, and counted: each
//! scan must have the codes of all its MCUs and no data beyond, and its restart markers must be where the header says.
//! What remains unseen is damage that leaves valid codes of the right number: a changed bit in a coefficient, for
//! example, or a piece of another file that happens to fit.

use super::bits::{Bits, Codes, Fault, Steps};
use super::segments::{END_OF_IMAGE, Frame, START_OF_SCAN, Segment, next_segment};

/// Checks all scans of a file.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut state = State::default();
    let mut at = 2;
    loop {
        let segment = next_segment(bytes, at).ok_or("truncated JPEG (it has no end)")?;
        at = segment.end;
        match segment.marker {
            0xc4 => state.read_tables(segment.body)?,
            0xdb => state.read_quantisation(segment.body),
            0xdd => {
                state.restart = segment.body.first_chunk().map_or(0, |&n| u16::from_be_bytes(n).into());
            }
            START_OF_SCAN => at = state.scan(&segment, bytes)?,
            END_OF_IMAGE => return state.end(),
            _ => state.set_frame(&segment),
        }
    }
}

/// The part of a block that a scan codes.
struct Band {
    first: u8,
    last: u8,
    /// Whether the scan adds one bit to what earlier ones coded.
    refines: bool,
    /// Bits that later scans add.
    low: u8,
}

impl Band {
    /// The coefficients of which the scan has the last bit.
    fn completed(&self) -> u64 {
        if self.low > 0 { 0 } else { (u64::MAX >> (63 - self.last)) & (u64::MAX << self.first) }
    }
}

/// The codes of a component's AC coefficients.
enum Ac<'a> {
    /// The scan has none.
    None,
    /// All of them, block by block.
    Whole(Steps<'a>),
    /// Those of a band, of a progressive file.
    Band(&'a Codes),
}

/// A component in a scan.
struct Part<'a> {
    /// Blocks of an MCU.
    across: usize,
    down: usize,
    /// Blocks in a row of the component.
    stride: usize,
    dc: Option<&'a Codes>,
    ac: Ac<'a>,
    /// The last DC coefficient, and the largest that a picture can have.
    level: i32,
    highest: i32,
    /// For each block of a progressive file, which coefficients are not 0.
    history: Vec<u64>,
}

impl Part<'_> {
    fn block(&mut self, bits: &mut Bits, band: &Band, at: usize, run: &mut u32) -> Result<(), Fault> {
        if band.first == 0 {
            if band.refines {
                bits.take(1)?;
            } else if let Some(codes) = self.dc {
                let length = bits.symbol(codes)?;
                if length > 11 {
                    return Err(Fault::Senseless);
                }
                self.level += bits.signed(length.into())?;
                if (self.level << band.low).abs() > self.highest {
                    return Err(Fault::Senseless);
                }
            }
        }
        match &self.ac {
            Ac::None => Ok(()),
            Ac::Whole(steps) => bits.coefficients(steps),
            Ac::Band(codes) if band.refines => refine(bits, codes, band, &mut self.history[at], run),
            Ac::Band(codes) => first(bits, codes, band, &mut self.history[at], run),
        }
    }
}

/// The AC coefficients of a block, coded for the first time.
fn first(bits: &mut Bits, codes: &Codes, band: &Band, history: &mut u64, run: &mut u32) -> Result<(), Fault> {
    if *run > 0 {
        *run -= 1;
        return Ok(());
    }
    let mut at = band.first;
    while at <= band.last {
        let symbol = bits.symbol(codes)?;
        let (zeros, length) = (symbol >> 4, symbol & 15);
        if length == 0 && zeros < 15 {
            *run = (1 << zeros) - 1 + bits.take(zeros.into())?;
            return Ok(());
        }
        at += zeros;
        if at > band.last || length > 10 {
            return Err(Fault::Senseless);
        }
        if length > 0 {
            bits.take(length.into())?;
            *history |= 1 << at;
        }
        at += 1;
    }
    Ok(())
}

/// One more bit of the AC coefficients of a block.
fn refine(
    bits: &mut Bits,
    codes: &Codes,
    band: &Band,
    history: &mut u64,
    run: &mut u32,
) -> Result<(), Fault> {
    let mut at = band.first;
    while *run == 0 && at <= band.last {
        let symbol = bits.symbol(codes)?;
        let (mut zeros, length) = (symbol >> 4, symbol & 15);
        match length {
            0 if zeros < 15 => {
                *run = (1 << zeros) + bits.take(zeros.into())?;
                break;
            }
            0 => (),
            1 => _ = bits.take(1)?,
            _ => return Err(Fault::Senseless),
        }
        // Of the coefficients that are passed, those that were not 0 have a bit each.
        loop {
            if at > band.last {
                return Err(Fault::Senseless);
            }
            if *history >> at & 1 == 1 {
                bits.take(1)?;
            } else if zeros == 0 {
                break;
            } else {
                zeros -= 1;
            }
            at += 1;
        }
        *history |= u64::from(length) << at;
        at += 1;
    }
    if *run > 0 {
        *run -= 1;
        for at in at..=band.last {
            bits.take((*history >> at & 1) as u32)?;
        }
    }
    Ok(())
}

/// What the segments so far have set.
#[derive(Default)]
struct State {
    frame: Option<Frame>,
    dc: [Option<Codes>; 4],
    ac: [Option<Codes>; 4],
    /// The first value of each quantisation table.
    quantisers: [i32; 4],
    /// MCUs between restart markers, or 0.
    restart: usize,
    scans: usize,
    /// By component, of which coefficients the last bit was coded.
    whole: [u64; 4],
    history: [Vec<u64>; 4],
}

impl State {
    fn read_tables(&mut self, mut body: &[u8]) -> Result<(), String> {
        while let Some((&[kind, ref counts @ ..], rest)) = body.split_first_chunk::<17>() {
            let symbols = counts.iter().map(|&count| usize::from(count)).sum();
            let table = rest.get(..symbols).and_then(|symbols| Codes::new(counts, symbols));
            let tables = if kind >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            match (tables.get_mut(usize::from(kind & 15)), table) {
                (Some(place), Some(table)) => *place = Some(table),
                _ => return Err("damaged JPEG: a Huffman table makes no sense".into()),
            }
            body = &rest[symbols..];
        }
        Ok(())
    }

    fn read_quantisation(&mut self, mut body: &[u8]) {
        while let [kind, rest @ ..] = body {
            let wide = usize::from(kind >> 4 != 0);
            let Some(values) = rest.get(..64 << wide) else { return };
            if let Some(quantiser) = self.quantisers.get_mut(usize::from(kind & 15)) {
                *quantiser = if wide == 1 {
                    i32::from(values[0]) << 8 | i32::from(values[1])
                } else {
                    values[0].into()
                };
            }
            body = &rest[64 << wide..];
        }
    }

    fn set_frame(&mut self, segment: &Segment) {
        if self.frame.is_none() {
            self.frame = Frame::read(segment);
        }
    }

    /// Reads a scan; returns where its data end.
    fn scan(&mut self, segment: &Segment, bytes: &[u8]) -> Result<usize, String> {
        self.scans += 1;
        let frame = self.frame.as_ref().ok_or("damaged JPEG: no frame header before its image data")?;
        let header = Scan::read(segment.body, frame).ok_or("damaged JPEG: a scan's header makes no sense")?;
        let mut history = std::mem::take(&mut self.history);
        let mut bits = Bits::new(bytes, segment.end);
        // Frames of films have no tables; their decoder has standard ones.
        if let Some(mut parts) = self.parts(frame, &header, &mut history) {
            let (wide, high) = header.mcus;
            read_scan(&mut bits, &mut parts, &header, self.restart).map_err(|(fault, mcu)| {
                let state = if next_segment(bytes, bits.at).is_some() { "damaged" } else { "truncated" };
                format!("{state} JPEG: {fault} after {mcu} of {} MCUs of scan {}", wide * high, self.scans)
            })?;
            for (part, chosen) in parts.into_iter().zip(&header.chosen) {
                history[chosen.index] = part.history;
            }
        }
        for chosen in &header.chosen {
            self.whole[chosen.index] |= header.band.completed();
        }
        self.history = history;
        Ok(bits.at)
    }

    /// The components of a scan; `None` if a table that it needs is missing.
    fn parts(&self, frame: &Frame, scan: &Scan, history: &mut [Vec<u64>; 4]) -> Option<Vec<Part<'_>>> {
        let band = &scan.band;
        let part = |chosen: &Chosen| {
            let (component, tables) = (frame.components[chosen.index], chosen.tables);
            let dc = self.dc.get(usize::from(tables >> 4))?.as_ref();
            let ac = self.ac.get(usize::from(tables & 15))?.as_ref();
            if dc.is_none() && band.first == 0 && !band.refines || ac.is_none() && band.last > 0 {
                return None;
            }
            let ac = match ac {
                Some(codes) if band.last > 0 && frame.progressive => Ac::Band(codes),
                Some(codes) if band.last > 0 => Ac::Whole(Steps::new(codes)),
                _ => Ac::None,
            };
            let mut history = std::mem::take(&mut history[chosen.index]);
            if frame.progressive {
                history.resize(chosen.stride * chosen.rows, 0);
            }
            let alone = scan.chosen.len() == 1;
            let (across, down) = if alone { (1, 1) } else { (component.across, component.down) };
            // A picture's DC coefficients are within ±1024 and half a quantiser; some encoders are not exact.
            let quantiser = self.quantisers.get(usize::from(component.table)).map_or(1, |&q| q.max(1));
            let (across, down, stride) = (across.into(), down.into(), chosen.stride);
            Some(Part { across, down, stride, dc, ac, level: 0, highest: 1280 / quantiser + 1, history })
        };
        scan.chosen.iter().map(part).collect()
    }

    fn end(&self) -> Result<(), String> {
        let frame = self.frame.as_ref().ok_or("damaged JPEG: no frame header")?;
        if self.whole[..frame.components.len()].iter().all(|&whole| whole == u64::MAX) {
            Ok(())
        } else {
            Err("damaged JPEG: some of its scans are missing".into())
        }
    }
}

/// A component that a scan names.
struct Chosen {
    /// Its place in the frame.
    index: usize,
    /// The numbers of its DC and AC table.
    tables: u8,
    /// Blocks in a row, and rows of blocks, filled up to whole MCUs.
    stride: usize,
    rows: usize,
}

/// A scan's header (SOS).
struct Scan {
    chosen: Vec<Chosen>,
    band: Band,
    /// MCUs in a row, and rows of them.
    mcus: (usize, usize),
}

impl Scan {
    fn read(body: &[u8], frame: &Frame) -> Option<Scan> {
        let (&count, rest) = body.split_first()?;
        let (names, rest) = rest.split_at_checked(usize::from(count) * 2)?;
        let &[first, last, bits] = rest.first_chunk()?;
        let band = match frame.progressive {
            true => Band { first, last, refines: bits >> 4 > 0, low: bits & 15 },
            false => Band { first: 0, last: 63, refines: false, low: 0 },
        };
        let (width, height) = (usize::from(frame.width), usize::from(frame.height));
        let (across, down) = frame.sampling();
        let mut mcus = (width.div_ceil(8 * across), height.div_ceil(8 * down));
        let mut chosen = Vec::new();
        for name in names.chunks_exact(2) {
            let index = frame.components.iter().position(|c| c.id == name[0])?;
            let c = frame.components[index];
            let (stride, rows) = (mcus.0 * usize::from(c.across), mcus.1 * usize::from(c.down));
            chosen.push(Chosen { index, tables: name[1], stride, rows });
        }
        if let [alone] = &chosen[..] {
            // Blocks of a single component are coded as far as the picture reaches, not filled up to whole MCUs.
            let c = frame.components[alone.index];
            let blocks =
                |side: usize, part: u8, whole| (side * usize::from(part)).div_ceil(whole).div_ceil(8);
            mcus = (blocks(width, c.across, across), blocks(height, c.down, down));
        }
        let dc_only = band.first == 0 && band.last == 0;
        let right_band = !frame.progressive || dc_only || (1..=band.last).contains(&band.first) && count == 1;
        let known = band.last < 64 && band.low < 14 && mcus.0 * mcus.1 > 0;
        ((1..=4).contains(&count) && right_band && known).then_some(Scan { chosen, band, mcus })
    }
}

/// Reads the codes of all MCUs; on failure, says in which.
fn read_scan(bits: &mut Bits, parts: &mut [Part], scan: &Scan, restart: usize) -> Result<(), (Fault, usize)> {
    let (wide, high) = scan.mcus;
    let mut run = 0;
    for mcu in 0..wide * high {
        if restart > 0 && mcu > 0 && mcu % restart == 0 {
            let passed =
                if run > 0 { Err(Fault::Senseless) } else { bits.restart((mcu / restart - 1) as u8 % 8) };
            passed.map_err(|fault| (fault, mcu))?;
            parts.iter_mut().for_each(|part| part.level = 0);
        }
        let (row, column) = (mcu / wide, mcu % wide);
        for part in &mut *parts {
            for down in 0..part.down {
                for across in 0..part.across {
                    let at = (row * part.down + down) * part.stride + column * part.across + across;
                    part.block(bits, &scan.band, at, &mut run).map_err(|fault| (fault, mcu))?;
                }
            }
        }
    }
    let finished = if run > 0 { Err(Fault::Senseless) } else { bits.finish() };
    finished.map_err(|fault| (fault, wide * high))
}
