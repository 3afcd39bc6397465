//! Integer instructions.

use crate::code::{Code, Compare, Join, Shuffle};
use crate::instruction::Instruction;
use crate::operand::{Operand, Predicate};
use crate::warp::{LANES, Lanes, Setting, Warp, change};

/// Lanes for which a test is true.
pub fn where_true(test: impl Fn(usize) -> bool) -> u32 {
    (0..LANES).fold(0, |lanes, lane| lanes | u32::from(test(lane)) << lane)
}

pub fn join(join: Join, a: u32, b: u32) -> u32 {
    match join {
        Join::And => a & b,
        Join::Or => a | b,
        Join::Xor => a ^ b,
    }
}

pub fn holds(compare: Compare, order: std::cmp::Ordering) -> bool {
    match compare {
        Compare::Less => order.is_lt(),
        Compare::Equal => order.is_eq(),
        Compare::LessEqual => order.is_le(),
        Compare::Greater => order.is_gt(),
        Compare::NotEqual => order.is_ne(),
        Compare::GreaterEqual => order.is_ge(),
        Compare::Number => true,
        Compare::Nan => false,
    }
}

/// Three inputs through a table of eight bits.
pub fn table(a: u32, b: u32, c: u32, bits: u32) -> u32 {
    let mut result = 0;
    for row in (0..8).filter(|row| bits >> row & 1 == 1) {
        let pick = |value: u32, bit: u32| if row >> bit & 1 == 1 { value } else { !value };
        result |= pick(a, 2) & pick(b, 1) & pick(c, 0);
    }
    result
}

/// Runs one; false if it is none of these.
pub fn run(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let from = &instruction.from;
    let value = |warp: &Warp, number: usize| match from.get(number) {
        Some(operand) => warp.integer(setting, operand),
        None => [0; LANES],
    };
    let condition = |warp: &Warp, number: usize| {
        instruction.conditions.get(number).map_or(u32::MAX, |condition| warp.condition(*condition))
    };
    let result: Lanes = match instruction.code {
        Code::MultiplyAdd { carry } => {
            let (a, b, c) = (value(warp, 0), value(warp, 1), value(warp, 2));
            let more = if carry { condition(warp, 0) } else { 0 };
            std::array::from_fn(|i| a[i].wrapping_mul(b[i]).wrapping_add(c[i]).wrapping_add(more >> i & 1))
        }
        Code::MultiplyAddWide { signed, high, carry } => {
            let (a, b, c) = (value(warp, 0), value(warp, 1), wide(warp, setting, from.get(2)));
            let more = if carry { condition(warp, 0) } else { 0 };
            let sums: [u128; LANES] = std::array::from_fn(|i| {
                let product = match signed {
                    true => (i64::from(a[i] as i32) * i64::from(b[i] as i32)) as u64,
                    false => u64::from(a[i]) * u64::from(b[i]),
                };
                u128::from(product) + u128::from(c[i]) + u128::from(more >> i & 1)
            });
            if let Some(flag) = instruction.flags.first() {
                warp.set_condition(*flag, where_true(|i| sums[i] >> 64 != 0), lanes);
            }
            if !high {
                warp.write_wide(instruction.to, &sums.map(|sum| sum as u64), lanes);
                return true;
            }
            sums.map(|sum| (sum >> 32) as u32)
        }
        Code::Add3 { carry } => add3(warp, setting, instruction, carry, lanes),
        Code::AddMinMax { signed } => {
            let (a, b, c) = (value(warp, 0), value(warp, 1), value(warp, 2));
            let least = condition(warp, 0);
            std::array::from_fn(|i| lesser(a[i].wrapping_add(b[i]), c[i], signed, least >> i & 1 == 1))
        }
        Code::MinMax { signed } => {
            let (a, b, least) = (value(warp, 0), value(warp, 1), condition(warp, 0));
            std::array::from_fn(|i| lesser(a[i], b[i], signed, least >> i & 1 == 1))
        }
        Code::ShiftAdd { high, carry, extend } => {
            shift_add(warp, setting, instruction, (high, carry, extend), lanes)
        }
        Code::Logic3 => {
            let (a, b, c) = (value(warp, 0), value(warp, 1), value(warp, 2));
            let bits = bits(from.get(3));
            let result: Lanes = std::array::from_fn(|i| table(a[i], b[i], c[i], bits));
            if let Some(flag) = instruction.flags.first() {
                let or = condition(warp, 0);
                warp.set_condition(*flag, where_true(|i| result[i] != 0) | or, lanes);
            }
            result
        }
        Code::Shift { left, signed, high, wide, wrap } => {
            let (a, by, c) = (value(warp, 0), value(warp, 1), value(warp, 2));
            std::array::from_fn(|i| shift(a[i], by[i], c[i], (left, signed, high, wide, wrap)))
        }
        Code::Compare { .. } => {
            compare(warp, setting, instruction, lanes);
            return true;
        }
        _ => return bits_and_moves(warp, setting, instruction, lanes),
    };
    warp.write(instruction.to, 0, &result, lanes);
    true
}

