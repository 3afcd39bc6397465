//! The itinerary: the passes of one micro-batch, in order.
//!
//! The network only records one; who trains or evaluates runs what was recorded, forward and backward. So the memory
//! plan, the buckets of gradients and the device see the same list, and a decision about it, such as whether the
//! expanded tensor is stored, is taken once, as a [rewrite](super::rewrite) of the list.

use std::ops::Range;

use crate::ops::{Device, Ops, Pass, Plan, Result, Tensor, Tensors};

/// The parts of an itinerary, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Masks of stochastic depth and dropout are drawn.
    Masks,
    /// Image → logits.
    Forward,
    /// Logits and labels → losses, and the gradient at the logits.
    Loss,
    /// The gradients of this micro-batch are added to the gradient buffer.
    Backward,
}

/// Where a pass belongs that several layers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// By its index.
    Block(usize),
    Head,
}

/// One recorded pass.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub phase: Phase,
    /// None for a pass that a network has once.
    pub layer: Option<Layer>,
    pub pass: Pass,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Itinerary {
    entries: Vec<Entry>,
}

impl Itinerary {
    /// Adds a pass to the end.
    pub fn push(&mut self, phase: Phase, layer: impl Into<Option<Layer>>, pass: impl Into<Pass>) {
        debug_assert!(self.entries.last().is_none_or(|last| last.phase <= phase), "phases follow each other");
        self.entries.push(Entry { phase, layer: layer.into(), pass: pass.into() });
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All passes.
    pub fn passes(&self) -> Vec<Pass> {
        self.entries.iter().map(|entry| entry.pass).collect()
    }

    /// The numbers of a phase's passes.
    pub fn numbers(&self, phase: Phase) -> Range<usize> {
        let before = self.entries.partition_point(|entry| entry.phase < phase);
        before..self.entries.partition_point(|entry| entry.phase <= phase)
    }

    /// Runs a phase.
    pub fn run<O: Ops>(&self, phase: Phase, ops: &mut O) -> Result {
        self.entries[self.numbers(phase)].iter().try_for_each(|entry| ops.run(&entry.pass))
    }

    /// Lays out the tensors for a device; `outputs` are those that are read after the last pass.
    pub fn plan(&self, device: &impl Device, tensors: &Tensors, outputs: &[Tensor]) -> Plan {
        Plan::new(device, &self.passes(), tensors, outputs)
    }
}

impl FromIterator<Entry> for Itinerary {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Itinerary {
        Itinerary { entries: entries.into_iter().collect() }
    }
}
