//! A checkpoint as formats of weights see it.

use super::Metadata;
use crate::model::Architecture;
use crate::model::formats::TrainedModel;
use crate::model::formats::convention::Scale;

impl Metadata {
    /// Whether the weights are of another program: then no data and no recipe of theirs are known.
    pub fn is_foreign(&self) -> bool {
        self.data.is_empty()
    }

    /// The network with these weights (parameters, or their moving average), as other programs may have it.
    pub fn trained<'a>(&'a self, architecture: &'a Architecture, values: &'a [f32]) -> TrainedModel<'a> {
        TrainedModel {
            architecture,
            values,
            steps: self.step,
            classes: &self.classes,
            scale: Scale { mean: self.normalise.mean, deviation: self.normalise.deviation },
            crop: self.crop.into(),
        }
    }
}
