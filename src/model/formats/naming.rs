//! The names that other programs give to the same tensors.
//!
//! The parameter table has timm's names. A [`Naming`] translates them: the layers of a network by [`Naming::layers`], the
//! last word of a name by the tensor's role. All but Keras store the same numbers in the same order; Keras has height and
//! width first and input before output, which [`Naming::axes`] says.
//!
//! | | timm | torchvision | lukemelas | Keras |
//! |---|---|---|---|---|
//! | stem | `conv_stem`, `bn1` | `features.0.0`, `.1` | `_conv_stem`, `_bn0` | `stem_conv`, `stem_bn` |
//! | first block of the second stage, expand | `blocks.1.0.conv_pw`, `bn1` | `features.2.0.block.0.0`, `.1` | `_blocks.1._expand_conv`, `_bn0` | `block2a_expand_conv`, `_expand_bn` |
//! | depthwise | `conv_dw`, `bn2` | `block.1.0`, `.1` | `_depthwise_conv`, `_bn1` | `dwconv`, `bn` |
//! | squeeze-excite | `se.conv_reduce`, `se.conv_expand` | `block.2.fc1`, `fc2` | `_se_reduce`, `_se_expand` | `se_reduce`, `se_expand` |
//! | project | `conv_pwl`, `bn3` | `block.3.0`, `.1` | `_project_conv`, `_bn2` | `project_conv`, `project_bn` |
//! | head | `conv_head`, `bn2` | `features.8.0`, `.1` | `_conv_head`, `_bn1` | `top_conv`, `top_bn` |
//! | classifier | `classifier` | `classifier.1` | `_fc` | `predictions` |
//!
//! A block that does not expand has its depthwise convolution first: timm and torchvision count from one lower there.

use std::collections::{HashMap, HashSet};

use strum::{Display, EnumIter, EnumString, VariantNames};

use crate::model::architecture::{Architecture, Block};
use crate::model::family::Variant;
use crate::model::params::{Entry, ParamRole, ParamTable};
use crate::model::{BatchNormConfig, Padding};
use crate::names;

/// Whose names the tensors of a file have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter, Display, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
#[strum(parse_err_ty = String, parse_err_fn = Naming::unknown)]
pub enum Naming {
    /// timm, and effnet's own files.
    Timm,
    Torchvision,
    /// The package `efficientnet-pytorch`.
    Lukemelas,
    /// Keras's applications, with a dot between layer and weight, and `kernel` for `depthwise_kernel`, as Keras 2 had it.
    Keras,
}

/// The layers of a block that hold tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Expand,
    ExpandNorm,
    Depthwise,
    DepthwiseNorm,
    Reduce,
    Widen,
    Project,
    ProjectNorm,
}

use Layer::{Depthwise, DepthwiseNorm, Expand, ExpandNorm, Project, ProjectNorm, Reduce, Widen};

const LAYERS: [Layer; 8] =
    [Expand, ExpandNorm, Depthwise, DepthwiseNorm, Reduce, Widen, Project, ProjectNorm];

impl Naming {
    fn unknown(name: &str) -> String {
        names::unknown::<Naming>("naming", name)
    }

    /// The table's names, each with the name that it has here.
    pub fn translation(self, net: &Architecture) -> HashMap<String, String> {
        let layers: HashMap<String, String> = self.layers(net).into_iter().collect();
        let table = ParamTable::new(net);
        let translated = |entry: &Entry| {
            let (layer, word) = entry.name.rsplit_once('.')?;
            let word = self.word(word, entry.role);
            Some((entry.name.clone(), format!("{}.{word}", layers.get(layer)?)))
        };
        table.entries().iter().filter_map(translated).collect()
    }

    /// The names of all members of the family.
    pub fn known(self) -> HashSet<String> {
        let nets = Variant::ALL.into_iter().filter_map(|variant| {
            Architecture::new(variant, 2, 32, Padding::Symmetric, BatchNormConfig::default()).ok()
        });
        nets.flat_map(|net| self.translation(&net).into_values()).collect()
    }

    /// The order in which a tensor's axes are stored, by their place in the table's shape (output, input / groups, height,
    /// width).
    pub fn axes(self, entry: &Entry) -> Vec<usize> {
        match (self, entry.shape.len(), entry.name.ends_with("conv_dw.weight")) {
            (Naming::Keras, 4, true) => vec![2, 3, 0, 1],
            (Naming::Keras, 4, false) => vec![2, 3, 1, 0],
            (Naming::Keras, 2, _) => vec![1, 0],
            (_, axes, _) => (0..axes).collect(),
        }
    }

    /// The last word of a tensor's name.
    fn word(self, timm: &str, role: ParamRole) -> &str {
        match (self, role) {
            (Naming::Timm | Naming::Torchvision | Naming::Lukemelas, _) => timm,
            (Naming::Keras, ParamRole::Convolution | ParamRole::Linear) => "kernel",
            (Naming::Keras, ParamRole::Scale) => "gamma",
            (Naming::Keras, ParamRole::Shift) => "beta",
            (Naming::Keras, ParamRole::Bias) => "bias",
            (Naming::Keras, ParamRole::RunningMean) => "moving_mean",
            (Naming::Keras, ParamRole::RunningVariance) => "moving_variance",
        }
    }

