//! The names of a pickle's tensors: the keys on the way to them, joined by points.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;

use super::error::{PthError, shown};
use super::value::{Heap, Object, Value};
use super::view::View;

/// How deep dictionaries and lists may be nested.
pub const MAX_DEPTH: usize = 64;
/// Tensors of a file, and bytes of a name: their product bounds the memory of the names.
pub const MAX_TENSORS: usize = 100_000;
pub const MAX_NAME: usize = 1024;
/// Values that are looked at. A dictionary that is in several places is looked at once for each, so that a few
/// instructions could ask for 2^64 of them. Where none is, they are fewer than the instructions.
pub const MAX_VISITS: usize = 4_000_000;

/// All tensors of a pickle's result by name.
///
/// Dictionaries, lists and tuples are walked; the index of a list is its key. A tensor is left out if a key on the way
/// to it is neither text nor an integer, because it has no name then.
///
/// # Errors
/// Two tensors of one name, and dictionaries that are nested too deeply, as those that hold themselves are.
pub fn named<'h, 'a>(
    heap: &'h Heap<'a>,
    root: Value<'a>,
) -> Result<BTreeMap<String, &'h View<'a>>, PthError> {
    let mut walk = Walk { heap, found: BTreeMap::new(), visits: 0, name: String::new() };
    walk.visit(root, 0)?;
    Ok(walk.found)
}

struct Walk<'h, 'a> {
    heap: &'h Heap<'a>,
    found: BTreeMap<String, &'h View<'a>>,
    visits: usize,
    /// Of the value that is looked at.
    name: String,
}

impl<'h, 'a> Walk<'h, 'a> {
    fn visit(&mut self, value: Value<'a>, depth: usize) -> Result<(), PthError> {
        let heap = self.heap;
        let Some(object) = heap.object(value) else { return Ok(()) };
        self.visits += match object {
            Object::Dictionary(entries) => 1 + entries.len(),
            Object::List(items) | Object::Tuple(items) => 1 + items.len(),
            Object::Storage(_) | Object::Tensor(_) => 1,
        };
        if self.visits > MAX_VISITS {
            return Err(PthError::TooLarge("its dictionaries hold each other too many times".to_string()));
        }
        if depth > MAX_DEPTH && !matches!(object, Object::Storage(_) | Object::Tensor(_)) {
            let problem =
                format!("its dictionaries are nested more than {MAX_DEPTH} deep, or hold themselves");
            return Err(PthError::TooLarge(problem));
        }
        match object {
            Object::Dictionary(entries) => {
                for (key, value) in entries {
                    self.enter(*key, *value, depth)?;
                }
            }
            Object::List(items) | Object::Tuple(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.enter(Value::Int(index as i64), *item, depth)?;
                }
            }
            Object::Tensor(view) => self.add(view)?,
            Object::Storage(_) => {}
        }
        Ok(())
    }

    fn enter(&mut self, key: Value<'a>, value: Value<'a>, depth: usize) -> Result<(), PthError> {
        if !matches!(value, Value::Object(_)) {
            return Ok(());
        }
        let before = self.name.len();
        if depth > 0 {
            self.name.push('.');
        }
        match key {
            Value::Text(key) if key.len() + self.name.len() > MAX_NAME => {
                return Err(PthError::TooLarge(format!(
                    "a name in it is longer than {MAX_NAME} bytes: {}",
                    shown(key)
                )));
            }
            Value::Text(key) => self.name.push_str(key),
            // Writing to a string does not fail.
            Value::Int(key) => drop(write!(self.name, "{key}")),
            _ => {
                self.name.truncate(before);
                return Ok(());
            }
        }
        self.visit(value, depth + 1)?;
        self.name.truncate(before);
        Ok(())
    }

    fn add(&mut self, view: &'h View<'a>) -> Result<(), PthError> {
        let tensors = self.found.len();
        match self.found.entry(self.name.clone()) {
            Entry::Occupied(_) => {
                let problem = "two tensors have this name".to_string();
                return Err(PthError::Tensor { tensor: shown(&self.name), problem });
            }
            Entry::Vacant(_) if tensors == MAX_TENSORS => {
                return Err(PthError::TooLarge(format!("it has more than {MAX_TENSORS} tensors")));
            }
            Entry::Vacant(place) => drop(place.insert(view)),
        }
        Ok(())
    }
}
