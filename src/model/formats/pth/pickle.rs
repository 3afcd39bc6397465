//! The machine that a pickle is a program for, with those of its instructions that torch.save writes.
//!
//! A pickle builds objects on a stack: constants are pushed, containers are filled from what lies above a mark, and
//! objects that are used again are kept in a memo by number. Python's machine also looks up any name and calls it. This
//! one compares names with a list, and what looks like a call makes a tensor, a dictionary or an opaque value: see
//! [`super::globals`] and [`super::calls`].
//!
//! An instruction pushes one value, makes one object and fills one place of the memo at most, so the limit on
//! instructions bounds the memory. No instruction looks at all of a container that may be
//! used again, so that it bounds the time too.

use std::collections::HashMap;

use super::error::{PthError, shown};
use super::globals;
use super::value::{Heap, Object, Value};

/// Instructions of a pickle. A checkpoint of EfficientNet-B7 with its moving average and AdamW's state has 170,000.
/// A test finds that so many take less than 256 MiB, whatever they do.
pub const MAX_INSTRUCTIONS: usize = 2_000_000;

/// The result of an instruction; an error is what is wrong, without the place.
pub type Done<T> = Result<T, Wrong>;

/// Why an instruction cannot be carried out.
pub enum Wrong {
    /// The pickle is damaged.
    Damage(String),
    Refused(PthError),
}

impl From<&str> for Wrong {
    fn from(problem: &str) -> Wrong {
        Wrong::Damage(problem.to_string())
    }
}

pub struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub heap: Heap<'a>,
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u64, Value<'a>>,
}

/// Carries out a pickle: the heap, and the value that it ends with.
///
/// # Errors
/// Damage, a name or an instruction that is not allowed, too many instructions.
pub fn run(bytes: &[u8]) -> Result<(Heap<'_>, Value<'_>), PthError> {
    let mut machine = Machine {
        bytes,
        at: 0,
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    for _ in 0..MAX_INSTRUCTIONS {
        let at = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(result)) => return Ok((machine.heap, result)),
            Err(Wrong::Refused(error)) => return Err(error),
            Err(Wrong::Damage(problem)) => return Err(PthError::Pickle { at, problem }),
        }
    }
    Err(PthError::TooLarge(format!("its pickle has more than {MAX_INSTRUCTIONS} instructions")))
}

