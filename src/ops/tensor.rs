//! Handles: the network's names for memory, independent of the place and of the device.

/// The kind of a tensor's elements. A device decides by it how to store them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Activations and their gradients, NHWC: fp32 on the CPU, a half type if the device computes in one.
    Activation,
    /// Statistics, gates, masks, logits, losses: always fp32.
    Float,
    /// Labels: u32.
    Index,
}

/// A tensor of the arena: an index into the [`super::Plan`]'s offsets, and the number of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tensor {
    pub id: u32,
    pub elements: usize,
    pub kind: Kind,
}

/// A tensor of the flat state buffers: `offset..offset+elements`, as the parameter table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Param {
    pub offset: usize,
    pub elements: usize,
}

impl Param {
    pub fn range(self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.elements
    }
}

/// Creates tensor handles and keeps a label of each for the memory plan's table.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    labels: Vec<String>,
}

impl Tensors {
    /// A new tensor. `label` is only for display.
    pub fn new_tensor(&mut self, label: impl Into<String>, elements: usize, kind: Kind) -> Tensor {
        self.labels.push(label.into());
        Tensor { id: self.labels.len() as u32 - 1, elements, kind }
    }

    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    pub fn label(&self, tensor: Tensor) -> &str {
        &self.labels[tensor.id as usize]
    }
}
