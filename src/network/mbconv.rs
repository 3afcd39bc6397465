//! MBConv: expand, depthwise, squeeze-excite, project, shortcut.
//!
//! ```text
//! x ──expand──▶ y1 ──depthwise──▶ y2 ──squeeze──▶ gate
//! │                                └──project (·gate)──▶ y3 ──▶ + ──▶ out
//! └───────────────────────────────────────────────────────────▲
//! ```
//!
//! The first stage does not expand. There the depthwise convolution reads the stem's raw output, with the
//! stem's batch norm and silu applied while loading, or, in the blocks after the first, the block's input.

use super::{Builder, Depth, Itinerary, Layer, Output, Phase, stem::Stem};
use crate::model::Block;
use crate::ops::*;

pub(super) struct MbConv {
    index: usize,
    pub place: Depth,
    /// Stochastic depth, where the block has a shortcut and a rate.
    mask: Option<DropPathMask>,
    /// The narrow output, its gradient, and what completes it.
    pub output: Output,
    expand: Option<(ExpandForward, ExpandBackward)>,
    depthwise: (DepthwiseForward, DepthwiseBackward),
    squeeze: (SqueezeForward, SqueezeBackward),
    project: (ProjectForward, ProjectBackward),
    residual: ResidualForward,
}

/// A block while it is being built: its names and what its passes share.
struct Parts<'a> {
    block: &'a Block,
    /// timm's names of the depthwise and the projection batch norm and of the projection.
    names: [&'static str; 3],
    images: usize,
    dout: Tensor,
    keep: Option<Tensor>,
    y2: Tensor,
    da: Tensor,
    bn2: BatchNorm,
    gate: Tensor,
    squeeze_gradient: Tensor,
    five_sums: Tensor,
    y3: Tensor,
    bn3: BatchNorm,
}

impl MbConv {
    /// `before` is the block before; without one the stem is.
    pub fn new(build: &mut Builder, block: &Block, stem: &Stem, before: Option<&MbConv>) -> MbConv {
        let before = before.map(|b| b.output);
        let out = build.activation(format!("{} out", block.name), block.window.output, block.output);
        let dout = build.activation(format!("{} dout", block.name), block.window.output, block.output);
        let shortcut = before.filter(|_| block.residual());
        let shortcut_gradient = shortcut.map(|_| dout);

        let expand = before.filter(|_| block.expands).map(|x| expand(build, block, x, shortcut_gradient));
        let (a, input) = match (&expand, before) {
            (Some((forward, backward)), _) => {
                (forward.y, DepthwiseInput::Normalised { bn: forward.bn, du: Some(backward.du) })
            }
            // Blocks without an expansion are one stage, so the block before is trained if this one is.
            (None, Some(Output { value, gradient: dx, previous, .. })) => {
                let shortcut = shortcut_gradient;
                (value, DepthwiseInput::Identity(NarrowGradient { dx, shortcut, previous }))
            }
            (None, None) => (stem.forward.y, stem.input(build)),
        };
        let parts = Parts::new(build, block, dout);
        let (images, pixels, keep) = (parts.images, block.window.output_pixels(), parts.keep);
        let (y, bn) = (parts.y3, parts.bn3);
        let (place, rate) = (Depth::Stage(block.stage), drop_path_rate(build, block) as f32);
        let trained = build.config.trains(place);
        MbConv {
            place,
            index: block.index,
            mask: keep.map(|keep| DropPathMask { images, block: block.index as u32, rate, keep }),
            output: Output {
                value: out,
                gradient: dout,
                previous: PreviousBlock { y, bn, keep, pixels },
                trained,
            },
            expand,
            depthwise: parts.depthwise(build, a, input),
            squeeze: parts.squeeze(build),
            project: parts.project(build),
            residual: ResidualForward {
                images,
                pixels,
                channels: block.output,
                y,
                bn,
                keep,
                shortcut: shortcut.map(|x| x.value),
                out,
            },
        }
    }

    pub fn batch_norms(&self) -> impl Iterator<Item = &BatchNorm> {
        let first = self.expand.iter().map(|(forward, _)| &forward.bn);
        first.chain([&self.depthwise.0.bn, &self.project.0.bn])
    }

    pub fn mask(&self, to: &mut Itinerary) {
        if let Some(mask) = self.mask {
            to.push(Phase::Masks, Layer::Block(self.index), mask);
        }
    }

    pub fn forward(&self, to: &mut Itinerary) {
        let layer = Layer::Block(self.index);
        if let Some((expand, _)) = self.expand {
            to.push(Phase::Forward, layer, expand);
        }
        to.push(Phase::Forward, layer, self.depthwise.0);
        to.push(Phase::Forward, layer, self.squeeze.0);
        to.push(Phase::Forward, layer, self.project.0);
        to.push(Phase::Forward, layer, self.residual);
    }

    /// From the gradient at the output (whose sums for the last batch norm are taken) to the gradient at the
    /// input, and the sums that the block before needs.
    pub fn backward(&self, to: &mut Itinerary) {
        let layer = Layer::Block(self.index);
        to.push(Phase::Backward, layer, self.project.1);
        to.push(Phase::Backward, layer, self.squeeze.1);
        to.push(Phase::Backward, layer, self.depthwise.1);
        if let Some((_, expand)) = self.expand {
            to.push(Phase::Backward, layer, expand);
        }
    }
}

