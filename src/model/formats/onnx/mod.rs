//! ONNX: a network that other programs run as it stands, with weights and operators in one file.
//!
//! Every batch norm is folded into the convolution before it (scale γ/√(σ² + ε) on the weights, β - μ·scale as the bias,
//! computed in double precision), so that the graph has seven operators, all of ONNX's standard set 17: Conv, Sigmoid, Mul
//! (SiLU is x·sigmoid(x)), GlobalAveragePool, Add, Flatten and Gemm. The batch is free; the side of the images is that of
//! the training, because TensorFlow's padding depends on it.
//!
//! The input is either
//! - `images`, float [N, 3, side, side], normalised: (byte / 255 - mean) / deviation; or
//! - `images`, uint8 [N, side, side, 3], as decoders give them: Cast, Transpose, Mul and Add normalise inside.
//!
//! The output is `logits`, float [N, classes]. What an image needs before, and the names of the classes, are the
//! [`Note`] in the metadata, as in files of weights.
//!
//! Operators and attributes: ONNX's `Operators.md`.

pub mod proto;

use std::io::{self, Write};

use prost::Message;
use proto::{
    Attribute, Dimension, Extent, Graph, Model, Node, OperatorSet, Property, Shape, Tensor, TensorType, Type,
    ValueInfo,
};

use super::TrainedModel;
use super::convention::{Note, Scale};
use crate::model::architecture::{Block, Window};
use crate::model::params::{Entry, ParamTable};

/// Of ONNX's standard operators.
pub const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

/// What the graph takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Float [N, 3, side, side], normalised.
    Normalised,
    /// Uint8 [N, side, side, 3].
    Bytes,
}

/// Writes a model. Equal weights give equal bytes.
///
/// # Errors
/// The writer's.
pub fn write(out: &mut impl Write, model: &TrainedModel, input: Input) -> io::Result<()> {
    let note = serde_json::to_string(&model.note())?;
    let net = model.architecture;
    let file = Model {
        ir_version: IR_VERSION,
        producer_name: "effnet".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: format!("EfficientNet-{}, {} classes", net.variant.name().to_uppercase(), net.classes),
        graph: Some(Builder::new(model).graph(input)),
        opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: vec![Property { key: Note::KEY.into(), value: note }],
    };
    out.write_all(&file.encode_to_vec())
}

/// A graph that grows from its input to its output. Every function appends nodes and returns the name of the last one's
/// output.
struct Builder<'a> {
    model: &'a TrainedModel<'a>,
    table: ParamTable,
    nodes: Vec<Node>,
    initializers: Vec<Tensor>,
}

impl<'a> Builder<'a> {
    fn new(model: &'a TrainedModel<'a>) -> Self {
        let table = ParamTable::new(model.architecture);
        Builder { model, table, nodes: Vec::new(), initializers: Vec::new() }
    }

    fn graph(mut self, input: Input) -> Graph {
        let net = self.model.architecture;
        let images = match input {
            Input::Normalised => "images".to_string(),
            Input::Bytes => self.normalise("images", self.model.scale),
        };
        let mut x = self.convolution(&images, "conv_stem", Some("bn1"), (net.stem, 1));
        x = self.silu(&x);
        for block in &net.blocks {
            x = self.block(&x, block);
        }
        let last = Window { kernel: 1, stride: 1, input: net.final_side(), output: net.final_side(), pad: 0 };
        x = self.convolution(&x, "conv_head", Some("bn2"), (last, 1));
        x = self.silu(&x);
        x = self.node("GlobalAveragePool", &[&x], "pool", vec![]);
        x = self.node("Flatten", &[&x], "flatten", vec![int("axis", 1)]);
        let [weight, bias] = ["classifier.weight", "classifier.bias"];
        for name in [weight, bias] {
            let entry = self.entry(name);
            self.tensor(name, &entry.shape, self.model.values[entry.range()].to_vec());
        }
        self.nodes.push(Node {
            input: vec![x, weight.into(), bias.into()],
            output: vec!["logits".into()],
            name: "classifier".into(),
            op_type: "Gemm".into(),
            attribute: vec![int("transB", 1)],
        });
        let side = net.resolution as i64;
        let images = match input {
            Input::Normalised => value("images", proto::FLOAT, &[3, side, side]),
            Input::Bytes => value("images", proto::UINT8, &[side, side, 3]),
        };
        Graph {
            node: self.nodes,
            name: format!("efficientnet_{}", net.variant.name()),
            initializer: self.initializers,
            input: vec![images],
            output: vec![value("logits", proto::FLOAT, &[net.classes as i64])],
        }
    }

    fn block(&mut self, x: &str, block: &Block) -> String {
        let name = &block.name;
        let [depthwise_norm, project_norm, project] = block.late_names();
        let norm = |norm: &str| format!("{name}.{norm}");
        let narrow = |side| Window { kernel: 1, stride: 1, input: side, output: side, pad: 0 };
        let mut wide = x.to_string();
        if block.expands {
            let at = (narrow(block.window.input), 1);
            wide = self.convolution(x, &format!("{name}.conv_pw"), Some(&norm("bn1")), at);
            wide = self.silu(&wide);
        }
        let at = (block.window, block.expanded);
        wide = self.convolution(&wide, &format!("{name}.conv_dw"), Some(&norm(depthwise_norm)), at);
        wide = self.silu(&wide);
        let mut gate = self.node("GlobalAveragePool", &[&wide], &format!("{name}.se.pool"), vec![]);
        gate = self.convolution(&gate, &format!("{name}.se.conv_reduce"), None, (narrow(1), 1));
        gate = self.silu(&gate);
        gate = self.convolution(&gate, &format!("{name}.se.conv_expand"), None, (narrow(1), 1));
        gate = self.node("Sigmoid", &[&gate], &format!("{name}.se.gate"), vec![]);
        wide = self.node("Mul", &[&wide, &gate], &format!("{name}.se"), vec![]);
        let at = (narrow(block.window.output), 1);
        let out = self.convolution(&wide, &format!("{name}.{project}"), Some(&norm(project_norm)), at);
        if block.residual() { self.node("Add", &[&out, x], &format!("{name}.residual"), vec![]) } else { out }
    }

