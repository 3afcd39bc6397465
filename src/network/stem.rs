//! The stem: a 3×3 convolution of stride 2 over the image. Its batch norm and silu are applied where
//! its output is loaded: in the first block's depthwise convolution.

use super::{Builder, Depth, Itinerary, Phase};
use crate::ops::{BatchNorm, DepthwiseInput, StemBackward, StemForward, Tensor};

pub(super) struct Stem {
    pub forward: StemForward,
    pub backward: StemBackward,
}

impl Stem {
    pub fn new(build: &mut Builder, image: Tensor) -> Stem {
        let (window, channels, images) = (build.arch.stem, build.arch.stem_channels, build.config.images);
        let y = build.activation("stem y".into(), window.output, channels);
        let du = build.activation("stem du".into(), window.output, channels);
        let bn = build.batch_norm(Depth::Stem, "bn1", window.output, channels);
        let weight = build.weight("conv_stem");
        Stem {
            forward: StemForward { images, window, channels, image, weight, y, bn },
            backward: StemBackward { images, window, channels, image, weight, y, bn, du },
        }
    }

    pub fn bn(&self) -> &BatchNorm {
        &self.forward.bn
    }

    /// What the first block's depthwise convolution reads, and the gradient at its batch norm's output.
    pub fn input(&self, build: &Builder) -> DepthwiseInput {
        let du = build.config.trains(Depth::Stem).then_some(self.backward.du);
        DepthwiseInput::Normalised { bn: self.forward.bn, du }
    }

    pub fn forward(&self, to: &mut Itinerary) {
        to.push(Phase::Forward, None, self.forward);
    }

    /// The first block's depthwise backward has left `du` and the batch norm's sums.
    pub fn backward(&self, to: &mut Itinerary) {
        to.push(Phase::Backward, None, self.backward);
    }
}
