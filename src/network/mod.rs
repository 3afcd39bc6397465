//! The network, as the paper draws it: a stem, MBConv blocks, a head; forward and backward side by side.
//!
//! It is generic over [`Ops`] and names no device. A [`Network`] holds no numbers: only the descriptions of
//! the passes to run, in which tensors are handles. Running it on a [`Recorder`] instead of a device gives
//! the memory plan.
//!
//! Backward runs the blocks in reverse. What passes between two blocks is the gradient at the narrow tensor
//! between them, and the two sums that the earlier block's last batch norm needs, which the later block's
//! backward takes while it writes that gradient.

mod head;
mod mbconv;
mod stem;

use crate::model::{Architecture, ParamTable};
use crate::ops::{
    BatchNorm, Dense, Device, DropPathMask, DropoutMask, Kind, Loss, Ops, Param, Plan, PreviousBlock,
    Recorder, Result, Statistics, Tensor, Tensors,
};
use head::Head;
use mbconv::MbConv;
use stem::Stem;

/// How a network is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Images of one forward pass: the micro-batch.
    pub images: usize,
    /// Batch statistics to train, running ones to evaluate.
    pub statistics: Statistics,
    /// Ranks whose micro-batches share their statistics; 1 keeps each to its own.
    pub statistics_ranks: usize,
    /// Stochastic depth of the last block, were there one more; 0 is off.
    pub drop_path: f64,
    /// Dropout before the classifier; 0 is off.
    pub dropout: f64,
    pub label_smoothing: f64,
    /// Images of the whole optimiser step, over which the loss is averaged.
    pub step_images: usize,
}

impl NetworkConfig {
    /// Evaluation of `images` at a time.
    pub fn inference(images: usize) -> NetworkConfig {
        NetworkConfig {
            images,
            statistics: Statistics::Running,
            statistics_ranks: 1,
            drop_path: 0.0,
            dropout: 0.0,
            label_smoothing: 0.0,
            step_images: images,
        }
    }
}

/// A mask that is drawn anew for every batch.
#[derive(Clone, Copy, Debug)]
pub enum Mask {
    DropPath(DropPathMask),
    Dropout(DropoutMask),
}

impl Mask {
    pub fn tensor(&self) -> Tensor {
        match self {
            Mask::DropPath(pass) => pass.keep,
            Mask::Dropout(pass) => pass.mask,
        }
    }
}

/// All passes of one network over one micro-batch.
pub struct Network {
    pub config: NetworkConfig,
    pub tensors: Tensors,
    /// [N, R, R, 3].
    pub image: Tensor,
    /// [N], u32.
    pub labels: Tensor,
    /// [N, classes].
    pub logits: Tensor,
    /// [N].
    pub losses: Tensor,
    pub masks: Vec<Mask>,
    stem: Stem,
    blocks: Vec<MbConv>,
    head: Head,
    loss: Loss,
}

/// What the parts of the network are built from.
struct Builder<'a> {
    tensors: Tensors,
    params: &'a ParamTable,
    arch: &'a Architecture,
    config: NetworkConfig,
}

impl Builder<'_> {
    /// A parameter of the architecture, which the table lists by construction.
    fn param(&self, name: &str) -> Param {
        let entry = self.params.get(name).unwrap_or_else(|| panic!("the parameter table has no {name}"));
        Param { offset: entry.offset, elements: entry.elements() }
    }

    fn weight(&self, layer: &str) -> Param {
        self.param(&format!("{layer}.weight"))
    }

    fn dense(&self, layer: &str, inputs: usize, outputs: usize) -> Dense {
        Dense { weight: self.weight(layer), bias: self.param(&format!("{layer}.bias")), inputs, outputs }
    }

    /// [images, side, side, channels].
    fn activation(&mut self, label: String, side: usize, channels: usize) -> Tensor {
        self.tensors.new_tensor(label, self.config.images * side * side * channels, Kind::Activation)
    }

    fn floats(&mut self, label: String, elements: usize) -> Tensor {
        self.tensors.new_tensor(label, elements, Kind::Float)
    }

    fn batch_norm(&mut self, layer: &str, side: usize, channels: usize) -> BatchNorm {
        let coefficients = self.floats(format!("{layer} coefficients"), 4 * channels);
        let sums = self.floats(format!("{layer} sums"), 2 * channels);
        BatchNorm {
            channels,
            rows: self.config.images * side * side,
            ranks: self.config.statistics_ranks,
            weight: self.weight(layer),
            bias: self.param(&format!("{layer}.bias")),
            running_mean: self.param(&format!("{layer}.running_mean")),
            running_var: self.param(&format!("{layer}.running_var")),
            momentum: self.arch.batch_norm.momentum as f32,
            eps: self.arch.batch_norm.eps as f32,
            statistics: self.config.statistics,
            coefficients,
            sums,
        }
    }
}