/// Those that look at single bits, or move what is there.
fn bits_and_moves(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let from = &instruction.from;
    let value = |warp: &Warp, number: usize| match from.get(number) {
        Some(operand) => warp.integer(setting, operand),
        None => [0; LANES],
    };
    let condition = |warp: &Warp, number: usize| {
        instruction.conditions.get(number).map_or(u32::MAX, |condition| warp.condition(*condition))
    };
    let result: Lanes = match instruction.code {
        Code::Absolute => value(warp, 0).map(|bits| (bits as i32).unsigned_abs()),
        Code::Clear => {
            warp.write(instruction.to, 0, &[0; LANES], lanes);
            warp.write(instruction.to, 1, &[0; LANES], lanes);
            return true;
        }
        Code::Move | Code::Special => value(warp, 0),
        Code::Select { float } => {
            let [a, b] = [0, 1].map(|number| match float {
                true => warp.float(setting, &from[number]).map(f32::to_bits),
                false => warp.integer(setting, &from[number]),
            });
            let first = condition(warp, 0);
            std::array::from_fn(|i| if first >> i & 1 == 1 { a[i] } else { b[i] })
        }
        Code::Permute => {
            let (a, by, c) = (value(warp, 0), value(warp, 1), value(warp, 2));
            std::array::from_fn(|i| permute(a[i], by[i], c[i]))
        }
        Code::Count => value(warp, 0).map(u32::count_ones),
        Code::Leading { signed, shift } => value(warp, 0).map(|bits| {
            let bits = if signed && (bits as i32) < 0 { !bits } else { bits };
            match bits.leading_zeros() {
                32 => u32::MAX,
                zeros if shift => zeros,
                zeros => 31 - zeros,
            }
        }),
        Code::Reverse => value(warp, 0).map(u32::reverse_bits),
        Code::Constant { words } => {
            for word in 0..words as u8 {
                let loaded = warp.read(setting, &from[0], word);
                warp.write(instruction.to, word, &loaded, lanes);
            }
            return true;
        }
        Code::Shuffle(kind) => shuffle(kind, value(warp, 0), value(warp, 1)),
        _ => return predicates(warp, setting, instruction, lanes),
    };
    warp.write(instruction.to, 0, &result, lanes);
    true
}

fn wide(warp: &Warp, setting: &Setting, operand: Option<&Operand>) -> [u64; LANES] {
    operand.map_or([0; LANES], |operand| warp.wide(setting, operand))
}

fn bits(operand: Option<&Operand>) -> u32 {
    match operand {
        Some(Operand::Bits(bits)) => *bits,
        _ => 0,
    }
}

fn lesser(a: u32, b: u32, signed: bool, least: bool) -> u32 {
    let less = if signed { (a as i32) < (b as i32) } else { a < b };
    if less == least { a } else { b }
}

/// Operands with a minus are added as their complement and one, which decides about the carry.
fn add3(warp: &mut Warp, setting: &Setting, instruction: &Instruction, carry: bool, lanes: u32) -> Lanes {
    let mut sums = [0u64; LANES];
    for operand in &instruction.from {
        let value = warp.read(setting, operand, 0);
        let change = change(operand);
        for i in 0..LANES {
            sums[i] += match () {
                _ if change.negate => u64::from(!value[i]) + 1,
                _ if change.invert => u64::from(!value[i]),
                _ => u64::from(value[i]),
            };
        }
    }
    if carry {
        for condition in &instruction.conditions {
            let more = warp.condition(*condition);
            (0..LANES).for_each(|i| sums[i] += u64::from(more >> i & 1));
        }
    }
    for (number, flag) in instruction.flags.iter().enumerate() {
        warp.set_condition(*flag, where_true(|i| sums[i] >> 32 > number as u64), lanes);
    }
    sums.map(|sum| sum as u32)
}

fn shift_add(
    warp: &mut Warp,
    setting: &Setting,
    instruction: &Instruction,
    (high, carry, extend): (bool, bool, bool),
    lanes: u32,
) -> Lanes {
    let from = &instruction.from;
    let a = warp.integer(setting, &from[0]);
    let b = warp.integer(setting, &from[1]);
    // `LEA a, b, n`, `LEA.HI a, b, c, n`
    let (upper, by) = match from.len() {
        3 => ([0; LANES], bits(from.get(2))),
        _ => (warp.integer(setting, &from[2]), bits(from.get(3))),
    };
    let more = match (carry, instruction.conditions.first()) {
        (true, Some(condition)) => warp.condition(*condition),
        _ => 0,
    };
    let sums: [u64; LANES] = std::array::from_fn(|i| {
        let upper = if extend { ((a[i] as i32) >> 31) as u32 } else { upper[i] };
        let shifted = (u64::from(upper) << 32 | u64::from(a[i])) << by;
        let shifted = if high { shifted >> 32 } else { shifted & 0xffff_ffff };
        shifted + u64::from(b[i]) + u64::from(more >> i & 1)
    });
    if let Some(flag) = instruction.flags.first() {
        warp.set_condition(*flag, where_true(|i| sums[i] >> 32 != 0), lanes);
    }
    sums.map(|sum| sum as u32)
}

