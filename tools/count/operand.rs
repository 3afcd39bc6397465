//! Operands of machine instructions, as the disassembler writes them.

/// What an operand's bits are changed by before they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// `-`: of an integer its two's complement, of a float its sign.
    pub negate: bool,
    /// `~`
    pub invert: bool,
    /// `|…|`
    pub absolute: bool,
}

/// A predicate, or its opposite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Predicate {
    pub number: u8,
    pub not: bool,
    pub uniform: bool,
}

impl Predicate {
    /// PT
    pub const TRUE: Predicate = Predicate { number: 7, not: false, uniform: false };
}

/// `[R2.64+UR4+0x10]`
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Place {
    pub base: Option<u8>,
    /// The base has two registers.
    pub wide: bool,
    pub shift: u32,
    pub uniform: Option<u8>,
    pub offset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    Register {
        number: u8,
        change: Change,
        part: Part,
    },
    Uniform {
        number: u8,
        change: Change,
    },
    Predicate(Predicate),
    /// 32 bits; of a number in decimals those of a float.
    Bits(u32),
    Constant {
        bank: u8,
        index: Option<u8>,
        offset: u32,
        change: Change,
    },
    Place(Place),
    Label(u32),
    Barrier(u8),
    Special(Special),
}

/// The part of a register that is read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Part {
    #[default]
    All,
    /// Both halves are this one.
    Half(u8),
    Byte(u8),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Special {
    Thread(u8),
    Block(u8),
    Lane,
    /// All predicates as one number.
    Predicates,
    Zero,
}

/// RZ and URZ.
pub const ZERO: u8 = 255;

/// `number` is how the instruction reads decimals.
pub fn parse(text: &str, label: &dyn Fn(&str) -> Option<u32>, number: Number) -> Option<Operand> {
    let text = text.trim();
    if let Some(name) = text.strip_prefix("`(").and_then(|rest| rest.strip_suffix(')')) {
        return label(name).map(Operand::Label);
    }
    if text.starts_with('[') || text.starts_with("desc[") {
        return place(text).map(Operand::Place);
    }
    if let Some(special) = special(text) {
        return Some(Operand::Special(special));
    }
    let (inner, change) = changes(text);
    if let Some(rest) = inner.strip_prefix("c[") {
        return constant(rest, change);
    }
    if let Some(predicate) = predicate(text) {
        return Some(Operand::Predicate(predicate));
    }
    if let Some(number) =
        inner.trim_start_matches('S').strip_prefix('B').and_then(|digits| digits.parse().ok())
    {
        return Some(Operand::Barrier(number));
    }
    let mut parts = inner.split('.');
    let name = parts.next()?;
    if let Some(number) = register(name, "UR") {
        return Some(Operand::Uniform { number, change });
    }
    if let Some(number) = register(name, "R") {
        let part = parts.filter_map(part).next().unwrap_or_default();
        return Some(Operand::Register { number, change, part });
    }
    number.read(text).map(Operand::Bits)
}

fn part(name: &str) -> Option<Part> {
    match name {
        "H0_H0" | "H0" => Some(Part::Half(0)),
        "H1_H1" | "H1" => Some(Part::Half(1)),
        _ => name.strip_prefix('B').and_then(|digits| digits.parse().ok()).map(Part::Byte),
    }
}

fn special(text: &str) -> Option<Special> {
    Some(match text {
        "SR_TID.X" => Special::Thread(0),
        "SR_TID.Y" => Special::Thread(1),
        "SR_TID.Z" => Special::Thread(2),
        "SR_CTAID.X" => Special::Block(0),
        "SR_CTAID.Y" => Special::Block(1),
        "SR_CTAID.Z" => Special::Block(2),
        "SR_LANEID" => Special::Lane,
        "PR" => Special::Predicates,
        "SRZ" | "SR_CgaCtaId" => Special::Zero,
        _ => return None,
    })
}

/// How an instruction reads a number that is not in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Float,
    /// The upper half of a double.
    Double,
    Half,
}