impl Network {
    pub fn new(arch: &Architecture, params: &ParamTable, config: NetworkConfig) -> Network {
        let mut build = Builder { tensors: Tensors::default(), params, arch, config };
        let image = build.activation("image".into(), arch.resolution, 3);
        let labels = build.tensors.new_tensor("labels", config.images, Kind::Index);
        let stem = Stem::new(&mut build, image);
        let mut blocks: Vec<MbConv> = Vec::new();
        for block in &arch.blocks {
            let before = blocks.last();
            let made = MbConv::new(&mut build, block, &stem, before);
            blocks.push(made);
        }
        let last = blocks.last().expect("the family's networks have blocks");
        let head = Head::new(&mut build, last);
        let logits = head.logits();
        let losses = build.floats("losses".into(), config.images);
        let loss = Loss {
            images: config.images,
            classes: arch.classes,
            logits,
            labels,
            smoothing: config.label_smoothing as f32,
            scale: 1.0 / config.step_images as f32,
            losses,
            dlogits: head.dlogits(),
        };
        let drop_path = blocks.iter().filter_map(|b| b.mask.map(Mask::DropPath));
        let masks = drop_path.chain(head.mask.map(Mask::Dropout)).collect();
        Network {
            config,
            tensors: build.tensors,
            image,
            labels,
            logits,
            losses,
            masks,
            stem,
            blocks,
            head,
            loss,
        }
    }

    /// Draws the masks of stochastic depth and dropout for the step that the device was told of.
    pub fn draw_masks<O: Ops>(&self, ops: &mut O) -> Result {
        self.masks.iter().try_for_each(|mask| match mask {
            Mask::DropPath(pass) => ops.drop_path_mask(pass),
            Mask::Dropout(pass) => ops.dropout_mask(pass),
        })
    }

    /// Image → logits.
    pub fn forward<O: Ops>(&self, ops: &mut O) -> Result {
        ops.submit(|ops| {
            if self.config.statistics == Statistics::Running {
                self.inference_coefficients(ops)?;
            }
            self.stem.forward(ops)?;
            for block in &self.blocks {
                block.forward(ops)?;
            }
            self.head.forward(ops)
        })
    }

    /// Logits and labels → losses, and the gradient at the logits.
    pub fn loss<O: Ops>(&self, ops: &mut O) -> Result {
        ops.loss(&self.loss)
    }

    /// Adds the gradients of this micro-batch to the gradient buffer.
    pub fn backward<O: Ops>(&self, ops: &mut O) -> Result {
        ops.submit(|ops| {
            self.head.backward(ops)?;
            for block in self.blocks.iter().rev() {
                block.backward(ops)?;
            }
            self.stem.backward(ops)
        })
    }

    fn inference_coefficients<O: Ops>(&self, ops: &mut O) -> Result {
        let blocks = self.blocks.iter().flat_map(MbConv::batch_norms);
        let ends = [self.stem.bn(), self.head.bn()];
        ends.into_iter().chain(blocks).try_for_each(|bn| ops.batch_norm_inference(bn))
    }

    /// The memory plan: of a training step, or of inference.
    pub fn plan<D: Device>(&self, device: &D) -> Plan {
        self.record(device).plan(&self.tensors, &[self.logits, self.losses])
    }

    /// The passes of a training step but for the update, or of inference.
    pub fn record<'a, D: Device>(&self, device: &'a D) -> Recorder<'a, D> {
        let mut recorder = Recorder::new(device);
        let recorded = (|| {
            self.draw_masks(&mut recorder)?;
            self.forward(&mut recorder)?;
            if self.config.statistics == Statistics::Batch {
                self.loss(&mut recorder)?;
                self.backward(&mut recorder)?;
            }
            Result::Ok(())
        })();
        recorded.expect("a recorder does not fail");
        recorder
    }
}

/// How a block's output gradient is completed: the gradient tensor and the batch norm that waits for its sums.
#[derive(Clone, Copy)]
struct Output {
    /// The narrow tensor between two blocks, and its gradient.
    value: Tensor,
    gradient: Tensor,
    previous: PreviousBlock,
}
