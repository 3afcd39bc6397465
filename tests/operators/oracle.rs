//! Tests the oracle itself: the gradients of a small network of its passes are compared with central differences of its
//! loss. A formula that is wrong in both the oracle and the fast passes passes every comparison between the two, but
//! not this one.
//!
//! The chain contains every kind of block: stem; a first-stage block on the stem's batch norm; a
//! first-stage block with identity input, shortcut and dropped images; an expanding block with stride two and
//! TensorFlow's padding; an expanding block with shortcut and dropped images; head with dropout.

use crate::common::formula::Formula;
use crate::common::reference::Reference;
use effnet::model::{Padding, Window};
use effnet::ops::*;

const IMAGES: usize = 3;
const CLASSES: usize = 4;

/// Hands out tensors and parameters of the chain.
#[derive(Default)]
struct Builder {
    tensors: Tensors,
    values: Vec<f32>,
    names: Vec<(String, Param)>,
}

impl Builder {
    fn tensor(&mut self, elements: usize) -> Tensor {
        self.tensors.new_tensor("", elements, Kind::Float)
    }

    fn param(&mut self, name: &str, elements: usize, low: f64, high: f64) -> Param {
        let param = Param { offset: self.values.len(), elements };
        self.values.extend(Formula::of(name).values(elements, low, high));
        self.names.push((name.to_string(), param));
        param
    }

    fn weight(&mut self, name: &str, elements: usize, fan: usize) -> Param {
        let bound = (3.0 / fan as f64).sqrt();
        self.param(name, elements, -bound, bound)
    }

    fn norm(&mut self, name: &str, channels: usize, rows: usize) -> BatchNorm {
        BatchNorm {
            channels,
            ranks: 1,
            rows,
            weight: self.param(&format!("{name}.weight"), channels, 0.5, 1.5),
            bias: self.param(&format!("{name}.bias"), channels, -0.5, 0.5),
            running_mean: self.param(&format!("{name}.running_mean"), channels, 0.0, 0.0),
            running_var: self.param(&format!("{name}.running_var"), channels, 1.0, 1.0),
            momentum: 0.1,
            eps: 1e-3,
            statistics: Statistics::Batch,
            coefficients: self.tensor(4 * channels),
            sums: self.tensor(2 * channels),
        }
    }

    fn dense(&mut self, name: &str, inputs: usize, outputs: usize) -> Dense {
        Dense {
            weight: self.weight(&format!("{name}.weight"), inputs * outputs, inputs),
            bias: self.param(&format!("{name}.bias"), outputs, -0.5, 0.5),
            inputs,
            outputs,
        }
    }

    fn keep(&mut self, masks: &mut Vec<(Tensor, Vec<f64>)>, factors: [f64; IMAGES]) -> Tensor {
        let keep = self.tensor(IMAGES);
        masks.push((keep, factors.to_vec()));
        keep
    }

    /// Depthwise, squeeze, project, residual.
    fn block(&mut self, name: &str, ends: BlockEnds, window: Window, outputs: usize) -> Block {
        let (channels, pixels) = (ends.channels, window.output_pixels());
        let (rows, squeeze) = (IMAGES * pixels, 2);
        let weight = self.weight(&format!("{name}.conv_dw"), channels * window.kernel.pow(2), 9);
        let bn = self.norm(&format!("{name}.bn2"), channels, rows);
        let y = self.tensor(rows * channels);
        let depthwise = DepthwiseForward {
            images: IMAGES,
            window,
            channels,
            x: ends.x,
            input_bn: ends.input_bn,
            weight,
            y,
            bn,
        };
        let squeeze = SqueezeForward {
            images: IMAGES,
            pixels,
            channels,
            y,
            bn,
            squeezed: self.tensor(IMAGES * channels),
            reduce: self.dense(&format!("{name}.reduce"), channels, squeeze),
            hidden: self.tensor(IMAGES * squeeze),
            expand: self.dense(&format!("{name}.expand"), squeeze, channels),
            gate: self.tensor(IMAGES * channels),
        };
        let project = ProjectForward {
            images: IMAGES,
            pixels,
            inputs: channels,
            outputs,
            x: y,
            input_bn: bn,
            gate: squeeze.gate,
            weight: self.weight(&format!("{name}.project"), channels * outputs, channels),
            y: self.tensor(rows * outputs),
            bn: self.norm(&format!("{name}.bn3"), outputs, rows),
        };
        let out = self.tensor(rows * outputs);
        let residual = ResidualForward {
            images: IMAGES,
            pixels,
            channels: outputs,
            y: project.y,
            bn: project.bn,
            keep: ends.keep,
            shortcut: ends.shortcut,
            out,
        };
        Block { depthwise, squeeze, project, residual }
    }

