//! What a pickle's calls make: tensors, storages, dictionaries, and opaque values. Nothing is called in truth: the
//! functions are those of [`Rebuild`], and their arguments are checked here.

use super::globals::{Element, Global, Rebuild};
use super::pickle::{Done, Machine, Wrong};
use super::value::{Heap, Object, Storage, Value};
use super::view::{MAX_DIMENSIONS, Place, View, elements};
use crate::model::formats::stored::Stored;

/// Arguments of a function, and parts of a sparse tensor. A longer tuple is not even copied, because a pickle may name
/// it again and again.
const MAX_ARGUMENTS: usize = 8;
const OTHER_ARGUMENTS: &str = "a tensor is made of other arguments than torch.save writes";

impl<'a> Machine<'a> {
    /// REDUCE: `function(*arguments)`.
    pub(super) fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Done<Value<'a>> {
        let Value::Global(function) = function else { return Err("it calls what is no function".into()) };
        let Some(arguments) = self.heap.tuple(arguments) else {
            return Err("a call's arguments are no tuple".into());
        };
        match (function, arguments) {
            (Global::Harmless, _) => Ok(Value::Opaque),
            // A defaultdict names the class of its values.
            (Global::Dictionary, [] | [Value::Global(Global::Harmless | Global::Dictionary)]) => {
                Ok(self.heap.add(Object::Dictionary(Vec::new())))
            }
            (Global::Size, &[size]) if self.heap.tuple(size).is_some() => Ok(size),
            (Global::Rebuild(rebuild), arguments) if arguments.len() <= MAX_ARGUMENTS => {
                let arguments = arguments.to_vec();
                self.rebuild(rebuild, &arguments)
            }
            _ => Err("it calls a function with other arguments than torch.save does".into()),
        }
    }

    /// NEWOBJ: an object of a class, without its constructor.
    pub(super) fn new_object(&mut self, class: Value<'a>, arguments: Value<'a>) -> Done<Value<'a>> {
        match (class, self.heap.tuple(arguments)) {
            (Value::Global(Global::Harmless), Some(_)) => Ok(Value::Opaque),
            (Value::Global(Global::Dictionary), Some([])) => {
                Ok(self.heap.add(Object::Dictionary(Vec::new())))
            }
            _ => Err("it makes an object of what is no class".into()),
        }
    }

    /// BINPERSID: a storage, by `("storage", class, key, location, number of elements)`.
    pub(super) fn persistent(&mut self, id: Value<'a>) -> Done<Value<'a>> {
        let Some(
            &[
                Value::Text("storage"),
                Value::Global(Global::StorageClass(element)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(count),
            ],
        ) = self.heap.tuple(id)
        else {
            return Err("it names a storage in another way than torch.save does".into());
        };
        let bytes = u64::try_from(count).ok().and_then(|count| count.checked_mul(element.bytes));
        let Some(bytes) = bytes else { return Err("a storage has an impossible size".into()) };
        Ok(self.heap.add(Object::Storage(Storage { key, element, bytes })))
    }

    fn rebuild(&mut self, rebuild: Rebuild, arguments: &[Value<'a>]) -> Done<Value<'a>> {
        let heap = &self.heap;
        let none = Value::None;
        let view = match (rebuild, arguments) {
            (Rebuild::Parameter, &[tensor, _, _]) | (Rebuild::ParameterWithState, &[tensor, _, _, _]) => {
                return if heap.tensor(tensor).is_some() {
                    Ok(tensor)
                } else {
                    Err("a parameter is no tensor".into())
                };
            }
            (Rebuild::FromType, &[function, Value::Global(Global::TensorClass), arguments, _]) => {
                // Of another function of this kind, it would be a nest that may be deep.
                if matches!(function, Value::Global(Global::Rebuild(inner)) if inner != Rebuild::FromType) {
                    return self.call(function, arguments);
                }
                return Err("a tensor is made of what is no tensor".into());
            }
            (
                Rebuild::Tensor | Rebuild::TensorV2 | Rebuild::TensorV3,
                &[storage, offset, size, stride, ref rest @ ..],
            ) => {
                let (element, metadata) = match (rebuild, rest) {
                    (Rebuild::Tensor, []) | (Rebuild::TensorV2, [_, _]) => (None, none),
                    (Rebuild::TensorV2, &[_, _, metadata]) => (None, metadata),
                    (Rebuild::TensorV3, &[_, _, Value::Global(Global::Type(element))]) => {
                        (Some(element), none)
                    }
                    (Rebuild::TensorV3, &[_, _, Value::Global(Global::Type(element)), metadata]) => {
                        (Some(element), metadata)
                    }
                    _ => return Err(OTHER_ARGUMENTS.into()),
                };
                strided(heap, [storage, offset, size, stride], metadata, element)
            }
            (Rebuild::Quantised, &[storage, _, size, ..]) => heap
                .storage(storage)
                .ok_or_else(|| "a tensor's storage is none".into())
                .and_then(|storage| unread(heap, size, storage.element.name)),
            (Rebuild::Sparse, &[_, data]) => {
                let parts = heap.tuple(data).filter(|parts| parts.len() <= MAX_ARGUMENTS).unwrap_or_default();
                let size = parts.iter().rev().find(|part| heap.tuple(**part).is_some());
                unread(heap, size.copied().unwrap_or(none), "sparse")
            }
            _ => Err(OTHER_ARGUMENTS.into()),
        }?;
        Ok(self.heap.add(Object::Tensor(Box::new(view))))
    }
}

/// A tensor whose elements are not read.
fn unread<'a>(heap: &Heap<'a>, size: Value<'a>, name: &str) -> Done<View<'a>> {
    let shape = integers(heap, size)?;
    if elements(&shape).is_none() {
        return Err("a tensor has an impossible shape".into());
    }
    Ok(View { stored: Stored::Other(name.to_string()), shape, place: None })
}

/// A tensor by storage, offset, size and stride.
fn strided<'a>(
    heap: &Heap<'a>,
    [storage, offset, size, stride]: [Value<'a>; 4],
    metadata: Value<'a>,
    element: Option<&Element>,
) -> Done<View<'a>> {
    let Some(storage) = heap.storage(storage) else { return Err("a tensor's storage is none".into()) };
    let element = element.unwrap_or(storage.element);
    let (shape, strides) = (integers(heap, size)?, integers(heap, stride)?);
    let place =
        integer(offset).and_then(|offset| Place::new(storage, element.bytes, offset, &shape, strides));
    let Some(place) = place else {
        return Err(Wrong::Damage(format!(
            "a tensor of {:?} does not fit into its storage of {} bytes",
            &shape[..shape.len().min(8)],
            storage.bytes
        )));
    };
    // A lazily negated or conjugated tensor: its elements are not those of the storage.
    let plain = match (metadata, heap.object(metadata)) {
        (Value::None, _) => true,
        (_, Some(Object::Dictionary(entries))) => entries.is_empty(),
        _ => false,
    };
    if !plain {
        return unread(heap, size, &format!("{} (a negated or conjugated view)", element.name));
    }
    let stored = element.stored();
    let place = (!matches!(stored, Stored::Other(_))).then_some(place);
    Ok(View { stored, shape, place })
}

fn integer(value: Value) -> Option<usize> {
    match value {
        Value::Int(number) => usize::try_from(number).ok(),
        _ => None,
    }
}

/// The numbers of a tuple, none of them negative, one for each dimension.
fn integers<'a>(heap: &Heap<'a>, value: Value<'a>) -> Done<Vec<usize>> {
    let items = heap.tuple(value).filter(|items| items.len() <= MAX_DIMENSIONS);
    let numbers = items.and_then(|items| items.iter().map(|item| integer(*item)).collect());
    numbers.ok_or_else(|| "a tensor's shape is no tuple of numbers".into())
}
