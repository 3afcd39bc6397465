//! What a pickle builds: values that are copied freely, and a heap of the objects that they refer to.
//!
//! Objects refer to each other by their place on the heap, so a list may hold itself, and dropping a deep nest does not
//! recurse. Text stays where the pickle has it.

use super::globals::{Element, Global};
use super::view::View;

/// A value on the machine's stack, in its memo or in an object.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    None,
    Int(i64),
    Text(&'a str),
    Global(Global),
    /// An object, by its place on the heap.
    Object(usize),
    /// A value that weights do not depend on, such as a truth value, a float, a set, or the arguments of training.
    /// Nothing of it is kept.
    Opaque,
}

#[derive(Debug)]
pub enum Object<'a> {
    /// In the order of the pickle.
    Dictionary(Vec<(Value<'a>, Value<'a>)>),
    List(Vec<Value<'a>>),
    Tuple(Vec<Value<'a>>),
    Storage(Storage<'a>),
    /// In a box, so that other objects are small.
    Tensor(Box<View<'a>>),
}

/// The bytes that tensors are views of: an entry of the archive.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// The entry's name in the archive's folder `data`.
    pub key: &'a str,
    /// Type of its elements by the pickle.
    pub element: &'static Element,
    /// Bytes by the pickle.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub struct Heap<'a> {
    objects: Vec<Object<'a>>,
}

impl<'a> Heap<'a> {
    pub fn add(&mut self, object: Object<'a>) -> Value<'a> {
        self.objects.push(object);
        Value::Object(self.objects.len() - 1)
    }

    /// The object that a value refers to, if it refers to one.
    pub fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(place) => self.objects.get(place),
            _ => None,
        }
    }

    pub fn object_mut(&mut self, value: Value<'a>) -> Option<&mut Object<'a>> {
        match value {
            Value::Object(place) => self.objects.get_mut(place),
            _ => None,
        }
    }

    pub fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.object(value) {
            Some(Object::Tuple(items)) => Some(items),
            _ => None,
        }
    }

    pub fn storage(&self, value: Value<'a>) -> Option<Storage<'a>> {
        match self.object(value) {
            Some(Object::Storage(storage)) => Some(*storage),
            _ => None,
        }
    }

    pub fn tensor(&self, value: Value<'a>) -> Option<&View<'a>> {
        match self.object(value) {
            Some(Object::Tensor(view)) => Some(view),
            _ => None,
        }
    }
}
