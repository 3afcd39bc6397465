//! The head: a pointwise convolution, global average pooling, dropout, the classifier.

use super::{Builder, Depth, Itinerary, Layer, Phase, mbconv::MbConv};
use crate::ops::*;

pub(super) struct Head {
    mask: Option<DropoutMask>,
    /// Whether its convolution is trained, and not the classifier alone.
    trained: bool,
    expand: (ExpandForward, ExpandBackward),
    pool: (HeadForward, HeadBackward),
}

impl Head {
    pub fn new(build: &mut Builder, last: &MbConv) -> Head {
        let (arch, images) = (build.arch, build.config.images);
        let (side, inputs, channels, classes) =
            (arch.final_side(), arch.final_channels(), arch.head_channels, arch.classes);
        let (rows, pixels) = (images * side * side, side * side);
        let y = build.activation("head y".into(), side, channels);
        let du = build.activation("head du".into(), side, channels);
        let bn = build.batch_norm(Depth::Head, "bn2", side, channels);
        let weight = build.weight("conv_head");
        let (x, outputs) = (last.output.value, channels);
        let narrow = last.output.narrow(None);
        let expand = (
            ExpandForward { rows, inputs, outputs, x, weight, y, bn },
            ExpandBackward { rows, inputs, outputs, x, weight, y, bn, du, narrow },
        );
        let pooled = build.floats("pooled".into(), images * channels);
        let rate = build.config.dropout as f32;
        let dropout = (rate > 0.0).then(|| build.floats("dropout".into(), images * channels));
        let logits = build.floats("logits".into(), images * classes);
        let dlogits = build.floats("dlogits".into(), images * classes);
        let classifier = build.dense("classifier", channels, classes);
        let trained = build.config.trains(Depth::Head);
        Head {
            trained,
            mask: dropout.map(|mask| DropoutMask { images, channels, rate, mask }),
            expand,
            pool: (
                HeadForward { images, pixels, channels, classes, y, bn, pooled, dropout, classifier, logits },
                HeadBackward {
                    images,
                    pixels,
                    channels,
                    classes,
                    y,
                    bn,
                    pooled,
                    dropout,
                    classifier,
                    dlogits,
                    du: trained.then_some(du),
                },
            ),
        }
    }

    pub fn bn(&self) -> &BatchNorm {
        &self.expand.0.bn
    }

    pub fn logits(&self) -> Tensor {
        self.pool.0.logits
    }

    pub fn dlogits(&self) -> Tensor {
        self.pool.1.dlogits
    }

    pub fn mask(&self, to: &mut Itinerary) {
        if let Some(mask) = self.mask {
            to.push(Phase::Masks, None, mask);
        }
    }

    pub fn forward(&self, to: &mut Itinerary) {
        to.push(Phase::Forward, Layer::Head, self.expand.0);
        to.push(Phase::Forward, None, self.pool.0);
    }

    pub fn backward(&self, to: &mut Itinerary) {
        to.push(Phase::Backward, None, self.pool.1);
        if self.trained {
            to.push(Phase::Backward, Layer::Head, self.expand.1);
        }
    }
}