/// The rate of stochastic depth: a block that is not trained runs as in evaluation.
fn drop_path_rate(build: &Builder, block: &Block) -> f64 {
    let trained = build.config.trains(Depth::Stage(block.stage));
    if trained { build.arch.drop_path_rate(build.config.drop_path, block) } else { 0.0 }
}

/// The expansion of the block's input; `shortcut` is the gradient that goes round the block.
fn expand(
    build: &mut Builder,
    block: &Block,
    input: Output,
    shortcut: Option<Tensor>,
) -> (ExpandForward, ExpandBackward) {
    let (name, side) = (&block.name, block.window.input);
    let rows = build.config.images * side * side;
    let (inputs, outputs) = (block.input, block.expanded);
    let y = build.activation(format!("{name} y1"), side, outputs);
    let du = build.activation(format!("{name} du1"), side, outputs);
    let bn = build.batch_norm(Depth::Stage(block.stage), &format!("{name}.bn1"), side, outputs);
    let weight = build.weight(&format!("{name}.conv_pw"));
    let x = input.value;
    let forward = ExpandForward { rows, inputs, outputs, x, weight, y, bn };
    let backward =
        ExpandBackward { rows, inputs, outputs, x, weight, y, bn, du, narrow: input.narrow(shortcut) };
    (forward, backward)
}

impl<'a> Parts<'a> {
    fn new(build: &mut Builder, block: &'a Block, dout: Tensor) -> Parts<'a> {
        let names = block.late_names();
        let (name, side, wide, images) =
            (&block.name, block.window.output, block.expanded, build.config.images);
        let (rate, place) = (drop_path_rate(build, block), Depth::Stage(block.stage));
        let keep = (block.residual() && rate > 0.0).then(|| build.floats(format!("{name} keep"), images));
        Parts {
            block,
            names,
            images,
            dout,
            keep,
            y2: build.activation(format!("{name} y2"), side, wide),
            da: build.activation(format!("{name} da"), side, wide),
            bn2: build.batch_norm(place, &format!("{name}.{}", names[0]), side, wide),
            gate: build.floats(format!("{name} gate"), images * wide),
            squeeze_gradient: build.floats(format!("{name} squeeze gradient"), images * wide),
            five_sums: build.floats(format!("{name} five sums"), 5 * images * wide),
            y3: build.activation(format!("{name} y3"), side, block.output),
            bn3: build.batch_norm(place, &format!("{name}.{}", names[1]), side, block.output),
        }
    }

    fn depthwise(
        &self,
        build: &Builder,
        x: Tensor,
        input: DepthwiseInput,
    ) -> (DepthwiseForward, DepthwiseBackward) {
        let weight = build.weight(&format!("{}.conv_dw", self.block.name));
        let (images, window, channels) = (self.images, self.block.window, self.block.expanded);
        let input_bn = match input {
            DepthwiseInput::Normalised { bn, .. } => Some(bn),
            DepthwiseInput::Identity(_) => None,
        };
        let (y, bn, da, gate) = (self.y2, self.bn2, self.da, self.gate);
        let squeeze_gradient = self.squeeze_gradient;
        (
            DepthwiseForward { images, window, channels, x, input_bn, weight, y, bn },
            DepthwiseBackward {
                images,
                window,
                channels,
                x,
                input,
                weight,
                y,
                bn,
                da,
                gate,
                squeeze_gradient,
            },
        )
    }

    fn squeeze(&self, build: &mut Builder) -> (SqueezeForward, SqueezeBackward) {
        let (name, wide, narrow, images) =
            (&self.block.name, self.block.expanded, self.block.squeeze, self.images);
        let pixels = self.block.window.output_pixels();
        let reduce = build.dense(&format!("{name}.se.conv_reduce"), wide, narrow);
        let expand = build.dense(&format!("{name}.se.conv_expand"), narrow, wide);
        let squeezed = build.floats(format!("{name} squeezed"), images * wide);
        let hidden = build.floats(format!("{name} hidden"), images * narrow);
        let (bn, gate, channels) = (self.bn2, self.gate, wide);
        let forward = SqueezeForward {
            images,
            pixels,
            channels,
            y: self.y2,
            bn,
            squeezed,
            reduce,
            hidden,
            expand,
            gate,
        };
        let backward = SqueezeBackward {
            images,
            pixels,
            channels,
            bn,
            squeezed,
            reduce,
            hidden,
            expand,
            gate,
            five_sums: self.five_sums,
            squeeze_gradient: self.squeeze_gradient,
        };
        (forward, backward)
    }

    fn project(&self, build: &Builder) -> (ProjectForward, ProjectBackward) {
        let weight = build.weight(&format!("{}.{}", self.block.name, self.names[2]));
        let (images, pixels) = (self.images, self.block.window.output_pixels());
        let (inputs, outputs) = (self.block.expanded, self.block.output);
        let (x, input_bn, gate, y, bn) = (self.y2, self.bn2, self.gate, self.y3, self.bn3);
        let forward = ProjectForward { images, pixels, inputs, outputs, x, input_bn, gate, weight, y, bn };
        let backward = ProjectBackward {
            images,
            pixels,
            inputs,
            outputs,
            x,
            input_bn,
            gate,
            weight,
            y,
            bn,
            dout: self.dout,
            keep: self.keep,
            da: self.da,
            five_sums: self.five_sums,
        };
        (forward, backward)
    }
}
