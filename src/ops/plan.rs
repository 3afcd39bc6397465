//! The memory plan: the network is run once on a recorder, and the record says how long each tensor lives.
//!
//! [`Recorder`] implements [`Ops`] by writing every pass down. A tensor lives from the first pass that
//! touches it to the last; one that is read before it is written comes from outside and lives from the
//! start; the outputs that the caller names live to the end. [`Recorder::plan`] then lays tensors whose lives
//! overlap beside each other and lets others share memory (largest first, lowest gap that fits). So gradients
//! in flight reuse the memory of activations that backward has finished with, without a line of code that
//! says so.

use super::tensor::{Kind, Tensor, Tensors};
use super::*;

/// Scratch bytes of a pass: seen by all threads, and each thread's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    pub shared: usize,
    pub per_thread: usize,
}

/// What the planner has to know of a device.
pub trait Device {
    /// Bytes of one element.
    fn element_bytes(&self, kind: Kind) -> usize;
    /// Scratch that a pass needs beside the tensors it names.
    fn workspace(&self, pass: &Pass) -> Workspace;
    /// How many threads have scratch of their own.
    fn threads(&self) -> usize;
    /// Whether the expanded tensor [rows, expanded] of a block with this many input channels is stored; a
    /// device that recomputes it says no.
    fn stores_expanded(&self, _expanded: usize, _inputs: usize, _rows: usize) -> bool {
        true
    }
    /// Whether it takes [raw batches](crate::data::raw), which it crops and resizes itself; otherwise squares.
    fn prepares_images(&self) -> bool {
        false
    }
}

/// One recorded pass.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant)] // a few hundred of them, made once
pub enum Pass {
    DropPathMask(DropPathMask),
    DropoutMask(DropoutMask),
    BatchNormInference(BatchNorm),
    StemForward(StemForward),
    ExpandForward(ExpandForward),
    DepthwiseForward(DepthwiseForward),
    SqueezeForward(SqueezeForward),
    ProjectForward(ProjectForward),
    ResidualForward(ResidualForward),
    HeadForward(HeadForward),
    Loss(Loss),
    HeadBackward(HeadBackward),
    ProjectBackward(ProjectBackward),
    SqueezeBackward(SqueezeBackward),
    DepthwiseBackward(DepthwiseBackward),
    ExpandBackward(ExpandBackward),
    StemBackward(StemBackward),
    /// Of a device that does not store the expanded tensor.
    ExpandDepthwiseForward(ExpandForward, DepthwiseForward),
    ExpandDepthwiseBackward(ExpandBackward, DepthwiseBackward),
    Update(Update),
}

