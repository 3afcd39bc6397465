//! The network, as the paper draws it: a stem, MBConv blocks, a head; forward and backward side by side.
//!
//! A [`Network`] holds no numbers and runs nothing: it records the descriptions of the passes to run, in which tensors
//! are handles, as an [`Itinerary`]. The memory plan follows from that list, and who trains or evaluates runs it.
//!
//! Backward runs the blocks in reverse. What passes between two blocks is the gradient at the narrow tensor
//! between them, and the two sums that the earlier block's last batch norm needs, which the later block's
//! backward takes while it writes that gradient. Where training begins at a later [`Depth`], the way back ends there: no
//! pass makes the gradient at the input of the first trained layer, and the layers before it run as in evaluation.

pub mod class_map;
pub mod depth;
mod head;
pub mod inference;
pub mod itinerary;
mod mbconv;
pub mod rewrite;
mod stem;

use crate::model::{Architecture, ParamTable};
use crate::ops::{
    BatchNorm, BatchNormInference, Dense, Device, Kind, LabelForm, Loss, NarrowGradient, Param, Plan,
    PreviousBlock, Statistics, Tensor, Tensors,
};
pub use class_map::Features;
pub use depth::Depth;
use head::Head;
pub use inference::Inference;
pub use itinerary::{Entry, Itinerary, Layer, Phase};
use mbconv::MbConv;
use stem::Stem;

/// How a network is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Images of one forward pass: the micro-batch.
    pub images: usize,
    /// The first place that is trained, with all after it: the way back ends there. None to evaluate.
    pub trained_from: Option<Depth>,
    /// The statistics of what is trained: the batch's, or running ones, which do not move.
    pub statistics: Statistics,
    /// Ranks whose micro-batches share their statistics; 1 keeps each to its own.
    pub statistics_ranks: usize,
    /// Stochastic depth of the last block, were there one more; 0 is off.
    pub drop_path: f64,
    /// Dropout before the classifier; 0 is off.
    pub dropout: f64,
    pub label_smoothing: f64,
    /// What the loss is told of the labels.
    pub labels: LabelForm,
    /// Images of the whole optimiser step, over which the loss is averaged.
    pub step_images: usize,
}

impl NetworkConfig {
    /// Evaluation of `images` at a time.
    pub fn inference(images: usize) -> NetworkConfig {
        NetworkConfig {
            images,
            trained_from: None,
            statistics: Statistics::Running,
            statistics_ranks: 1,
            drop_path: 0.0,
            dropout: 0.0,
            label_smoothing: 0.0,
            labels: LabelForm::PLAIN,
            step_images: images,
        }
    }
}

/// All passes of one network over one micro-batch.
pub struct Network {
    pub config: NetworkConfig,
    pub tensors: Tensors,
    /// [N, R, R, 3].
    pub image: Tensor,
    /// u32, as the configuration says.
    pub labels: Tensor,
    /// [N, classes].
    pub logits: Tensor,
    /// [N].
    pub losses: Tensor,
    /// timm's names of the blocks, by index.
    pub blocks: Vec<String>,
    /// The passes, before any rewrite: those of a training step but for the update, or of inference.
    pub recorded: Itinerary,
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

    fn batch_norm(&mut self, place: Depth, layer: &str, side: usize, channels: usize) -> BatchNorm {
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
            statistics: self.config.statistics_at(place),
            coefficients,
            sums,
        }
    }
}

impl Network {
    pub fn new(arch: &Architecture, params: &ParamTable, config: NetworkConfig) -> Network {
        let mut build = Builder { tensors: Tensors::default(), params, arch, config };
        let image = build.activation("image".into(), arch.resolution, 3);
        let words = config.labels.words(config.images, arch.classes);
        let labels = build.tensors.new_tensor("labels", words, Kind::Index);
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
            form: config.labels,
            smoothing: config.label_smoothing as f32,
            scale: 1.0 / config.step_images as f32,
            losses,
            dlogits: head.dlogits(),
        };
        let recorded = record(config, &Parts { stem, blocks, head, loss });
        let blocks = arch.blocks.iter().map(|block| block.name.clone()).collect();
        Network { config, tensors: build.tensors, image, labels, logits, losses, blocks, recorded }
    }

    /// The passes as this device runs them.
    pub fn itinerary(&self, device: &impl Device) -> Itinerary {
        rewrite::apply::apply(rewrite::recompute::recompute(&self.recorded, device), device)
    }

    /// The memory plan: of a training step, or of inference.
    pub fn plan(&self, device: &impl Device) -> Plan {
        self.itinerary(device).plan(device, &self.tensors, &[self.logits, self.losses])
    }
}

/// What a network is made of.
struct Parts {
    stem: Stem,
    blocks: Vec<MbConv>,
    head: Head,
    loss: Loss,
}

/// Writes the passes down: the step forward, and to train also the loss and the way back, as far as layers are trained.
fn record(config: NetworkConfig, parts: &Parts) -> Itinerary {
    let Parts { stem, blocks, head, loss } = parts;
    let mut to = Itinerary::default();
    blocks.iter().for_each(|block| block.mask(&mut to));
    head.mask(&mut to);
    let inner = blocks.iter().flat_map(MbConv::batch_norms);
    let norms = [stem.bn(), head.bn()].into_iter().chain(inner);
    for bn in norms.filter(|bn| bn.statistics == Statistics::Running) {
        to.push(Phase::Forward, None, BatchNormInference { bn: *bn });
    }
    stem.forward(&mut to);
    blocks.iter().for_each(|block| block.forward(&mut to));
    head.forward(&mut to);
    if config.trained_from.is_some() {
        to.push(Phase::Loss, None, *loss);
        head.backward(&mut to);
        let trained = blocks.iter().rev().filter(|block| config.trains(block.place));
        trained.for_each(|block| block.backward(&mut to));
        if config.trains(Depth::Stem) {
            stem.backward(&mut to);
        }
    }
    to
}

/// How a block's output gradient is completed: the gradient tensor and the batch norm that waits for its sums.
#[derive(Clone, Copy)]
struct Output {
    /// The narrow tensor between two blocks, and its gradient.
    value: Tensor,
    gradient: Tensor,
    previous: PreviousBlock,
    /// Whether the block is trained, so that its output needs a gradient.
    trained: bool,
}

impl Output {
    /// What the next block makes at this output, with the gradient that goes round that block.
    fn narrow(self, shortcut: Option<Tensor>) -> Option<NarrowGradient> {
        let Output { gradient: dx, previous, trained, .. } = self;
        trained.then_some(NarrowGradient { dx, shortcut, previous })
    }
}