impl Number {
    fn read(self, text: &str) -> Option<u32> {
        let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        if let Some(hexadecimal) = digits.strip_prefix("0x") {
            let value = u64::from_str_radix(hexadecimal, 16).ok()? as u32;
            return Some(if negative { value.wrapping_neg() } else { value });
        }
        let value: f64 = match digits.trim_start_matches('+') {
            "INF" => f64::INFINITY,
            "QNAN" | "SNAN" => f64::NAN,
            other => other.parse().ok()?,
        };
        let value = if negative { -value } else { value };
        Some(match self {
            Number::Float => (value as f32).to_bits(),
            Number::Double => (value.to_bits() >> 32) as u32,
            Number::Half => u32::from(half_bits(value)),
        })
    }
}

/// The nearest half-precision number's bits. Those of the disassembler's decimals are exact.
pub fn half_bits(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let size = value.abs();
    if size.is_nan() || size >= 65520.0 {
        return sign | if size.is_nan() { 0x7e00 } else { 0x7c00 };
    }
    if size < 2f64.powi(-14) {
        return sign | (size * 2f64.powi(24)).round_ties_even() as u16;
    }
    let exponent = size.log2().floor() as i32;
    let steps = (size * 2f64.powi(10 - exponent)).round_ties_even() as u16;
    sign | ((((exponent + 14) as u16) << 10) + steps)
}

/// The value of half-precision bits.
pub fn half_value(bits: u16) -> f32 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, steps) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => steps * 2f32.powi(-24),
        31 if steps == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + steps) * 2f32.powi(exponent - 25),
    }
}

fn changes(text: &str) -> (&str, Change) {
    let mut change = Change::default();
    let mut rest = text;
    if let Some(inner) = rest.strip_prefix('-') {
        (change.negate, rest) = (true, inner);
    }
    if let Some(inner) = rest.strip_prefix('~') {
        (change.invert, rest) = (true, inner);
    }
    if let Some(inner) = rest.strip_prefix('|') {
        (change.absolute, rest) = (true, inner.trim_end_matches('|'));
        // `|R3|.reuse`
        rest = rest.split('|').next().unwrap_or(rest);
    }
    (rest, change)
}

fn register(name: &str, kind: &str) -> Option<u8> {
    let number = name.strip_prefix(kind)?;
    if number == "Z" { Some(ZERO) } else { number.parse().ok() }
}

/// `!UP0`, `PT`
pub fn predicate(text: &str) -> Option<Predicate> {
    let (not, rest) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
    let (uniform, rest) = rest.strip_prefix('U').map_or((false, rest), |rest| (true, rest));
    let number = match rest.strip_prefix('P')? {
        "T" => 7,
        digits => digits.parse().ok()?,
    };
    Some(Predicate { number, not, uniform })
}

/// `0x0][0x160]`, `0x3][R4+0x10]`
fn constant(rest: &str, change: Change) -> Option<Operand> {
    let (bank, rest) = rest.split_once("][")?;
    let inside = rest.split(']').next()?;
    let bank = u8::from_str_radix(bank.strip_prefix("0x")?, 16).ok()?;
    let at = place(&format!("[{inside}]"))?;
    Some(Operand::Constant { bank, index: at.base, offset: at.offset as u32, change })
}

fn place(text: &str) -> Option<Place> {
    // sm_90 names a descriptor first: `desc[UR4][R2.64]`.
    let inside = text.rsplit_once('[')?.1.split(']').next()?;
    let mut place = Place::default();
    for term in inside.replace("+-", "+~").split('+').filter(|term| !term.is_empty()) {
        let (negative, term) = term.strip_prefix('~').map_or((false, term), |rest| (true, rest));
        if let Some(digits) = term.trim_start_matches('-').strip_prefix("0x") {
            let value = i64::from_str_radix(digits, 16).ok()?;
            place.offset += if negative || term.starts_with('-') { -value } else { value };
            continue;
        }
        let mut parts = term.split('.');
        let name = parts.next()?;
        if let Some(number) = register(name, "UR") {
            place.uniform = Some(number);
            continue;
        }
        place.base = Some(register(name, "R")?);
        for part in parts {
            match part {
                "64" => place.wide = true,
                "X4" => place.shift = 2,
                "X8" => place.shift = 3,
                "X16" => place.shift = 4,
                "U32" | "reuse" => {}
                _ => return None,
            }
        }
    }
    Some(place)
}