    fn expand(&mut self, name: &str, x: Tensor, rows: usize, inputs: usize, outputs: usize) -> ExpandForward {
        ExpandForward {
            rows,
            inputs,
            outputs,
            x,
            weight: self.weight(&format!("{name}.expand"), inputs * outputs, inputs),
            y: self.tensor(rows * outputs),
            bn: self.norm(&format!("{name}.bn1"), outputs, rows),
        }
    }
}

struct BlockEnds {
    channels: usize,
    x: Tensor,
    input_bn: Option<BatchNorm>,
    keep: Option<Tensor>,
    shortcut: Option<Tensor>,
}

#[derive(Clone, Copy)]
struct Block {
    depthwise: DepthwiseForward,
    squeeze: SqueezeForward,
    project: ProjectForward,
    residual: ResidualForward,
}

impl Block {
    fn forward(&self, ops: &mut Reference) -> Result {
        ops.run(&self.depthwise.into())?;
        ops.run(&self.squeeze.into())?;
        ops.run(&self.project.into())?;
        ops.run(&self.residual.into())
    }

    /// As the next block sees this one.
    fn previous(&self) -> PreviousBlock {
        let Block { project, residual, .. } = self;
        PreviousBlock { y: project.y, bn: project.bn, keep: residual.keep, pixels: residual.pixels }
    }

    fn backward(
        &self,
        ops: &mut Reference,
        b: &mut Builder,
        dout: Tensor,
        input: DepthwiseInput,
    ) -> Result<Tensor> {
        let Block { depthwise: d, squeeze: s, project: p, residual } = self;
        let da = b.tensor(d.y.elements);
        let five_sums = b.tensor(5 * IMAGES * d.channels);
        let squeeze_gradient = b.tensor(IMAGES * d.channels);
        ops.run(
            &ProjectBackward {
                images: p.images,
                pixels: p.pixels,
                inputs: p.inputs,
                outputs: p.outputs,
                x: p.x,
                input_bn: p.input_bn,
                gate: p.gate,
                weight: p.weight,
                y: p.y,
                bn: p.bn,
                dout,
                keep: residual.keep,
                da,
                five_sums,
            }
            .into(),
        )?;
        ops.run(
            &SqueezeBackward {
                images: s.images,
                pixels: s.pixels,
                channels: s.channels,
                bn: s.bn,
                squeezed: s.squeezed,
                reduce: s.reduce,
                hidden: s.hidden,
                expand: s.expand,
                gate: s.gate,
                five_sums,
                squeeze_gradient,
            }
            .into(),
        )?;
        let dx = b.tensor(d.x.elements);
        ops.run(
            &DepthwiseBackward {
                images: d.images,
                window: d.window,
                channels: d.channels,
                x: d.x,
                input,
                weight: d.weight,
                y: d.y,
                bn: d.bn,
                da,
                gate: s.gate,
                squeeze_gradient,
                dx,
            }
            .into(),
        )?;
        Ok(dx)
    }
}

/// The whole chain.
struct Chain {
    builder: Builder,
    /// Image and masks.
    inputs: Vec<(Tensor, Vec<f64>)>,
    stem: StemForward,
    a: Block,
    b: Block,
    c_expand: ExpandForward,
    c: Block,
    d_expand: ExpandForward,
    d: Block,
    head_expand: ExpandForward,
    head: HeadForward,
    loss: Loss,
}