    /// timm's names of all layers, each with the name that it has here.
    fn layers(self, net: &Architecture) -> Vec<(String, String)> {
        let ends = match self {
            Naming::Timm => ["conv_stem", "bn1", "conv_head", "bn2", "classifier"],
            Naming::Torchvision => {
                ["features.0.0", "features.0.1", "features.8.0", "features.8.1", "classifier.1"]
            }
            Naming::Lukemelas => ["_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc"],
            Naming::Keras => ["stem_conv", "stem_bn", "top_conv", "top_bn", "predictions"],
        };
        let timm = ["conv_stem", "bn1", "conv_head", "bn2", "classifier"];
        let mut layers: Vec<(String, String)> =
            timm.into_iter().zip(ends).map(|(timm, here)| (timm.into(), here.into())).collect();
        for block in &net.blocks {
            for layer in LAYERS {
                if block.expands || !matches!(layer, Expand | ExpandNorm) {
                    layers.push((Naming::Timm.in_block(block, layer), self.in_block(block, layer)));
                }
            }
        }
        layers
    }

    fn in_block(self, block: &Block, layer: Layer) -> String {
        let [depthwise_norm, project_norm, project] = block.late_names();
        let (stage, repeat) = (block.stage, block.repeat);
        // In torchvision, places within the block.
        let late = usize::from(block.expands);
        match self {
            Naming::Timm => {
                let name = match layer {
                    Expand => "conv_pw",
                    ExpandNorm => "bn1",
                    Depthwise => "conv_dw",
                    DepthwiseNorm => depthwise_norm,
                    Reduce => "se.conv_reduce",
                    Widen => "se.conv_expand",
                    Project => project,
                    ProjectNorm => project_norm,
                };
                format!("{}.{name}", block.name)
            }
            Naming::Torchvision => {
                let place = match layer {
                    Expand => "0.0".into(),
                    ExpandNorm => "0.1".into(),
                    Depthwise => format!("{late}.0"),
                    DepthwiseNorm => format!("{late}.1"),
                    Reduce => format!("{}.fc1", late + 1),
                    Widen => format!("{}.fc2", late + 1),
                    Project => format!("{}.0", late + 2),
                    ProjectNorm => format!("{}.1", late + 2),
                };
                format!("features.{}.{repeat}.block.{place}", stage + 1)
            }
            Naming::Lukemelas => format!("_blocks.{}.{}", block.index, lukemelas(layer)),
            Naming::Keras => {
                // The repeats of a stage are letters: `block2a`, `block2b`.
                let letter = char::from(b'a' + repeat as u8);
                format!("block{}{letter}_{}", stage + 1, keras(layer))
            }
        }
    }
}

fn lukemelas(layer: Layer) -> &'static str {
    match layer {
        Expand => "_expand_conv",
        ExpandNorm => "_bn0",
        Depthwise => "_depthwise_conv",
        DepthwiseNorm => "_bn1",
        Reduce => "_se_reduce",
        Widen => "_se_expand",
        Project => "_project_conv",
        ProjectNorm => "_bn2",
    }
}

fn keras(layer: Layer) -> &'static str {
    match layer {
        Expand => "expand_conv",
        ExpandNorm => "expand_bn",
        Depthwise => "dwconv",
        DepthwiseNorm => "bn",
        Reduce => "se_reduce",
        Widen => "se_expand",
        Project => "project_conv",
        ProjectNorm => "project_bn",
    }
}

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator;

    use super::*;

    fn net(variant: Variant) -> Architecture {
        Architecture::new(variant, 10, 32, Padding::Symmetric, BatchNormConfig::default()).unwrap()
    }

    #[test]
    fn naming_gives_every_tensor_a_name_of_its_own() {
        for naming in Naming::iter() {
            let known = naming.known();
            for variant in Variant::ALL {
                let net = net(variant);
                let tensors = ParamTable::new(&net).entries().len();
                let names = naming.translation(&net);
                assert_eq!(names.len(), tensors, "{naming} {variant}");
                assert_eq!(
                    HashSet::<&String>::from_iter(names.values()).len(),
                    tensors,
                    "{naming} {variant}"
                );
                assert!(names.values().all(|name| known.contains(name)), "{naming} {variant}");
            }
        }
        assert!(Naming::Timm.translation(&net(Variant::B2)).iter().all(|(timm, here)| timm == here));
    }

    #[test]
    fn naming_is_read_by_name() {
        assert_eq!("TorchVision".parse(), Ok(Naming::Torchvision));
        assert_eq!(
            "caffe".parse::<Naming>().unwrap_err(),
            "`caffe` is no naming: use timm, torchvision, lukemelas or keras"
        );
    }

    #[test]
    fn naming_follows_keras_order_of_axes() {
        let table = ParamTable::new(&net(Variant::B0));
        let stored = |name: &str| {
            let entry = table.get(name).unwrap();
            Naming::Keras.axes(entry).into_iter().map(|axis| entry.shape[axis]).collect::<Vec<_>>()
        };
        assert_eq!(stored("conv_stem.weight"), [3, 3, 3, 32]);
        assert_eq!(stored("blocks.1.0.conv_dw.weight"), [3, 3, 96, 1]);
        assert_eq!(stored("blocks.1.0.conv_pw.weight"), [1, 1, 16, 96]);
        assert_eq!(stored("classifier.weight"), [1280, 10]);
        assert_eq!(stored("bn1.weight"), [32]);
    }
}
