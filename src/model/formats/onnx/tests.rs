//! The file decoded again: the graph's order, its folded weights, its pads. The logits are compared with ONNX Runtime's by
//! a script, and with other programs' by golden values.

use std::collections::HashMap;

use super::*;
use crate::model::initialise::initialise;
use crate::model::{Architecture, BatchNormConfig, Padding, Variant};

fn network(padding: Padding) -> Architecture {
    let batch_norm = BatchNormConfig { eps: 1e-3, ..BatchNormConfig::default() };
    Architecture::new(Variant::B0, 5, 64, padding, batch_norm).unwrap()
}

fn decoded(net: &Architecture, values: &[f32], input: Input) -> Model {
    let classes: Vec<String> = (0..net.classes).map(|class| class.to_string()).collect();
    let scale = Scale { mean: [0.5, 0.4, 0.3], deviation: [0.2, 0.25, 0.3] };
    let model = TrainedModel { architecture: net, values, steps: 1, classes: &classes, scale, crop: "pad" };
    let mut bytes = Vec::new();
    write(&mut bytes, &model, input).unwrap();
    Model::decode(&bytes[..]).unwrap()
}

/// Every input of a node is made before it; every tensor is used once; the output is made.
#[test]
fn graph_is_in_order_and_uses_every_tensor() {
    for (padding, input) in [(Padding::Same, Input::Bytes), (Padding::Symmetric, Input::Normalised)] {
        let net = network(padding);
        let values = initialise(&ParamTable::new(&net), 1);
        let model = decoded(&net, &values, input);
        assert_eq!((model.ir_version, model.opset_import[0].version), (8, 17));
        let graph = model.graph.unwrap();
        let mut made: HashMap<&str, usize> = HashMap::from([("images", 0)]);
        made.extend(graph.initializer.iter().map(|tensor| (tensor.name.as_str(), 0)));
        for node in &graph.node {
            for name in &node.input {
                *made.get_mut(name.as_str()).unwrap_or_else(|| panic!("{name} before {}", node.name)) += 1;
            }
            assert!(made.insert(&node.output[0], 0).is_none(), "{} is made twice", node.output[0]);
        }
        let unused: Vec<_> = made.iter().filter(|(_, uses)| **uses == 0).map(|(name, _)| *name).collect();
        assert_eq!(unused, ["logits"]);
        for tensor in &graph.initializer {
            let elements: i64 = tensor.dims.iter().product();
            assert_eq!(tensor.raw_data.len() as i64, 4 * elements, "{}", tensor.name);
        }
    }
}

/// A convolution with its batch norm behind it gives what the folded one gives, channel by channel.
#[test]
fn folded_weights_follow_the_formula() {
    let net = network(Padding::Same);
    let table = ParamTable::new(&net);
    let mut values = initialise(&table, 2);
    for (place, word) in [(1, "weight"), (2, "bias"), (3, "running_mean"), (4, "running_var")] {
        let range = table.get(&format!("bn1.{word}")).unwrap().range();
        values[range].iter_mut().enumerate().for_each(|(c, v)| *v = 0.1 * place as f32 + 0.03 * c as f32);
    }
    let graph = decoded(&net, &values, Input::Normalised).graph.unwrap();
    let of = |name: &str| -> Vec<f32> {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
        bytemuck::pod_collect_to_vec(&tensor.raw_data)
    };
    let (weights, bias) = (of("conv_stem.weight"), of("conv_stem.bias"));
    let own = |name: &str, at: usize| f64::from(values[table.get(name).unwrap().range()][at]);
    let taps = [0.5, -1.0, 2.0];
    for channel in 0..32 {
        let sum: f64 =
            taps.iter().enumerate().map(|(k, x)| x * own("conv_stem.weight", 27 * channel + k)).sum();
        let norm = |word: &str| own(&format!("bn1.{word}"), channel);
        let expected = norm("weight") * (sum - norm("running_mean")) / (norm("running_var") + 1e-3).sqrt()
            + norm("bias");
        let folded: f64 =
            taps.iter().enumerate().map(|(k, x)| x * f64::from(weights[27 * channel + k])).sum();
        // Each folded number is rounded once to fp32, by 2⁻²⁴ of itself at most; all else is in double precision.
        let size = |(k, x): (usize, &f64)| (x * f64::from(weights[27 * channel + k])).abs();
        let sizes = taps.iter().enumerate().map(size).sum::<f64>() + f64::from(bias[channel]).abs();
        let bound = 1.001 * sizes * 0.5f64.powi(24);
        let found = folded + f64::from(bias[channel]);
        assert!((found - expected).abs() < bound, "{channel}: {found} {expected}");
    }
}

/// The pads of TensorFlow's kind differ before and behind; those of PyTorch's are cut where no window reaches.
#[test]
fn pads_are_those_of_the_windows() {
    for padding in [Padding::Same, Padding::Symmetric] {
        let net = network(padding);
        let graph = decoded(&net, &initialise(&ParamTable::new(&net), 1), Input::Normalised).graph.unwrap();
        let mut windows = vec![("conv_stem".to_string(), net.stem)];
        windows.extend(net.blocks.iter().map(|block| (format!("{}.conv_dw", block.name), block.window)));
        for (name, window) in windows {
            let node = graph.node.iter().find(|node| node.name == name).unwrap();
            let ints = |name: &str| &node.attribute.iter().find(|a| a.name == name).unwrap().ints;
            let pads = ints("pads");
            let size = |before: i64, behind: i64| {
                (window.input as i64 + before + behind - ints("kernel_shape")[0]) / ints("strides")[0] + 1
            };
            assert_eq!(pads[0] as usize, window.pad, "{name}");
            assert_eq!(size(pads[0], pads[2]) as usize, window.output, "{name}");
            assert_eq!((pads[1], pads[3]), (pads[0], pads[2]), "{name}");
        }
    }
}

#[test]
fn bytes_are_normalised_by_the_scale() {
    let net = network(Padding::Same);
    let graph = decoded(&net, &initialise(&ParamTable::new(&net), 1), Input::Bytes).graph.unwrap();
    let of = |name: &str| -> Vec<f32> {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
        bytemuck::pod_collect_to_vec(&tensor.raw_data)
    };
    let (factor, shift) = (of("normalise.factor"), of("normalise.shift"));
    let (mean, deviation) = ([0.5f32, 0.4, 0.3], [0.2f32, 0.25, 0.3]);
    for channel in 0..3 {
        let expected = (f64::from(200u8) / 255.0 - f64::from(mean[channel])) / f64::from(deviation[channel]);
        let found = 200.0 * f64::from(factor[channel]) + f64::from(shift[channel]);
        // Two numbers, each rounded to fp32 by 2⁻²⁴ of itself at most.
        let sizes = 200.0 * f64::from(factor[channel]) + f64::from(shift[channel]).abs();
        assert!((found - expected).abs() <= 1.001 * sizes * 0.5f64.powi(24), "{found} {expected}");
    }
    assert_eq!(graph.input[0].r#type.as_ref().unwrap().tensor_type.as_ref().unwrap().elem_type, proto::UINT8);
}
