//! The exported ONNX graph against the logits that timm computed in float64.
//!
//! A naive interpreter in f64 runs the file: it knows the definitions of ONNX's operators, and nothing of EfficientNets or
//! of this program's passes. So a batch norm that is folded wrongly, a pad on the wrong side or two swapped inputs differ
//! from timm's values. The same is done with one tensor of the graph after the other set to zero, which must be noticed.

use std::collections::HashMap;

use effnet::model::formats::TrainedModel;
use effnet::model::formats::convention::Scale;
use effnet::model::formats::onnx::proto::{Extent, Graph, Model, Node};
use effnet::model::formats::onnx::{Input, write};
use effnet::model::{Architecture, ParamTable};
use effnet::ops::cpu::CpuOps;
use prost::Message;

use crate::common::fixture::relative_error;
use crate::common::golden::{Bounds, Golden};
use crate::golden::Trial;

/// A tensor in row-major order.
#[derive(Clone, Debug)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Array {
    /// The value at a place, where sizes of 1 stand for any.
    fn broadcast(&self, place: &[usize]) -> f64 {
        let at = place
            .iter()
            .zip(&self.shape)
            .fold(0, |at, (&p, &size)| at * size + if size == 1 { 0 } else { p });
        self.values[at]
    }
}

/// All places of a shape, in order.
fn places(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    (0..shape.iter().product()).map(|mut at: usize| {
        let mut place = vec![0; shape.len()];
        for (axis, size) in shape.iter().enumerate().rev() {
            place[axis] = at % size;
            at /= size;
        }
        place
    })
}

fn ints<'a>(node: &'a Node, name: &str) -> &'a [i64] {
    &node.attribute.iter().find(|a| a.name == name).unwrap_or_else(|| panic!("{}: {name}", node.name)).ints
}

fn int(node: &Node, name: &str) -> i64 {
    node.attribute
        .iter()
        .find(|a| a.name == name)
        .and_then(|a| a.i)
        .unwrap_or_else(|| panic!("{}: {name}", node.name))
}

/// Conv by its definition in ONNX's Operators.md.
fn convolution(node: &Node, x: &Array, weights: &Array, bias: &Array) -> Array {
    let [n, channels, height, width] = x.shape[..] else { panic!("{:?}", x.shape) };
    let [outputs, of_group, k, l] = weights.shape[..] else { panic!("{:?}", weights.shape) };
    let groups = int(node, "group") as usize;
    assert_eq!((ints(node, "kernel_shape"), channels / groups), (&[k as i64, l as i64][..], of_group));
    let [top, left, bottom, right] = ints(node, "pads").iter().map(|&p| p as usize).collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", node.attribute)
    };
    let stride = ints(node, "strides")[0] as usize;
    let rows = (height + top + bottom - k) / stride + 1;
    let columns = (width + left + right - l) / stride + 1;
    let mut values = vec![0.0; n * outputs * rows * columns];
    for (at, value) in values.iter_mut().enumerate() {
        let (column, row) = (at % columns, at / columns % rows);
        let (output, image) = (at / columns / rows % outputs, at / columns / rows / outputs);
        let first = output / (outputs / groups) * of_group;
        let mut sum = bias.values[output];
        for c in 0..of_group {
            for i in 0..k {
                let y = (row * stride + i).wrapping_sub(top);
                if y >= height {
                    continue;
                }
                let line = ((image * channels + first + c) * height + y) * width;
                for j in 0..l {
                    let z = (column * stride + j).wrapping_sub(left);
                    if z < width {
                        sum += x.values[line + z] * weights.values[((output * of_group + c) * k + i) * l + j];
                    }
                }
            }
        }
        *value = sum;
    }
    Array { shape: vec![n, outputs, rows, columns], values }
}

fn elementwise(a: &Array, b: &Array, combine: fn(f64, f64) -> f64) -> Array {
    let shape: Vec<usize> = a.shape.iter().zip(&b.shape).map(|(&a, &b)| a.max(b)).collect();
    assert_eq!(a.shape.len(), b.shape.len());
    let values = places(&shape).map(|place| combine(a.broadcast(&place), b.broadcast(&place))).collect();
    Array { shape, values }
}