impl Pass {
    /// Calls `visit` with every tensor the pass touches, and whether the pass writes it before reading it.
    pub fn tensors(&self, visit: &mut dyn FnMut(Tensor, bool)) {
        let mut read = |t: Tensor| visit(t, false);
        let coefficients = |bn: &BatchNorm| bn.coefficients;
        match self {
            Pass::DropPathMask(p) => visit(p.keep, true),
            Pass::DropoutMask(p) => visit(p.mask, true),
            Pass::BatchNormInference(bn) => visit(bn.coefficients, true),
            Pass::StemForward(p) => {
                read(p.image);
                output(p.y, &p.bn, visit);
            }
            Pass::ExpandForward(p) => {
                read(p.x);
                output(p.y, &p.bn, visit);
            }
            Pass::DepthwiseForward(p) => {
                read(p.x);
                p.input_bn.iter().map(coefficients).for_each(read);
                output(p.y, &p.bn, visit);
            }
            Pass::SqueezeForward(p) => {
                [p.y, p.bn.coefficients].into_iter().for_each(read);
                [p.squeezed, p.hidden, p.gate].into_iter().for_each(|t| visit(t, true));
            }
            Pass::ProjectForward(p) => {
                [p.x, p.input_bn.coefficients, p.gate].into_iter().for_each(read);
                output(p.y, &p.bn, visit);
            }
            Pass::ResidualForward(p) => {
                [p.y, p.bn.coefficients].into_iter().chain(p.keep).chain(p.shortcut).for_each(read);
                visit(p.out, true);
            }
            Pass::HeadForward(p) => {
                [p.y, p.bn.coefficients].into_iter().chain(p.dropout).for_each(read);
                [p.pooled, p.logits].into_iter().for_each(|t| visit(t, true));
            }
            Pass::Loss(p) => {
                [p.logits, p.labels].into_iter().for_each(read);
                [p.losses, p.dlogits].into_iter().for_each(|t| visit(t, true));
            }
            Pass::HeadBackward(p) => {
                let inputs = [p.y, p.bn.coefficients, p.pooled, p.dlogits];
                inputs.into_iter().chain(p.dropout).for_each(read);
                [p.du, p.bn.sums].into_iter().for_each(|t| visit(t, true));
            }
            Pass::ProjectBackward(p) => {
                let outer = [p.y, p.bn.coefficients, p.bn.sums, p.dout];
                let inner = [p.x, p.input_bn.coefficients, p.gate];
                outer.into_iter().chain(inner).chain(p.keep).for_each(read);
                [p.da, p.five_sums].into_iter().for_each(|t| visit(t, true));
            }
            Pass::SqueezeBackward(p) => {
                [p.squeezed, p.hidden, p.gate, p.five_sums].into_iter().for_each(read);
                [p.squeeze_gradient, p.bn.sums].into_iter().for_each(|t| visit(t, true));
            }
            Pass::DepthwiseBackward(p) => {
                let outer = [p.y, p.bn.coefficients, p.bn.sums, p.da, p.gate, p.squeeze_gradient, p.x];
                outer.into_iter().for_each(read);
                match &p.input {
                    DepthwiseInput::Normalised(bn) => {
                        visit(bn.coefficients, false);
                        visit(bn.sums, true);
                    }
                    DepthwiseInput::Identity { shortcut, previous } => {
                        shortcut.iter().for_each(|&t| visit(t, false));
                        previous_block(previous, visit);
                    }
                }
                visit(p.dx, true);
            }
            Pass::ExpandBackward(p) => {
                let inputs = [p.x, p.y, p.bn.coefficients, p.bn.sums, p.du];
                inputs.into_iter().chain(p.shortcut).for_each(read);
                previous_block(&p.previous, visit);
                visit(p.dx, true);
            }
            Pass::StemBackward(p) => {
                [p.image, p.y, p.bn.coefficients, p.bn.sums, p.du].into_iter().for_each(read)
            }
            Pass::ExpandDepthwiseForward(e, d) => {
                let expanded = e.y;
                let mut stored = |t: Tensor, writes| {
                    if t != expanded {
                        visit(t, writes)
                    }
                };
                Pass::ExpandForward(*e).tensors(&mut stored);
                Pass::DepthwiseForward(*d).tensors(&mut stored);
            }
            Pass::ExpandDepthwiseBackward(e, d) => {
                let recomputed = [e.y, e.du];
                let mut stored = |t: Tensor, writes| {
                    if !recomputed.contains(&t) {
                        visit(t, writes)
                    }
                };
                Pass::DepthwiseBackward(*d).tensors(&mut stored);
                Pass::ExpandBackward(*e).tensors(&mut stored);
            }
            Pass::Update(_) => {}
        }
    }