impl Chain {
    fn new() -> Chain {
        let b = &mut Builder::default();
        let mut inputs = Vec::new();
        let stem_window = Window::new(3, 2, 9, Padding::Symmetric);
        let image = b.tensor(IMAGES * stem_window.input_pixels() * 3);
        let pixels = Formula::of("image").values(image.elements, -1.0, 1.0);
        inputs.push((image, pixels.into_iter().map(f64::from).collect()));
        let (side, rows) = (stem_window.output, IMAGES * stem_window.output_pixels());
        let stem = StemForward {
            images: IMAGES,
            window: stem_window,
            channels: 5,
            image,
            weight: b.weight("stem", 5 * 27, 27),
            y: b.tensor(rows * 5),
            bn: b.norm("stem.bn", 5, rows),
        };
        let same = |kernel, stride, side| Window::new(kernel, stride, side, Padding::Same);
        let first = BlockEnds { channels: 5, x: stem.y, input_bn: Some(stem.bn), keep: None, shortcut: None };
        let block_a = b.block("a", first, Window::new(3, 1, side, Padding::Symmetric), 3);

        let x = block_a.residual.out;
        let keep = Some(b.keep(&mut inputs, [1.25, 0.0, 1.25]));
        let second = BlockEnds { channels: 3, x, input_bn: None, keep, shortcut: Some(x) };
        let block_b = b.block("b", second, same(3, 1, side), 3);

        let c_expand = b.expand("c", block_b.residual.out, rows, 3, 6);
        let ends =
            BlockEnds { channels: 6, x: c_expand.y, input_bn: Some(c_expand.bn), keep: None, shortcut: None };
        let window = same(5, 2, side);
        let block_c = b.block("c", ends, window, 4);

        let (side, rows) = (window.output, IMAGES * window.output_pixels());
        let x = block_c.residual.out;
        let d_expand = b.expand("d", x, rows, 4, 8);
        let keep = Some(b.keep(&mut inputs, [0.0, 2.0, 2.0]));
        let ends =
            BlockEnds { channels: 8, x: d_expand.y, input_bn: Some(d_expand.bn), keep, shortcut: Some(x) };
        let block_d = b.block("d", ends, same(3, 1, side), 4);

        let head_expand = b.expand("head", block_d.residual.out, rows, 4, 6);
        let dropout = b.tensor(IMAGES * 6);
        inputs.push((dropout, (0..IMAGES * 6).map(|i| if i % 5 == 3 { 0.0 } else { 1.25 }).collect()));
        let head = HeadForward {
            images: IMAGES,
            pixels: side * side,
            channels: 6,
            classes: CLASSES,
            y: head_expand.y,
            bn: head_expand.bn,
            pooled: b.tensor(IMAGES * 6),
            dropout: Some(dropout),
            classifier: b.dense("classifier", 6, CLASSES),
            logits: b.tensor(IMAGES * CLASSES),
        };
        let loss = Loss {
            images: IMAGES,
            classes: CLASSES,
            logits: head.logits,
            labels: b.tensors.new_tensor("", IMAGES, Kind::Index),
            smoothing: 0.1,
            scale: 0.25,
            losses: b.tensor(IMAGES),
            dlogits: b.tensor(IMAGES * CLASSES),
        };
        Chain {
            builder: std::mem::take(b),
            inputs,
            stem,
            a: block_a,
            b: block_b,
            c_expand,
            c: block_c,
            d_expand,
            d: block_d,
            head_expand,
            head,
            loss,
        }
    }

    fn reference(&self) -> Reference {
        let values = &self.builder.values;
        let mut ops = Reference::new(values.len(), values.len());
        ops.write_state(Buffer::Parameters, values).unwrap();
        self.inputs.iter().for_each(|(tensor, values)| ops.put(*tensor, values.clone()));
        ops.upload_labels(self.loss.labels, &[2, 0, 3]).unwrap();
        ops
    }

    /// The loss, scaled as its gradient is.
    fn forward(&self, ops: &mut Reference) -> f64 {
        let mut run = || -> Result {
            ops.run(&self.stem.into())?;
            self.a.forward(ops)?;
            self.b.forward(ops)?;
            ops.run(&self.c_expand.into())?;
            self.c.forward(ops)?;
            ops.run(&self.d_expand.into())?;
            self.d.forward(ops)?;
            ops.run(&self.head_expand.into())?;
            ops.run(&self.head.into())?;
            ops.run(&self.loss.into())
        };
        run().unwrap();
        ops.get(self.loss.losses).iter().sum::<f64>() * self.loss.scale as f64
    }