pub fn shift(
    a: u32,
    by: u32,
    c: u32,
    (left, signed, high, wide, wrap): (bool, bool, bool, bool, bool),
) -> u32 {
    let limit = if wide { 64 } else { 32 };
    let by = if wrap { by % limit } else { by.min(limit) };
    let both = u64::from(c) << 32 | u64::from(a);
    let shifted = match (left, signed) {
        (true, _) => (u128::from(both) << by) as u64,
        (false, true) => (i128::from(both as i64) >> by) as u64,
        (false, false) => (u128::from(both) >> by) as u64,
    };
    if high { (shifted >> 32) as u32 } else { shifted as u32 }
}

fn compare(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) {
    let Code::Compare { compare, signed, join: with, extended } = instruction.code else { return };
    let a = warp.integer(setting, &instruction.from[0]);
    let b = warp.integer(setting, &instruction.from[1]);
    let condition = |number: usize| {
        instruction.conditions.get(number).map_or(u32::MAX, |condition| warp.condition(*condition))
    };
    let lower = condition(1);
    let result = where_true(|i| {
        let order = if signed { (a[i] as i32).cmp(&(b[i] as i32)) } else { a[i].cmp(&b[i]) };
        match (extended && order.is_eq(), compare) {
            // The upper halves are equal: the lower ones decide.
            (true, _) => lower >> i & 1 == 1,
            (false, _) => holds(compare, order),
        }
    });
    let other = condition(0);
    let flags = [join(with, result, other), join(with, !result, other)];
    for (flag, value) in instruction.flags.iter().zip(flags) {
        warp.set_condition(*flag, value, lanes);
    }
}

pub fn permute(a: u32, by: u32, c: u32) -> u32 {
    let bytes = (u64::from(c) << 32 | u64::from(a)).to_le_bytes();
    let pick = |number: u32| {
        let which = by >> (4 * number);
        let byte = bytes[(which & 7) as usize];
        if which & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
}

fn shuffle(kind: Shuffle, value: Lanes, by: Lanes) -> Lanes {
    std::array::from_fn(|lane| {
        let by = by[lane] as usize % LANES;
        match kind {
            Shuffle::Index => value[by],
            Shuffle::Butterfly => value[lane ^ by],
            Shuffle::Down => value[if lane + by < LANES { lane + by } else { lane }],
            Shuffle::Up => value[lane.checked_sub(by).unwrap_or(lane)],
        }
    })
}

fn predicates(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let condition = |warp: &Warp, number: usize| {
        instruction.conditions.get(number).map_or(u32::MAX, |condition| warp.condition(*condition))
    };
    match instruction.code {
        Code::Vote { all } => {
            let votes = condition(warp, 0) & lanes;
            let result = if all { votes == lanes } else { votes != 0 };
            if let Some(flag) = instruction.flags.first() {
                warp.set_condition(*flag, if result { u32::MAX } else { 0 }, lanes);
            }
            warp.write(instruction.to, 0, &[votes; LANES], lanes);
        }
        Code::Predicates3 => {
            // Flags may be among the conditions in the text's order; three of those and two tables.
            let [a, b, c] = [0, 1, 2].map(|number| condition(warp, number));
            for (number, flag) in instruction.flags.iter().enumerate() {
                let value = table(a, b, c, bits(instruction.from.get(number)));
                warp.set_condition(*flag, value, lanes);
            }
        }
        Code::FromPredicates => {
            let all = warp.read(setting, &Operand::Special(crate::operand::Special::Predicates), 0);
            let base = warp.integer(setting, &instruction.from[1]);
            let mask = bits(instruction.from.get(2));
            let value: Lanes = std::array::from_fn(|i| base[i] & !mask | all[i] & mask);
            warp.write(instruction.to, 0, &value, lanes);
        }
        Code::ToPredicates => {
            let value = warp.integer(setting, &instruction.from[1]);
            warp.set_predicates(&value, bits(instruction.from.get(2)), lanes);
        }
        _ => return false,
    }
    true
}

/// Of the guard and the lanes that are here.
pub fn guarded(warp: &Warp, guard: Predicate, lanes: u32) -> u32 {
    warp.condition(guard) & lanes
}