    /// Calls `visit` with every parameter whose gradient the pass adds to.
    pub fn gradients(&self, visit: &mut dyn FnMut(Param)) {
        let dense = |layer: &Dense| [layer.weight, layer.bias];
        let norm = |bn: &BatchNorm| [bn.weight, bn.bias];
        match self {
            Pass::HeadBackward(p) => {
                dense(&p.classifier).into_iter().chain(norm(&p.bn)).for_each(visit);
            }
            Pass::ProjectBackward(p) => visit(p.weight),
            Pass::SqueezeBackward(p) => {
                let layers = dense(&p.reduce).into_iter().chain(dense(&p.expand));
                layers.chain(norm(&p.bn)).for_each(visit);
            }
            Pass::DepthwiseBackward(p) => {
                visit(p.weight);
                match &p.input {
                    DepthwiseInput::Normalised(bn) => norm(bn).into_iter().for_each(visit),
                    DepthwiseInput::Identity { previous, .. } => {
                        norm(&previous.bn).into_iter().for_each(visit)
                    }
                }
            }
            Pass::ExpandBackward(p) => {
                visit(p.weight);
                norm(&p.previous.bn).into_iter().for_each(visit);
            }
            Pass::StemBackward(p) => visit(p.weight),
            Pass::ExpandDepthwiseBackward(e, d) => {
                Pass::DepthwiseBackward(*d).gradients(visit);
                Pass::ExpandBackward(*e).gradients(visit);
            }
            Pass::DropPathMask(_)
            | Pass::DropoutMask(_)
            | Pass::BatchNormInference(_)
            | Pass::StemForward(_)
            | Pass::ExpandForward(_)
            | Pass::DepthwiseForward(_)
            | Pass::SqueezeForward(_)
            | Pass::ProjectForward(_)
            | Pass::ResidualForward(_)
            | Pass::HeadForward(_)
            | Pass::Loss(_)
            | Pass::ExpandDepthwiseForward(..)
            | Pass::Update(_) => {}
        }
    }

    /// Runs the pass.
    pub fn run<O: Ops + ?Sized>(&self, ops: &mut O) -> Result {
        match self {
            Pass::DropPathMask(p) => ops.drop_path_mask(p),
            Pass::DropoutMask(p) => ops.dropout_mask(p),
            Pass::BatchNormInference(p) => ops.batch_norm_inference(p),
            Pass::StemForward(p) => ops.stem_forward(p),
            Pass::ExpandForward(p) => ops.expand_forward(p),
            Pass::DepthwiseForward(p) => ops.depthwise_forward(p),
            Pass::SqueezeForward(p) => ops.squeeze_forward(p),
            Pass::ProjectForward(p) => ops.project_forward(p),
            Pass::ResidualForward(p) => ops.residual_forward(p),
            Pass::HeadForward(p) => ops.head_forward(p),
            Pass::Loss(p) => ops.loss(p),
            Pass::HeadBackward(p) => ops.head_backward(p),
            Pass::ProjectBackward(p) => ops.project_backward(p),
            Pass::SqueezeBackward(p) => ops.squeeze_backward(p),
            Pass::DepthwiseBackward(p) => ops.depthwise_backward(p),
            Pass::ExpandBackward(p) => ops.expand_backward(p),
            Pass::StemBackward(p) => ops.stem_backward(p),
            Pass::ExpandDepthwiseForward(e, d) => ops.expand_depthwise_forward(e, d),
            Pass::ExpandDepthwiseBackward(e, d) => ops.expand_depthwise_backward(e, d),
            Pass::Update(p) => ops.update(p),
        }
    }

    /// Bytes of the tensors that the pass names, each counted once: what it must move through memory at least, but
    /// for the weights.
    pub fn bytes(&self, device: &impl Device) -> u64 {
        let mut bytes = 0;
        self.tensors(&mut |t, _| bytes += (t.elements * device.element_bytes(t.kind)) as u64);
        bytes
    }

    /// The operator's name, for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Pass::DropPathMask(_) => "stochastic depth mask",
            Pass::DropoutMask(_) => "dropout mask",
            Pass::BatchNormInference(_) => "batch norm inference",
            Pass::StemForward(_) => "stem forward",
            Pass::ExpandForward(_) => "expand forward",
            Pass::DepthwiseForward(_) => "depthwise forward",
            Pass::SqueezeForward(_) => "squeeze forward",
            Pass::ProjectForward(_) => "project forward",
            Pass::ResidualForward(_) => "residual forward",
            Pass::HeadForward(_) => "head forward",
            Pass::Loss(_) => "loss",
            Pass::HeadBackward(_) => "head backward",
            Pass::ProjectBackward(_) => "project backward",
            Pass::SqueezeBackward(_) => "squeeze backward",
            Pass::DepthwiseBackward(_) => "depthwise backward",
            Pass::ExpandBackward(_) => "expand backward",
            Pass::StemBackward(_) => "stem backward",
            Pass::ExpandDepthwiseForward(..) => "expand+depthwise forward",
            Pass::ExpandDepthwiseBackward(..) => "expand+depthwise backward",
            Pass::Update(_) => "update",
        }
    }
}

