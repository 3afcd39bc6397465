//! The memory plan, derived from the lifetimes of the tensors in the list of passes.
//!
//! A tensor lives from the first pass that uses it to the last. A tensor that is read before it is written comes from
//! outside and lives from the start. The outputs that the caller names live to the end. [`Plan::new`] gives tensors
//! whose lifetimes overlap separate memory and lets others share memory (largest first, lowest gap that fits).
//! So gradients in flight reuse the memory of activations that backward no longer needs.

use super::*;

/// The place of every tensor of one network.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Byte offset in the arena by tensor id; none for a tensor that no pass uses.
    pub offsets: Vec<Option<usize>>,
    /// Elements by tensor id; 0 for a tensor that no pass uses. Networks of two resolutions may have equal offsets.
    pub elements: Vec<usize>,
    /// Bytes of the arena's tensors: activations and gradients in flight.
    pub tensor_bytes: usize,
    /// The largest workspace of any pass.
    pub workspace: Workspace,
    pub threads: usize,
    /// Weights of the pointwise products, each once, by offset: a device may keep a second copy in another form.
    pub products: Vec<Param>,
    /// Bytes that are saved for backward: those of tensors that live across the end of the forward pass.
    pub saved_bytes: usize,
}

impl Plan {
    /// Lays out the tensors of the passes for a device. The `outputs` are read after the last pass.
    pub fn new(device: &impl Device, passes: &[Pass], tensors: &Tensors, outputs: &[Tensor]) -> Plan {
        let bytes = |t: Tensor| (t.elements * device.element_bytes(t.kind)).next_multiple_of(ALIGNMENT);
        let mut lives = lives(passes, tensors.len(), outputs);
        let turn = passes.iter().position(|p| matches!(p, Pass::Loss(_))).unwrap_or(passes.len());
        let saved = lives.iter().filter(|l| l.first < turn && l.last > turn).map(|l| bytes(l.tensor)).sum();
        lives.sort_by_key(|l| (std::cmp::Reverse(bytes(l.tensor)), l.tensor.id));

        let mut offsets = vec![None; tensors.len()];
        let mut elements = vec![0; tensors.len()];
        let mut placed: Vec<(usize, usize, Life)> = Vec::new();
        let mut tensor_bytes = 0;
        for life in lives {
            let size = bytes(life.tensor);
            let mut offset = 0;
            // `placed` is sorted by offset: find the first gap between the tensors that are alive at the same time.
            for &(start, end, other) in &placed {
                let together = life.first <= other.last && other.first <= life.last;
                if together && start < offset + size && offset < end {
                    offset = end;
                }
            }
            offsets[life.tensor.id as usize] = Some(offset);
            elements[life.tensor.id as usize] = life.tensor.elements;
            tensor_bytes = tensor_bytes.max(offset + size);
            let at = placed.partition_point(|p| p.0 < offset);
            placed.insert(at, (offset, offset + size, life));
        }
        Plan {
            offsets,
            elements,
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

    /// Bytes of the workspace, of all threads together.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.shared
            + self.workspace.kept.iter().sum::<usize>()
            + self.workspace.per_thread * self.threads
    }
}

/// Offsets are multiples of this: a cache line on the CPU, a memory transaction's alignment on a GPU.
pub const ALIGNMENT: usize = 256;

/// The lifetime of a tensor: the numbers of its first and last pass.
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