impl<'a> Machine<'a> {
    /// Carries out an instruction; the last one gives the result.
    fn step(&mut self) -> Done<Option<Value<'a>>> {
        let code = self.byte()?;
        if let Some(value) = self.constant(code)? {
            self.stack.push(value);
            return Ok(None);
        }
        match code {
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'a' => self.append_one()?,
            b'e' => self.append()?,
            b's' => self.set_item()?,
            b'u' => self.set_items()?,
            // The members of a set are not kept.
            0x90 => drop(self.pop_to_mark()?),
            b'q' => self.memoise_at(|machine| machine.number(1))?,
            b'r' => self.memoise_at(|machine| machine.number(4))?,
            0x94 => self.memoise_at(|machine| Ok(machine.memo.len() as u64))?,
            b'b' => self.build()?,
            0x80 => match self.byte()? {
                2..=5 => {}
                other => return Err(Wrong::Damage(format!("protocol {other} is not known"))),
            },
            0x95 => {
                let length = self.number(8)?;
                if length > (self.bytes.len() - self.at) as u64 {
                    return Err("a frame is longer than the pickle".into());
                }
            }
            _ => {
                let value = self.made(code)?;
                self.stack.push(value);
            }
        }
        Ok(None)
    }

    /// The value of an instruction that only pushes one, or nothing if it is another instruction.
    fn constant(&mut self, code: u8) -> Done<Option<Value<'a>>> {
        Ok(Some(match code {
            b'N' => Value::None,
            // True and false.
            0x88 | 0x89 => Value::Opaque,
            b'J' => Value::Int(i64::from(self.number(4)? as u32 as i32)),
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            // A float: weights are in storages.
            b'G' => self.skip(8)?,
            0x8c => self.text(1)?,
            b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' => self.opaque(1)?,
            b'B' => self.opaque(4)?,
            0x8e | 0x96 => self.opaque(8)?,
            b')' => self.heap.add(Object::Tuple(Vec::new())),
            b']' => self.heap.add(Object::List(Vec::new())),
            b'}' => self.heap.add(Object::Dictionary(Vec::new())),
            // An empty set.
            0x8f => Value::Opaque,
            _ => return Ok(None),
        }))
    }

    /// The value that an instruction makes of others.
    fn made(&mut self, code: u8) -> Done<Value<'a>> {
        Ok(match code {
            b't' => {
                let items = self.pop_to_mark()?;
                self.heap.add(Object::Tuple(items))
            }
            0x85 => self.tuple::<1>()?,
            0x86 => self.tuple::<2>()?,
            0x87 => self.tuple::<3>()?,
            // A frozen set.
            0x91 => {
                self.pop_to_mark()?;
                Value::Opaque
            }
            b'h' => self.memoised(1)?,
            b'j' => self.memoised(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?
            }
            0x93 => {
                let [module, name] = self.popped()?;
                let (Value::Text(module), Value::Text(name)) = (module, name) else {
                    return Err("a name is not text".into());
                };
                self.global(module, name)?
            }
            b'R' => {
                let [function, arguments] = self.popped()?;
                self.call(function, arguments)?
            }
            0x81 => {
                let [class, arguments] = self.popped()?;
                self.new_object(class, arguments)?
            }
            0x92 => {
                let [class, arguments, _] = self.popped()?;
                self.new_object(class, arguments)?
            }
            b'Q' => {
                let [id] = self.popped()?;
                self.persistent(id)?
            }
            other => return Err(self.refused(other)),
        })
    }

    /// Why an instruction is not carried out that Python's machine knows, or that nobody knows.
    fn refused(&mut self, code: u8) -> Wrong {
        let name = match code {
            // It calls a name: that name says more than the instruction's.
            b'i' => match (self.line(), self.line()) {
                (Ok(module), Ok(name)) if globals::lookup(module, name).is_none() => {
                    return self.refused_name(module, name);
                }
                _ => "INST",
            },
            0x82 => "EXT1",
            0x83 => "EXT2",
            0x84 => "EXT4",
            0x97 => "NEXT_BUFFER",
            0x98 => "READONLY_BUFFER",
            b'o' => "OBJ",
            b'P' => "PERSID",
            b'd' => "DICT",
            b'l' => "LIST",
            b'I' => "INT",
            b'F' => "FLOAT",
            b'L' => "LONG",
            b'S' => "STRING",
            b'T' => "BINSTRING",
            b'U' => "SHORT_BINSTRING",
            b'V' => "UNICODE",
            b'g' => "GET",
            b'p' => "PUT",
            b'2' => "DUP",
            _ => return Wrong::Damage(format!("{code:#04x} is no instruction")),
        };
        Wrong::Refused(PthError::Instruction { name: name.to_string() })
    }

    fn refused_name(&self, module: &str, name: &str) -> Wrong {
        let has = |text: &[u8]| self.bytes.windows(text.len()).any(|window| window == text);
        let model = has(b"_parameters") && has(b"_modules");
        Wrong::Refused(PthError::Global { global: shown(&format!("{module}.{name}")), model })
    }

    fn global(&mut self, module: &str, name: &str) -> Done<Value<'a>> {
        match globals::lookup(module, name) {
            Some(global) => Ok(Value::Global(global)),
            None => Err(self.refused_name(module, name)),
        }
    }

    // Reading the pickle.

    fn take(&mut self, length: u64) -> Done<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
        let Some(length) = length else { return Err("it ends too early".into()) };
        self.at += length;
        Ok(&rest[..length])
    }

    fn byte(&mut self) -> Done<u8> {
        Ok(self.take(1)?[0])
    }

    /// An integer without a sign of up to eight bytes.
    fn number(&mut self, bytes: u64) -> Done<u64> {
        Ok(self.take(bytes)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// An integer with a sign, of any length.
    fn long(&mut self, length_bytes: u64) -> Done<Value<'a>> {
        let length = self.number(length_bytes)?;
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Ok(Value::Opaque);
        }
        let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(whole)))
    }

    fn skip(&mut self, length: u64) -> Done<Value<'a>> {
        self.take(length)?;
        Ok(Value::Opaque)
    }

    fn opaque(&mut self, length_bytes: u64) -> Done<Value<'a>> {
        let length = self.number(length_bytes)?;
        self.skip(length)
    }

    /// Text. What is not UTF-8, such as a file's name with foreign bytes, is opaque.
    fn text(&mut self, length_bytes: u64) -> Done<Value<'a>> {
        let length = self.number(length_bytes)?;
        Ok(str::from_utf8(self.take(length)?).map_or(Value::Opaque, Value::Text))
    }

    fn line(&mut self) -> Done<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return Err("it ends too early".into());
        };
        self.at += end + 1;
        str::from_utf8(&rest[..end]).map_err(|_| "a name is not text".into())
    }

    // The stack and the memo.

    fn pop(&mut self) -> Done<Value<'a>> {
        let below = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= below {
            return Err("it takes a value from an empty stack".into());
        }
        self.stack.pop().ok_or_else(|| "it takes a value from an empty stack".into())
    }

    /// The uppermost values in the order that they were pushed in.
    fn popped<const N: usize>(&mut self) -> Done<[Value<'a>; N]> {
        let mut values = [Value::None; N];
        for value in values.iter_mut().rev() {
            *value = self.pop()?;
        }
        Ok(values)
    }

    fn pop_to_mark(&mut self) -> Done<Vec<Value<'a>>> {
        let Some(mark) = self.marks.pop() else { return Err("a mark is missing".into()) };
        Ok(self.stack.split_off(mark))
    }

    fn tuple<const N: usize>(&mut self) -> Done<Value<'a>> {
        let items = self.popped::<N>()?.to_vec();
        Ok(self.heap.add(Object::Tuple(items)))
    }

    fn top(&mut self) -> Done<Value<'a>> {
        let top = self.pop()?;
        self.stack.push(top);
        Ok(top)
    }

    fn memoise_at(&mut self, number: impl FnOnce(&mut Self) -> Done<u64>) -> Done<()> {
        let number = number(self)?;
        let top = self.top()?;
        self.memo.insert(number, top);
        Ok(())
    }

    fn memoised(&mut self, bytes: u64) -> Done<Value<'a>> {
        let number = self.number(bytes)?;
        let value = self.memo.get(&number).copied();
        value.ok_or_else(|| Wrong::Damage(format!("the memo has no value {number}")))
    }

    // Filling containers. What is added to an opaque value is not kept.

    fn append_one(&mut self) -> Done<()> {
        let [item] = self.popped()?;
        self.extend(vec![item])
    }

    fn append(&mut self) -> Done<()> {
        let items = self.pop_to_mark()?;
        self.extend(items)
    }

    fn extend(&mut self, items: Vec<Value<'a>>) -> Done<()> {
        let list = self.top()?;
        match (list, self.heap.object_mut(list)) {
            (_, Some(Object::List(list))) => list.extend(items),
            (Value::Opaque, _) => {}
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn set_item(&mut self) -> Done<()> {
        let [key, value] = self.popped()?;
        self.insert(&[key, value])
    }

    fn set_items(&mut self) -> Done<()> {
        let items = self.pop_to_mark()?;
        self.insert(&items)
    }

    fn insert(&mut self, items: &[Value<'a>]) -> Done<()> {
        let (pairs, []) = items.as_chunks::<2>() else { return Err("a key has no value".into()) };
        let dictionary = self.top()?;
        match (dictionary, self.heap.object_mut(dictionary)) {
            (_, Some(Object::Dictionary(entries))) => {
                entries.extend(pairs.iter().map(|[key, value]| (*key, *value)))
            }
            (Value::Opaque, _) => {}
            _ => return Err("it sets an item of what is no dictionary".into()),
        }
        Ok(())
    }

    /// The state of an object, such as the versions of the modules that a state_dict holds. It is not kept.
    fn build(&mut self) -> Done<()> {
        self.pop()?;
        let built = self.top()?;
        match (built, self.heap.object(built)) {
            (Value::Opaque, _) | (_, Some(Object::Dictionary(_))) => Ok(()),
            // Of a tensor, it would replace the storage.
            _ => Err("it sets the state of what has none".into()),
        }
    }
}
