//! Floating-point instructions: near enough to steer as the real ones do. Data are not followed to the last bit.

use crate::code::{Code, Compare, Float, Round};
use crate::instruction::Instruction;
use crate::integers::{holds, join, where_true};
use crate::operand::{Operand, half_bits, half_value};
use crate::warp::{LANES, Lanes, Setting, Warp, change, signed};

/// Runs one; false if it is none of these.
pub fn run(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let from = &instruction.from;
    let float = |warp: &Warp, number: usize| match from.get(number) {
        Some(operand) => warp.float(setting, operand),
        None => [0.0; LANES],
    };
    let result: Lanes = match instruction.code {
        Code::Float(kind) => {
            let (a, b, c) = (float(warp, 0), float(warp, 1), float(warp, 2));
            let least = instruction.conditions.first().map_or(u32::MAX, |c| warp.condition(*c));
            std::array::from_fn(|i| one(kind, a[i], b[i], c[i], least >> i & 1 == 1).to_bits())
        }
        Code::FloatCompare { compare, unordered, join: with } => {
            let (a, b) = (float(warp, 0), float(warp, 1));
            let result = where_true(|i| compared(compare, unordered, a[i].partial_cmp(&b[i])));
            let other = instruction.conditions.first().map_or(u32::MAX, |c| warp.condition(*c));
            let flags = [join(with, result, other), join(with, !result, other)];
            for (flag, value) in instruction.flags.iter().zip(flags) {
                warp.set_condition(*flag, value, lanes);
            }
            return true;
        }
        Code::FloatCheck => {
            // The usual case of a division: no detour for numbers near the ends of the range.
            instruction.flags.iter().for_each(|flag| warp.set_condition(*flag, 0, lanes));
            return true;
        }
        Code::FloatToInteger { signed, wide, from_double, round } => {
            let a: [f64; LANES] = match (from_double, from.first()) {
                (true, Some(operand)) => warp.double(setting, operand),
                _ => float(warp, 0).map(f64::from),
            };
            let whole = a.map(|x| rounded(x, round));
            if wide {
                warp.write_wide(instruction.to, &whole.map(|x| x as u64), lanes);
                return true;
            }
            whole.map(|x| if signed { x as i32 as u32 } else { x as u32 })
        }
        _ => return halves(warp, setting, instruction, lanes),
    };
    warp.write(instruction.to, 0, &result, lanes);
    true
}

/// Conversions, and half-precision numbers.
fn halves(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let from = &instruction.from;
    let result: Lanes = match instruction.code {
        Code::IntegerToFloat { .. } => return integer_to_float(warp, setting, instruction, lanes),
        Code::FromHalf => {
            let value = |operand: &Operand| {
                let bits = warp.read(setting, operand, 0);
                signed(bits.map(|bits| half_value(bits as u16)), change(operand))
            };
            let (a, b) = (value(&from[0]), value(&from[1]));
            std::array::from_fn(|i| (a[i] + b[i]).to_bits())
        }
        // `HFMA2 R0, -RZ, RZ, 1, 0` is how the compiler writes a constant; data otherwise.
        Code::Halves { .. } => match from.as_slice() {
            [.., Operand::Bits(high), Operand::Bits(low)] => [high << 16 | low; LANES],
            _ => [0; LANES],
        },
        Code::PackHalves { brain } => {
            let [a, b] = [0, 1].map(|number| warp.float(setting, &from[number]));
            let bits = |x: f32| match brain {
                true => x.to_bits() >> 16,
                false => u32::from(half_bits(f64::from(x))),
            };
            std::array::from_fn(|i| bits(a[i]) << 16 | bits(b[i]))
        }
        Code::Data { registers } => {
            for word in 0..registers {
                warp.write(instruction.to, word, &[0; LANES], lanes);
            }
            return true;
        }
        _ => return doubles(warp, setting, instruction, lanes),
    };
    warp.write(instruction.to, 0, &result, lanes);
    true
}