    fn backward(&mut self, ops: &mut Reference) -> Result {
        let builder = &mut self.builder;
        let head = &self.head;
        let du = builder.tensor(head.y.elements);
        ops.run(
            &HeadBackward {
                images: head.images,
                pixels: head.pixels,
                channels: head.channels,
                classes: head.classes,
                y: head.y,
                bn: head.bn,
                pooled: head.pooled,
                dropout: head.dropout,
                classifier: head.classifier,
                dlogits: self.loss.dlogits,
                du,
            }
            .into(),
        )?;
        let dout = expand_backward(ops, builder, &self.head_expand, du, None, &self.d)?;
        let normalised = |e: &ExpandForward| DepthwiseInput::Normalised(e.bn);
        let du = self.d.backward(ops, builder, dout, normalised(&self.d_expand))?;
        let dout = expand_backward(ops, builder, &self.d_expand, du, Some(dout), &self.c)?;
        let du = self.c.backward(ops, builder, dout, normalised(&self.c_expand))?;
        let dout = expand_backward(ops, builder, &self.c_expand, du, None, &self.b)?;
        let identity = DepthwiseInput::Identity { shortcut: Some(dout), previous: self.a.previous() };
        let dout = self.b.backward(ops, builder, dout, identity)?;
        let du = self.a.backward(ops, builder, dout, DepthwiseInput::Normalised(self.stem.bn))?;
        let StemForward { images, window, channels, image, weight, y, bn } = self.stem;
        ops.run(&StemBackward { images, window, channels, image, weight, y, bn, du }.into())
    }
}

fn expand_backward(
    ops: &mut Reference,
    b: &mut Builder,
    e: &ExpandForward,
    du: Tensor,
    shortcut: Option<Tensor>,
    previous: &Block,
) -> Result<Tensor> {
    let dx = b.tensor(e.x.elements);
    ops.run(
        &ExpandBackward {
            rows: e.rows,
            inputs: e.inputs,
            outputs: e.outputs,
            x: e.x,
            weight: e.weight,
            y: e.y,
            bn: e.bn,
            du,
            dx,
            shortcut,
            previous: previous.previous(),
        }
        .into(),
    )?;
    Ok(dx)
}

/// The error of central differences is h²/6 of the third derivative plus the rounding of the loss over h: at h = 1e-5
/// both are near 1e-10, and the gradients here are near 0.1.
#[test]
fn gradients_are_those_of_central_differences() {
    let mut chain = Chain::new();
    let mut ops = chain.reference();
    chain.forward(&mut ops);
    chain.backward(&mut ops).unwrap();
    let analytic = ops.gradients.clone();
    let h = 1e-5;
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let whole = norm(&analytic);
    let mut ops = chain.reference();
    for (name, param) in &chain.builder.names {
        let mut difference = Vec::new();
        for i in param.range() {
            let at_rest = ops.parameters[i];
            let mut loss_at = |value: f64| {
                ops.parameters[i] = value;
                chain.forward(&mut ops)
            };
            difference.push((loss_at(at_rest + h) - loss_at(at_rest - h)) / (2.0 * h));
            ops.parameters[i] = at_rest;
        }
        let analytic = &analytic[param.range()];
        let error: Vec<f64> = difference.iter().zip(analytic).map(|(d, a)| d - a).collect();
        // A bias that the next batch norm removes has no gradient: its error is compared with all gradients.
        let bound = (1e-6 * norm(analytic)).max(1e-9 * whole);
        assert!(norm(&error) <= bound, "{name}: error {:e}, bound {bound:e}", norm(&error));
        if name.contains("running") {
            assert_eq!(norm(analytic), 0.0, "{name} is not trained");
        } else if !name.ends_with("bn3.bias") {
            assert!(norm(analytic) > 1e-4 * whole, "{name} has no gradient: the chain is cut");
        }
    }
}
