//! Packed weights that outlive their pass.
//!
//! In training a weight changes with each step, so each pass packs it into the workspace. In inference weights stay as they
//! are, and for a small batch packing them would take longer than the products: the first batch packs each weight once, and
//! the others find it. Whatever changes a weight drops all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::cast_slice_mut;

use super::{Panels, depth, pack_transposed};
use crate::ops::Param;
use crate::ops::cpu::context::Context;
use crate::ops::cpu::memory::Memory;
use crate::ops::cpu::simd::Element;

/// How a weight is packed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// B = Wᵀ of a forward product.
    Transposed(Panels),
    /// A depthwise convolution's window of this side, from this tap on in both directions.
    Taps { kernel: usize, first: usize },
    /// Slices of so many rows, each transposed.
    Slices(usize),
}

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    /// The parameter's, and whether its moving average is meant.
    offset: usize,
    average: bool,
    /// All of them: the same form has others in another storage type.
    bytes: usize,
    form: Form,
}

/// All that is kept.
#[derive(Default)]
pub struct PackedWeights {
    weights: Mutex<HashMap<Key, Arc<Memory>>>,
    /// Whether passes keep what they pack.
    keeps: bool,
}

impl PackedWeights {
    /// From now on, passes keep the weights that they pack, or not.
    pub fn keep(&mut self, keeps: bool) {
        self.keeps = keeps;
    }

    /// Drops all, because a weight changes or the memory is needed.
    pub fn clear(&mut self) {
        self.weights.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A packed weight.
pub enum Packed<'a, E> {
    /// In the pass's workspace.
    Own(&'a [E]),
    /// Found again by the passes that follow; so many numbers.
    Shared(Arc<Memory>, usize),
}

impl<'a, E: Element> Packed<'a, E> {
    /// Packs B = Wᵀ of a forward pass, where W is row-major [columns, depth]: into `workspace`, or where it is kept.
    pub fn transposed(cx: &Context, param: Param, panels: Panels, workspace: &'a mut [f32]) -> Packed<'a, E> {
        let weight = cx.weight(param);
        let elements = depth::<E>(weight.len() / panels.columns) * panels.padded();
        let pack = |to: &mut [E]| pack_transposed(cx, weight, panels, to);
        Packed::new(cx, param, Form::Transposed(panels), &mut cast_slice_mut(workspace)[..elements], pack)
    }

    /// What `pack` makes of a weight, as many numbers as the workspace has: there, or where it is kept.
    pub fn new(
        cx: &Context,
        param: Param,
        form: Form,
        workspace: &'a mut [E],
        pack: impl FnOnce(&mut [E]),
    ) -> Packed<'a, E> {
        if !cx.packed.keeps {
            pack(workspace);
            return Packed::Own(workspace);
        }
        let key = Key { offset: param.offset, average: cx.ema_weights, bytes: size_of_val(workspace), form };
        let elements = workspace.len();
        let kept = |weights: &Mutex<HashMap<_, Arc<Memory>>>| {
            weights.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
        };
        let memory = kept(&cx.packed.weights).unwrap_or_else(|| {
            let memory = Arc::new(Memory::new(size_of_val(workspace)));
            // SAFETY: nobody else knows this memory yet.
            pack(unsafe { memory.elements_mut::<E>(0, elements) });
            let mut weights = cx.packed.weights.lock().unwrap_or_else(PoisonError::into_inner);
            weights.insert(key, memory.clone());
            memory
        });
        Packed::Shared(memory, elements)
    }

    pub fn numbers(&self) -> &[E] {
        match self {
            Packed::Own(own) => own,
            // SAFETY: it is written once, before others know it.
            Packed::Shared(memory, elements) => unsafe { memory.elements(0, *elements) },
        }
    }
}
