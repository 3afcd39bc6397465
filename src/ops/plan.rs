//! The memory plan: the list of passes says how long each tensor lives.
//!
//! A tensor lives from the first pass that touches it to the last; one that is read before it is written comes from
//! outside and lives from the start; the outputs that the caller names live to the end. [`Plan::new`] then lays
//! tensors whose lives overlap beside each other and lets others share memory (largest first, lowest gap that fits).
//! So gradients in flight reuse the memory of activations that backward has finished with, without a line of code
//! that says so.

use super::*;

/// Where every tensor of one network lies.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Byte offset in the arena by tensor id; none for a tensor that no pass touches.
    pub offsets: Vec<Option<usize>>,
    /// Bytes of the arena's tensors: activations and gradients in flight.
    pub tensor_bytes: usize,
    /// What any pass needs beside its tensors, at most.
    pub workspace: Workspace,
    pub threads: usize,
    /// Weights of the pointwise products, each once, by offset: a device may keep them in a form of its own.
    pub products: Vec<Param>,
    /// Bytes that live across the end of the forward pass: what is saved for backward.
    pub saved_bytes: usize,
}

impl Plan {
    /// Lays out the tensors of the passes for a device; `outputs` are those that are read after the last pass.
    pub fn new(device: &impl Device, passes: &[Pass], tensors: &Tensors, outputs: &[Tensor]) -> Plan {
        let bytes = |t: Tensor| (t.elements * device.element_bytes(t.kind)).next_multiple_of(ALIGNMENT);
        let mut lives = lives(passes, tensors.len(), outputs);
        let turn = passes.iter().position(|p| matches!(p, Pass::Loss(_))).unwrap_or(passes.len());
        let saved = lives.iter().filter(|l| l.first < turn && l.last > turn).map(|l| bytes(l.tensor)).sum();
        lives.sort_by_key(|l| (std::cmp::Reverse(bytes(l.tensor)), l.tensor.id));

        let mut offsets = vec![None; tensors.len()];
        let mut placed: Vec<(usize, usize, Life)> = Vec::new();
        let mut tensor_bytes = 0;
        for life in lives {
            let size = bytes(life.tensor);
            let mut offset = 0;
            // `placed` is sorted by offset: walk up to the first gap among those alive at the same time.
            for &(start, end, other) in &placed {
                let together = life.first <= other.last && other.first <= life.last;
                if together && start < offset + size && offset < end {
                    offset = end;
                }
            }
            offsets[life.tensor.id as usize] = Some(offset);
            tensor_bytes = tensor_bytes.max(offset + size);
            let at = placed.partition_point(|p| p.0 < offset);
            placed.insert(at, (offset, offset + size, life));
        }
        Plan {
            offsets,
            tensor_bytes,
            workspace: passes
                .iter()
                .map(|pass| device.workspace(pass))
                .fold(Workspace::default(), Workspace::max),
            threads: device.threads(),
            products: products(passes),
            saved_bytes: saved,
        }
    }

    /// Bytes of scratch in all.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.shared + self.workspace.per_thread * self.threads
    }
}

/// Offsets are multiples of this: a cache line on the CPU, a memory transaction's alignment on a GPU.
pub const ALIGNMENT: usize = 256;

/// From when to when a tensor lives, in numbers of passes.
#[derive(Clone, Copy)]
struct Life {
    tensor: Tensor,
    first: usize,
    last: usize,
}

fn lives(passes: &[Pass], count: usize, outputs: &[Tensor]) -> Vec<Life> {
    let mut lives: Vec<Option<Life>> = vec![None; count];
    for (now, pass) in passes.iter().enumerate() {
        pass.tensors(&mut |tensor, writes| {
            let first = if writes { now } else { 0 };
            let life = lives[tensor.id as usize].get_or_insert(Life { tensor, first, last: now });
            life.last = now;
        });
    }
    for output in outputs {
        if let Some(life) = &mut lives[output.id as usize] {
            life.last = passes.len();
        }
    }
    lives.into_iter().flatten().collect()
}

fn products(passes: &[Pass]) -> Vec<Param> {
    let mut products = Vec::new();
    for pass in passes {
        pass.parts(&mut |part| {
            if let Part::Product(weight) = part {
                products.push(weight);
            }
        });
    }
    products.sort_by_key(|p| p.offset);
    products.dedup();
    products
}
