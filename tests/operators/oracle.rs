//! Tests the oracle itself: the gradients of a small network of its passes are compared with central differences of its
//! loss. A formula that is wrong in both the oracle and the fast passes passes every comparison between the two, but
//! not this one.
//!
//! The network contains every kind of block: stem; a first-stage block on the stem's batch norm; a first-stage block with
//! identity input, shortcut and dropped images; an expanding block with stride two and TensorFlow's padding; an expanding
//! block with shortcut and dropped images; head with dropout.

use crate::common::fixture::norm;
use crate::common::formula::Formula;
use crate::common::golden::parameters;
use crate::common::network::{architecture, training};
use crate::common::reference::Reference;
use effnet::model::{Architecture, BatchNormConfig, Block, Padding, ParamTable, Variant, Window};
use effnet::network::{Depth, Network, NetworkConfig, Phase};
use effnet::ops::*;

const IMAGES: usize = 3;
const CLASSES: usize = 4;

/// The network's widths are a few channels, so that there are few parameters.
fn small() -> Architecture {
    let block = |index: usize, [input, expanded, output]: [usize; 3], window| Block {
        name: format!("blocks.{}.{}", index / 2, index % 2),
        index,
        stage: index / 2,
        repeat: index % 2,
        input,
        expanded,
        output,
        squeeze: 2,
        expands: index >= 2,
        window,
    };
    let same = |kernel, stride, side| Window::new(kernel, stride, side, Padding::Same);
    let stem = Window::new(3, 2, 9, Padding::Symmetric);
    Architecture {
        resolution: stem.input,
        batch_norm: BatchNormConfig { momentum: 0.1, eps: 1e-3 },
        stem_channels: 5,
        stem,
        blocks: vec![
            block(0, [5, 5, 3], Window::new(3, 1, 5, Padding::Symmetric)),
            block(1, [3, 3, 3], same(3, 1, 5)),
            block(2, [3, 6, 4], same(5, 2, 5)),
            block(3, [4, 8, 4], same(3, 1, 3)),
        ],
        head_channels: 6,
        ..architecture(Variant::B0, CLASSES, 32)
    }
}

struct Chain {
    network: Network,
    /// Initial parameters and running statistics.
    values: Vec<f32>,
}

impl Chain {
    fn reference(&self) -> Reference {
        let network = &self.network;
        let mut ops = Reference::new(self.values.len(), self.values.len());
        ops.write_state(Buffer::Parameters, &self.values).unwrap();
        let image = Formula::of("image").values(network.image.elements, -1.0, 1.0);
        ops.upload(network.image, &image).unwrap();
        ops.upload_labels(network.labels, &[2, 0, 3][..].into()).unwrap();
        let mut factors = [[1.25, 0.0, 1.25], [0.0, 2.0, 2.0]].into_iter();
        for entry in &network.recorded.entries()[network.recorded.numbers(Phase::Masks)] {
            match &entry.pass {
                Pass::DropPathMask(p) => ops.put(p.keep, factors.next().expect("two such blocks").into()),
                Pass::DropoutMask(p) => {
                    let factor = |at: usize| if at % 5 == 3 { 0.0 } else { 1.25 };
                    ops.put(p.mask, (0..p.mask.elements).map(factor).collect());
                }
                other => panic!("{} is no mask", other.name()),
            }
        }
        assert!(
            factors.len() == 0 || self.network.config.trained_from > Some(Depth::Stem),
            "a block without its mask"
        );
        ops
    }

    /// The loss, scaled as its gradient is.
    fn forward(&self, ops: &mut Reference) -> f64 {
        let Network { recorded, losses, config, .. } = &self.network;
        recorded.run(Phase::Forward, ops).unwrap();
        recorded.run(Phase::Loss, ops).unwrap();
        ops.get(*losses).iter().sum::<f64>() / config.step_images as f64
    }
}

/// The error of central differences is h²/6 of the third derivative plus the rounding of the loss over h: at h = 1e-5
/// both are near 1e-10, and the gradients here are near 0.1.
#[test]
fn gradients_are_those_of_central_differences() {
    gradients_from(Depth::Stem, Statistics::Batch);
}

/// The same with running statistics, and of networks that are trained from a later place on. Frozen parameters have no
/// gradient, but the loss depends on them.
#[test]
fn gradients_of_what_is_trained_are_those_of_central_differences() {
    for first in [Depth::Stem, Depth::Stage(0), Depth::Stage(1), Depth::Head, Depth::Classifier] {
        for statistics in [Statistics::Batch, Statistics::Running] {
            gradients_from(first, statistics);
        }
    }
}

fn gradients_from(first: Depth, statistics: Statistics) {
    let arch = small();
    let table = ParamTable::new(&arch);
    let config = NetworkConfig { trained_from: Some(first), statistics, step_images: 4, ..training(IMAGES) };
    let chain = Chain { network: Network::new(&arch, &table, config), values: parameters(&table) };
    let mut ops = chain.reference();
    chain.forward(&mut ops);
    chain.network.recorded.run(Phase::Backward, &mut ops).unwrap();
    let analytic = ops.gradients.clone();
    let whole = norm(&analytic);
    let ends: Vec<String> =
        arch.blocks.iter().map(|block| format!("{}.{}.bias", block.name, block.late_names()[1])).collect();
    let frozen = Frozen::of(&chain.network.recorded.passes(), table.trainable(), table.total());
    let h = 1e-5;
    let mut ops = chain.reference();
    for entry in table.entries() {
        let uses_it = statistics == Statistics::Running || first > Depth::Stem;
        if entry.offset < frozen.parameters || (!entry.role.trainable() && uses_it) {
            assert_eq!(norm(&analytic[entry.range()]), 0.0, "{} is not trained", entry.name);
            continue;
        }
        let mut difference = Vec::new();
        for i in entry.range() {
            let at_rest = ops.parameters[i];
            let mut loss_at = |value: f64| {
                ops.parameters[i] = value;
                chain.forward(&mut ops)
            };
            difference.push((loss_at(at_rest + h) - loss_at(at_rest - h)) / (2.0 * h));
            ops.parameters[i] = at_rest;
        }
        let (name, analytic) = (&entry.name, &analytic[entry.range()]);
        let error: Vec<f64> = difference.iter().zip(analytic).map(|(d, a)| d - a).collect();
        // A bias that the next batch norm removes has no gradient: its error is compared with all gradients.
        let bound = (1e-6 * norm(analytic)).max(1e-9 * whole);
        assert!(
            norm(&error) <= bound,
            "{first:?}, {statistics:?}, {name}: error {:e}, bound {bound:e}",
            norm(&error)
        );
        if !entry.role.trainable() {
            assert_eq!(norm(analytic), 0.0, "{name} is not trained");
        } else if statistics == Statistics::Running || !ends.contains(name) {
            // Running statistics do not make layers equally large, and so gradients are not; still above all rounding.
            let least = if statistics == Statistics::Running { 1e-7 } else { 1e-4 };
            assert!(norm(analytic) > least * whole, "{name} has no gradient: the chain is cut");
        }
    }
}
