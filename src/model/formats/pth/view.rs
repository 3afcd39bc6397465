//! Tensors as views of a storage: where their elements lie, and how these come into row-major order.
//!
//! Element (i₀, i₁, …) of a view lies at `offset + Σ iₖ · strideₖ` of its storage, counted in elements.

use super::value::Storage;
use crate::model::formats::stored::Stored;

/// Dimensions of a tensor; PyTorch has the same limit.
pub const MAX_DIMENSIONS: usize = 64;

/// A tensor of a pickle.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub stored: Stored,
    pub shape: Vec<usize>,
    /// Where its elements lie, if they are read.
    pub place: Option<Place<'a>>,
}

/// Where a view's elements lie. All of them are within the storage, and they are no more than the storage has.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    pub storage: Storage<'a>,
    /// Bytes of an element.
    element: usize,
    offset: usize,
    strides: Vec<usize>,
    elements: usize,
}

/// The number of a shape's elements, if all products of its dimensions can be counted.
pub fn elements(shape: &[usize]) -> Option<usize> {
    if shape.len() > MAX_DIMENSIONS {
        return None;
    }
    let limit = isize::MAX as usize;
    let most =
        shape.iter().try_fold(1_usize, |all, &size| all.checked_mul(size.max(1)).filter(|all| *all <= limit));
    most.map(|most| if shape.contains(&0) { 0 } else { most })
}

impl<'a> Place<'a> {
    /// Nothing if an element lies outside of the storage, or if the view has more elements than the storage.
    pub fn new(
        storage: Storage<'a>,
        element: u64,
        offset: usize,
        shape: &[usize],
        strides: Vec<usize>,
    ) -> Option<Place<'a>> {
        let available = usize::try_from(storage.bytes / element).ok()?;
        let elements = elements(shape)?;
        if shape.len() != strides.len() || elements > available || offset > available {
            return None;
        }
        let mut last = offset;
        // Along a dimension of size 1 no step is taken, so its stride may be any number.
        for (&size, &stride) in shape.iter().zip(&strides).filter(|(size, _)| **size > 1) {
            last = last.checked_add((size - 1).checked_mul(stride)?)?;
        }
        if elements > 0 && last >= available {
            return None;
        }
        Some(Place { storage, element: usize::try_from(element).ok()?, offset, strides, elements })
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.elements * self.element
    }

    /// The bytes of the storage where the elements lie, if they lie there in row-major order and without gaps.
    fn run(&self, shape: &[usize]) -> Option<std::ops::Range<usize>> {
        let mut expected = 1;
        for (&size, &stride) in shape.iter().zip(&self.strides).rev() {
            if size > 1 && stride != expected && self.elements > 0 {
                return None;
            }
            expected *= size.max(1);
        }
        let start = self.offset * self.element;
        Some(start..start + self.bytes())
    }

    /// The elements in row-major order. `bytes` are the storage's; they are taken where they are the result.
    pub fn gather(&self, shape: &[usize], bytes: &mut Vec<u8>, last: bool) -> Vec<u8> {
        match self.run(shape) {
            Some(run) if last && run == (0..bytes.len()) => std::mem::take(bytes),
            Some(run) => bytes[run].to_vec(),
            None => self.collect(shape, bytes),
        }
    }

    /// The elements one by one, in row-major order.
    fn collect(&self, shape: &[usize], bytes: &[u8]) -> Vec<u8> {
        let mut gathered = Vec::with_capacity(self.bytes());
        // Those of size 1 would be steps that lead nowhere, 64 of them for each element.
        let axes = shape.iter().zip(&self.strides).filter(|(size, _)| **size != 1);
        let mut axes: Vec<_> = axes.map(|(size, stride)| (*size, *stride, 0)).collect();
        let mut at = self.offset;
        for _ in 0..self.elements {
            let start = at * self.element;
            gathered.extend_from_slice(&bytes[start..start + self.element]);
            // To the next index, like a counter whose digits are the dimensions.
            for (size, stride, index) in axes.iter_mut().rev() {
                *index += 1;
                at += *stride;
                if *index < *size {
                    break;
                }
                at -= *stride * *size;
                *index = 0;
            }
        }
        gathered
    }
}
