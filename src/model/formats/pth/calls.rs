//! What a pickle's calls make: tensors, storages, dictionaries, and opaque values. Nothing is called in truth: the
//! functions are those of [`Rebuild`], and their arguments are checked here.

use super::globals::{Element, Global, Rebuild};
use super::pickle::{Done, Machine, Wrong};
use super::value::{Heap, Object, Storage, Value};
use super::view::{Place, View, elements};
use crate::model::formats::stored::Stored;

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
            (Global::Rebuild(rebuild), _) => {
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
            (Rebuild::Tensor, &[storage, offset, size, stride]) => {
                strided(heap, [storage, offset, size, stride], none, None)
            }
            (Rebuild::TensorV2, &[storage, offset, size, stride, _, _]) => {
                strided(heap, [storage, offset, size, stride], none, None)
            }
            (Rebuild::TensorV2, &[storage, offset, size, stride, _, _, metadata]) => {
                strided(heap, [storage, offset, size, stride], metadata, None)
            }
            (
                Rebuild::TensorV3,
                &[storage, offset, size, stride, _, _, Value::Global(Global::Type(element))],
            ) => strided(heap, [storage, offset, size, stride], none, Some(element)),
            (
                Rebuild::TensorV3,
                &[storage, offset, size, stride, _, _, Value::Global(Global::Type(element)), metadata],
            ) => strided(heap, [storage, offset, size, stride], metadata, Some(element)),
            (Rebuild::Quantised, &[storage, _, size, ..]) => heap
                .storage(storage)
                .ok_or_else(|| "a tensor's storage is none".into())
                .and_then(|storage| unread(heap, size, storage.element.name)),
            (Rebuild::Sparse, &[_, data]) => {
                let sizes = heap.tuple(data).unwrap_or_default();
                let size = sizes.iter().rev().find(|part| heap.tuple(**part).is_some());
                unread(heap, size.copied().unwrap_or(none), "sparse")
            }
            _ => Err("a tensor is made of other arguments than torch.save writes".into()),
        }?;
        Ok(self.heap.add(Object::Tensor(view)))
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
    element: Option<Element>,
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
        return unread(heap, size, &format!("{} with a sign of its own", element.name));
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

/// The numbers of a tuple, none of them negative.
fn integers<'a>(heap: &Heap<'a>, value: Value<'a>) -> Done<Vec<usize>> {
    let numbers = heap.tuple(value).and_then(|items| items.iter().map(|item| integer(*item)).collect());
    numbers.ok_or_else(|| "a tensor's shape is no tuple of numbers".into())
}