fn run_node(node: &Node, inputs: &[&Array]) -> Array {
    let x = inputs[0];
    match node.op_type.as_str() {
        "Conv" => convolution(node, x, inputs[1], inputs[2]),
        "Sigmoid" => {
            Array { values: x.values.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect(), ..x.clone() }
        }
        "Mul" => elementwise(x, inputs[1], |a, b| a * b),
        "Add" => elementwise(x, inputs[1], |a, b| a + b),
        "Cast" => x.clone(),
        "GlobalAveragePool" => {
            let area: usize = x.shape[2..].iter().product();
            let values = x.values.chunks(area).map(|map| map.iter().sum::<f64>() / area as f64).collect();
            Array { shape: vec![x.shape[0], x.shape[1], 1, 1], values }
        }
        "Flatten" => {
            assert_eq!(int(node, "axis"), 1);
            Array { shape: vec![x.shape[0], x.shape[1..].iter().product()], values: x.values.clone() }
        }
        "Transpose" => {
            let order: Vec<usize> = ints(node, "perm").iter().map(|&axis| axis as usize).collect();
            let shape: Vec<usize> = order.iter().map(|&axis| x.shape[axis]).collect();
            let value = |place: Vec<usize>| {
                let mut from = vec![0; place.len()];
                order.iter().zip(&place).for_each(|(&axis, &p)| from[axis] = p);
                x.values[from.iter().zip(&x.shape).fold(0, |at, (p, size)| at * size + p)]
            };
            Array { values: places(&shape).map(value).collect(), shape }
        }
        "Gemm" => {
            assert_eq!(int(node, "transB"), 1);
            let (features, classes) = (x.shape[1], inputs[1].shape[0]);
            let row = |image: &[f64], class: usize| {
                let weights = &inputs[1].values[class * features..][..features];
                image.iter().zip(weights).map(|(x, w)| x * w).sum::<f64>() + inputs[2].values[class]
            };
            let values =
                x.values.chunks(features).flat_map(|image| (0..classes).map(move |class| row(image, class)));
            Array { shape: vec![x.shape[0], classes], values: values.collect() }
        }
        other => panic!("{other} is not among ONNX's operators that a network needs"),
    }
}

/// The logits of a graph.
fn run(graph: &Graph, images: Array) -> Vec<f64> {
    let mut known: HashMap<&str, Array> = HashMap::new();
    for tensor in &graph.initializer {
        let values: Vec<f32> = bytemuck::pod_collect_to_vec(&tensor.raw_data);
        let shape = tensor.dims.iter().map(|&size| size as usize).collect();
        known.insert(&tensor.name, Array { shape, values: values.into_iter().map(f64::from).collect() });
    }
    let expected =
        &graph.input[0].r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().shape.as_ref().unwrap().dim;
    for (size, dimension) in images.shape.iter().zip(expected).skip(1) {
        assert_eq!(dimension.extent, Some(Extent::Value(*size as i64)));
    }
    known.insert(&graph.input[0].name, images);
    for node in &graph.node {
        let inputs: Vec<&Array> = node.input.iter().map(|name| &known[name.as_str()]).collect();
        let output = run_node(node, &inputs);
        known.insert(&node.output[0], output);
    }
    known.remove(graph.output[0].name.as_str()).unwrap().values
}

/// Near ±1, as the images are by which the running statistics were calibrated: far from them the network amplifies every
/// rounding. Each channel has its own.
const SCALE: Scale = Scale { mean: [0.5, 0.45, 0.55], deviation: [0.5, 0.48, 0.52] };

fn graph(net: &Architecture, values: &[f32], input: Input) -> Graph {
    let classes: Vec<String> = (0..net.classes).map(|class| class.to_string()).collect();
    let model =
        TrainedModel { architecture: net, values, steps: 1, classes: &classes, scale: SCALE, crop: "pad" };
    let mut bytes = Vec::new();
    write(&mut bytes, &model, input).unwrap();
    Model::decode(&bytes[..]).unwrap().graph.unwrap()
}