macro_rules! passes_from {
    ($($type:ident => $variant:ident),* $(,)?) => {
        $(impl From<$type> for Pass {
            fn from(pass: $type) -> Pass {
                Pass::$variant(pass)
            }
        })*
    };
}

passes_from! {
    DropPathMask => DropPathMask,
    DropoutMask => DropoutMask,
    BatchNorm => BatchNormInference,
    StemForward => StemForward,
    ExpandForward => ExpandForward,
    DepthwiseForward => DepthwiseForward,
    SqueezeForward => SqueezeForward,
    ProjectForward => ProjectForward,
    ResidualForward => ResidualForward,
    HeadForward => HeadForward,
    Loss => Loss,
    HeadBackward => HeadBackward,
    ProjectBackward => ProjectBackward,
    SqueezeBackward => SqueezeBackward,
    DepthwiseBackward => DepthwiseBackward,
    ExpandBackward => ExpandBackward,
    StemBackward => StemBackward,
    Update => Update,
}

/// A raw convolution output and, where they are taken from the batch, its statistics.
fn output(y: Tensor, bn: &BatchNorm, visit: &mut dyn FnMut(Tensor, bool)) {
    visit(y, true);
    if bn.statistics == Statistics::Batch {
        visit(bn.coefficients, true);
    }
}

fn previous_block(previous: &PreviousBlock, visit: &mut dyn FnMut(Tensor, bool)) {
    let inputs = [previous.y, previous.bn.coefficients];
    inputs.into_iter().chain(previous.keep).for_each(|t| visit(t, false));
    visit(previous.bn.sums, true);
}

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
    /// Bytes of scratch in all.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.shared + self.workspace.per_thread * self.threads
    }
}

/// Offsets are multiples of this: a cache line on the CPU, a memory transaction's alignment on a GPU.
pub const ALIGNMENT: usize = 256;

/// An [`Ops`] that runs nothing and writes down what it was asked to run.
pub struct Recorder<'a, D: Device> {
    device: &'a D,
    pub passes: Vec<Pass>,
}

#[derive(Clone, Copy)]
struct Life {
    tensor: Tensor,
    first: usize,
    last: usize,
}

impl<'a, D: Device> Recorder<'a, D> {
    pub fn new(device: &'a D) -> Self {
        Recorder { device, passes: Vec::new() }
    }

    fn record(&mut self, pass: Pass) -> Result {
        self.passes.push(pass);
        Ok(())
    }

    fn lives(&self, count: usize, outputs: &[Tensor]) -> Vec<Life> {
        let mut lives: Vec<Option<Life>> = vec![None; count];
        for (now, pass) in self.passes.iter().enumerate() {
            pass.tensors(&mut |tensor, writes| {
                let first = if writes { now } else { 0 };
                let life = lives[tensor.id as usize].get_or_insert(Life { tensor, first, last: now });
                life.last = now;
            });
        }
        for output in outputs {
            if let Some(life) = &mut lives[output.id as usize] {
                life.last = self.passes.len();
            }
        }
        lives.into_iter().flatten().collect()
    }

    fn products(&self) -> Vec<Param> {
        let mut products: Vec<Param> = self
            .passes
            .iter()
            .filter_map(|pass| match pass {
                Pass::ExpandForward(p) | Pass::ExpandDepthwiseForward(p, _) => Some(p.weight),
                Pass::ExpandBackward(p) | Pass::ExpandDepthwiseBackward(p, _) => Some(p.weight),
                Pass::ProjectForward(p) => Some(p.weight),
                Pass::ProjectBackward(p) => Some(p.weight),
                _ => None,
            })
            .collect();
        products.sort_by_key(|p| p.offset);
        products.dedup();
        products
    }