    /// Bytes to normalised numbers: x·1/(255·deviation) - mean/deviation.
    fn normalise(&mut self, x: &str, scale: Scale) -> String {
        let Scale { mean, deviation } = scale;
        let factors: Vec<f32> = deviation.iter().map(|&d| (1.0 / (255.0 * f64::from(d))) as f32).collect();
        let shifts: Vec<f32> =
            mean.iter().zip(&deviation).map(|(&m, &d)| (-f64::from(m) / f64::from(d)) as f32).collect();
        self.tensor("normalise.factor", &[1, 3, 1, 1], factors);
        self.tensor("normalise.shift", &[1, 3, 1, 1], shifts);
        let x = self.node("Cast", &[x], "normalise.cast", vec![int("to", i64::from(proto::FLOAT))]);
        let x = self.node("Transpose", &[&x], "normalise.planes", vec![ints("perm", &[0, 3, 1, 2])]);
        let x = self.node("Mul", &[&x, "normalise.factor"], "normalise.scaled", vec![]);
        self.node("Add", &[&x, "normalise.shift"], "normalise", vec![])
    }

    /// A convolution, with the batch norm after it folded in, or with its own bias.
    fn convolution(&mut self, x: &str, name: &str, norm: Option<&str>, at: (Window, usize)) -> String {
        let (window, groups) = at;
        let entry = self.entry(&format!("{name}.weight"));
        let mut weights = self.model.values[entry.range()].to_vec();
        let bias = match norm {
            Some(norm) => self.fold(norm, &mut weights),
            None => self.model.values[self.entry(&format!("{name}.bias")).range()].to_vec(),
        };
        let [weight_name, bias_name] = ["weight", "bias"].map(|word| format!("{name}.{word}"));
        self.tensor(&weight_name, &entry.shape, weights);
        self.tensor(&bias_name, &[bias.len()], bias);
        let Window { kernel, stride, pad, .. } = window;
        // What the last window needs behind the image. PyTorch's symmetric padding may have more, which no window reaches.
        let behind = ((window.output - 1) * stride + kernel).saturating_sub(window.input + pad);
        let [kernel, stride, before, behind] = [kernel, stride, pad, behind].map(|size| size as i64);
        let attributes = vec![
            ints("kernel_shape", &[kernel, kernel]),
            ints("strides", &[stride, stride]),
            ints("pads", &[before, before, behind, behind]),
            int("group", groups as i64),
        ];
        self.node("Conv", &[x, &weight_name, &bias_name], name, attributes)
    }

    /// Multiplies a convolution's weights by the scale of a batch norm, and returns the shift.
    fn fold(&self, norm: &str, weights: &mut [f32]) -> Vec<f32> {
        let of = |word: &str| &self.model.values[self.entry(&format!("{norm}.{word}")).range()];
        let [gamma, beta, mean, variance] = ["weight", "bias", "running_mean", "running_var"].map(of);
        let eps = self.model.architecture.batch_norm.eps;
        let each = weights.len() / gamma.len();
        let mut shifts = Vec::with_capacity(gamma.len());
        for (channel, weights) in weights.chunks_exact_mut(each).enumerate() {
            let scale = f64::from(gamma[channel]) / (f64::from(variance[channel]) + eps).sqrt();
            weights.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * scale) as f32);
            shifts.push((f64::from(beta[channel]) - f64::from(mean[channel]) * scale) as f32);
        }
        shifts
    }

    fn silu(&mut self, x: &str) -> String {
        let gate = self.node("Sigmoid", &[x], &format!("{x}.sigmoid"), vec![]);
        self.node("Mul", &[x, &gate], &format!("{x}.silu"), vec![])
    }

    /// Appends a node, whose output has its name.
    fn node(&mut self, operator: &str, inputs: &[&str], name: &str, attribute: Vec<Attribute>) -> String {
        self.nodes.push(Node {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![name.into()],
            name: name.into(),
            op_type: operator.into(),
            attribute,
        });
        name.into()
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.initializers.push(Tensor {
            dims: shape.iter().map(|&size| size as i64).collect(),
            data_type: proto::FLOAT,
            name: name.into(),
            raw_data: bytemuck::cast_slice(&values).to_vec(),
        });
    }

    fn entry(&self, name: &str) -> Entry {
        self.table.get(name).cloned().expect("the table has every tensor of its network")
    }
}

/// An input or output of the graph: its first size is the batch, which is free.
fn value(name: &str, element: i32, shape: &[i64]) -> ValueInfo {
    let batch = Dimension { extent: Some(Extent::Name("N".into())) };
    let others = shape.iter().map(|&size| Dimension { extent: Some(Extent::Value(size)) });
    let shape = Shape { dim: std::iter::once(batch).chain(others).collect() };
    let tensor_type = Some(TensorType { elem_type: element, shape: Some(shape) });
    ValueInfo { name: name.into(), r#type: Some(Type { tensor_type }) }
}

fn int(name: &str, value: i64) -> Attribute {
    Attribute { name: name.into(), i: Some(value), ints: vec![], kind: proto::INT }
}

fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute { name: name.into(), i: None, ints: values.to_vec(), kind: proto::INTS }
}

#[cfg(test)]
mod tests;