fn one(kind: Float, a: f32, b: f32, c: f32, least: bool) -> f32 {
    match kind {
        Float::Add => a + b,
        Float::Multiply => a * b,
        Float::MultiplyAdd => a.mul_add(b, c),
        Float::MinMax if least => a.min(b),
        Float::MinMax => a.max(b),
        Float::Reciprocal => 1.0 / a,
        Float::ReciprocalRoot => 1.0 / a.sqrt(),
        Float::Root => a.sqrt(),
        Float::Exponential => a.exp2(),
        Float::Logarithm => a.log2(),
        Float::Sine => a.sin(),
        Float::Cosine => a.cos(),
        Float::Tanh => a.tanh(),
        Float::Round(round) => rounded(f64::from(a), round) as f32,
    }
}

fn rounded(x: f64, round: Round) -> f64 {
    match round {
        Round::Zero => x.trunc(),
        Round::Floor => x.floor(),
        Round::Ceiling => x.ceil(),
        Round::Nearest => x.round_ties_even(),
    }
}

fn compared(compare: Compare, unordered: bool, order: Option<std::cmp::Ordering>) -> bool {
    match (compare, order) {
        (Compare::Nan, _) => order.is_none(),
        (_, None) => unordered,
        (_, Some(order)) => holds(compare, order),
    }
}

fn integer_to_float(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let Code::IntegerToFloat { signed, wide, double, up } = instruction.code else { return false };
    let operand = &instruction.from[0];
    let value: [f64; LANES] = match wide {
        true => warp.wide(setting, operand).map(|x| if signed { x as i64 as f64 } else { x as f64 }),
        false => {
            warp.integer(setting, operand).map(|x| if signed { f64::from(x as i32) } else { f64::from(x) })
        }
    };
    if double {
        warp.write_wide(instruction.to, &value.map(f64::to_bits), lanes);
        return true;
    }
    let single = value.map(|x| {
        let near = x as f32;
        if up && f64::from(near) < x { near.next_up() } else { near }
    });
    warp.write(instruction.to, 0, &single.map(f32::to_bits), lanes);
    true
}

fn doubles(warp: &mut Warp, setting: &Setting, instruction: &Instruction, lanes: u32) -> bool {
    let from = &instruction.from;
    let double = |warp: &Warp, number: usize| match from.get(number) {
        Some(operand) => warp.double(setting, operand),
        None => [0.0; LANES],
    };
    match instruction.code {
        Code::Double(kind @ (Float::Reciprocal | Float::ReciprocalRoot)) => {
            // Of the upper half, to the upper half.
            let high = warp.integer(setting, &from[0]);
            let value = high.map(|high| {
                let x = f64::from_bits(u64::from(high) << 32);
                let y = if kind == Float::Reciprocal { 1.0 / x } else { 1.0 / x.sqrt() };
                (y.to_bits() >> 32) as u32
            });
            warp.write(instruction.to, 0, &value, lanes);
        }
        Code::Double(kind) => {
            let (a, b, c) = (double(warp, 0), double(warp, 1), double(warp, 2));
            let value: [u64; LANES] = std::array::from_fn(|i| {
                match kind {
                    Float::Add => a[i] + if from.len() > 2 { c[i] } else { b[i] },
                    Float::Multiply => a[i] * b[i],
                    _ => a[i].mul_add(b[i], c[i]),
                }
                .to_bits()
            });
            warp.write_wide(instruction.to, &value, lanes);
        }
        Code::DoubleCompare { compare, join: with } => {
            let (a, b) = (double(warp, 0), double(warp, 1));
            let result = where_true(|i| compared(compare, false, a[i].partial_cmp(&b[i])));
            let other = instruction.conditions.first().map_or(u32::MAX, |c| warp.condition(*c));
            for (flag, value) in instruction.flags.iter().zip([result, !result]) {
                warp.set_condition(*flag, join(with, value, other), lanes);
            }
        }
        Code::FloatToDouble => {
            let value = warp.float(setting, &from[0]).map(|x| f64::from(x).to_bits());
            warp.write_wide(instruction.to, &value, lanes);
        }
        Code::DoubleToFloat => {
            let value = double(warp, 0).map(|x| (x as f32).to_bits());
            warp.write(instruction.to, 0, &value, lanes);
        }
        _ => return false,
    }
    true
}