    /// Lays out the tensors of the recorded passes; `outputs` are those that the caller reads afterwards.
    pub fn plan(&self, tensors: &Tensors, outputs: &[Tensor]) -> Plan {
        let bytes = |t: Tensor| (t.elements * self.device.element_bytes(t.kind)).next_multiple_of(ALIGNMENT);
        let mut lives = self.lives(tensors.len(), outputs);
        let turn = self.passes.iter().position(|p| matches!(p, Pass::Loss(_))).unwrap_or(self.passes.len());
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
        let mut workspace = Workspace::default();
        for need in self.passes.iter().map(|p| self.device.workspace(p)) {
            workspace.shared = workspace.shared.max(need.shared);
            workspace.per_thread = workspace.per_thread.max(need.per_thread);
        }
        let threads = self.device.threads();
        Plan { offsets, tensor_bytes, workspace, threads, products: self.products(), saved_bytes: saved }
    }
}

macro_rules! recorded {
    ($($method:ident: $pass:ident),* $(,)?) => {
        $(fn $method(&mut self, pass: &$pass) -> Result { self.record(Pass::$pass(*pass)) })*
    };
}

impl<D: Device> Ops for Recorder<'_, D> {
    fn bind(&mut self, _: &Plan) -> Result {
        Ok(())
    }
    fn set_step(&mut self, _: StepParams) -> Result {
        Ok(())
    }
    fn use_weights(&mut self, _: Weights) -> Result {
        Ok(())
    }
    fn zero_gradients(&mut self) -> Result {
        Ok(())
    }
    fn end_step(&mut self) -> Result {
        Ok(())
    }
    fn take_figures(&mut self, _: bool) -> Result<Option<StepFigures>> {
        Ok(None)
    }
    fn start_profile(&mut self) -> Result {
        Ok(())
    }
    fn take_profile(&mut self) -> Result<ProfileReport> {
        Ok(ProfileReport::default())
    }
    fn read_state(&mut self, _: Buffer, _: &mut [f32]) -> Result {
        Ok(())
    }
    fn write_state(&mut self, _: Buffer, _: &[f32]) -> Result {
        Ok(())
    }
    fn upload(&mut self, _: Tensor, _: &[f32]) -> Result {
        Ok(())
    }
    fn upload_labels(&mut self, _: Tensor, _: &[u32]) -> Result {
        Ok(())
    }
    fn upload_pixels(&mut self, _: Tensor, _: &[u8], _: [f32; 3], _: [f32; 3]) -> Result {
        Ok(())
    }
    fn download(&mut self, _: Tensor, _: &mut [f32]) -> Result {
        Ok(())
    }

    fn batch_norm_inference(&mut self, bn: &BatchNorm) -> Result {
        self.record(Pass::BatchNormInference(*bn))
    }

    fn expand_depthwise_forward(&mut self, expand: &ExpandForward, depthwise: &DepthwiseForward) -> Result {
        if self.device.stores_expanded(expand.outputs, expand.inputs, expand.rows) {
            self.expand_forward(expand)?;
            return self.depthwise_forward(depthwise);
        }
        self.record(Pass::ExpandDepthwiseForward(*expand, *depthwise))
    }

    fn expand_depthwise_backward(
        &mut self,
        expand: &ExpandBackward,
        depthwise: &DepthwiseBackward,
    ) -> Result {
        if self.device.stores_expanded(expand.outputs, expand.inputs, expand.rows) {
            self.depthwise_backward(depthwise)?;
            return self.expand_backward(expand);
        }
        self.record(Pass::ExpandDepthwiseBackward(*expand, *depthwise))
    }

    recorded! {
        drop_path_mask: DropPathMask,
        dropout_mask: DropoutMask,
        stem_forward: StemForward,
        expand_forward: ExpandForward,
        depthwise_forward: DepthwiseForward,
        squeeze_forward: SqueezeForward,
        project_forward: ProjectForward,
        residual_forward: ResidualForward,
        head_forward: HeadForward,
        loss: Loss,
        head_backward: HeadBackward,
        project_backward: ProjectBackward,
        squeeze_backward: SqueezeBackward,
        depthwise_backward: DepthwiseBackward,
        expand_backward: ExpandBackward,
        stem_backward: StemBackward,
        update: Update,
    }
}