/// Images [N, R, R, 3] as [N, 3, R, R].
fn planes(images: &[f64], side: usize) -> Array {
    let shape = vec![images.len() / (3 * side * side), 3, side, side];
    let value = |p: Vec<usize>| images[((p[0] * side + p[2]) * side + p[3]) * 3 + p[1]];
    Array { values: places(&shape).map(value).collect(), shape }
}

/// One image at a time and all at once give timm's logits; in either kind of padding.
#[test]
fn exported_graph_meets_the_golden_values() {
    for file in ["efficientnet_b0_64.json", "tf_efficientnet_b0_64.json"] {
        let trial = Trial::new(Golden::own(file));
        let (golden, side) = (&trial.golden, trial.golden.resolution);
        let graph = graph(&trial.arch, &trial.calibrated::<CpuOps>(), Input::Normalised);
        let images = planes(&trial.image, side);
        let expected = golden.eval_logits_calibrated.concat();
        let bound = Bounds::float32(&golden.float32_reference_error).eval_logits_calibrated;
        let one = |values: &[f64]| Array { shape: vec![1, 3, side, side], values: values.to_vec() };
        let single: Vec<f64> =
            images.values.chunks(3 * side * side).flat_map(|v| run(&graph, one(v))).collect();
        let together = run(&graph, images);
        assert_eq!(single, together, "{file}");
        let error = relative_error(&together, &expected);
        println!("{file}: {error:.1e} of {bound:.1e}");
        assert!(error <= bound, "{file}: {error:.2e}, bound {bound:.2e}");
    }
}

/// Bytes give what their normalised numbers give, to the rounding of two constants a channel in fp32.
#[test]
fn exported_graph_takes_bytes() {
    let trial = Trial::new(Golden::own("efficientnet_b0_64.json"));
    let side = trial.golden.resolution;
    let values = trial.calibrated::<CpuOps>();
    let bytes: Vec<f64> =
        trial.image[..side * side * 3].iter().map(|v| (127.5 * (v + 1.0)).floor()).collect();
    let scaled: Vec<f64> = bytes
        .iter()
        .enumerate()
        .map(|(at, v)| (v / 255.0 - f64::from(SCALE.mean[at % 3])) / f64::from(SCALE.deviation[at % 3]))
        .collect();
    let expected = run(&graph(&trial.arch, &values, Input::Normalised), planes(&scaled, side));
    let given = Array { shape: vec![1, side, side, 3], values: bytes };
    let found = run(&graph(&trial.arch, &values, Input::Bytes), given);
    let error = relative_error(&found, &expected);
    // The network amplifies the error of its input (6e-8) as it amplifies that of fp32.
    let bound = Bounds::float32(&trial.golden.float32_reference_error).eval_logits_calibrated;
    assert!(error <= bound, "{error:.2e}, bound {bound:.2e}");
}

/// With any tensor of the graph zeroed, the logits are others.
#[test]
fn exported_graph_needs_every_tensor() {
    let trial = Trial::new(Golden::own("efficientnet_b0_64.json"));
    let net = trial.arch.at(32).unwrap();
    let mut graph = graph(&net, &trial.calibrated::<CpuOps>(), Input::Normalised);
    let images = || planes(&trial.image[..32 * 32 * 3], 32);
    let expected = run(&graph, images());
    let bound = Bounds::float32(&trial.golden.float32_reference_error).eval_logits_calibrated;
    for number in 0..graph.initializer.len() {
        let bytes = graph.initializer[number].raw_data.len();
        let intact = std::mem::replace(&mut graph.initializer[number].raw_data, vec![0; bytes]);
        let error = relative_error(&run(&graph, images()), &expected);
        assert!(error > bound, "{}: {error:.2e}", graph.initializer[number].name);
        graph.initializer[number].raw_data = intact;
    }
    assert_eq!(ParamTable::new(&net).entries().len(), 311);
}
