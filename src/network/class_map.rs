//! Class activation maps: which places of an image speak for a class (Zhou et al., "Learning Deep Features for
//! Discriminative Localization", CVPR 2016).
//!
//! The head pools the last activation a over its places and multiplies the means by the classifier's weights. So the
//! logit of a class is the mean of a map over the places, plus the bias:
//!
//! map(y, x) = Σ_c weight(class, c) · a(c, y, x),  logit = mean of map + bias.
//!
//! The map is exact, no approximation by gradients. a = silu(scale·y + shift) is not stored: it is made here of the raw
//! output y of the last convolution, which the plan keeps, as the head's own pass makes it.

use super::Inference;
use crate::ops::{HeadForward, Ops, Param, Pass, Result, Tensor, Weights};

/// The last activation of a batch on the host, and the classifier.
pub struct Features {
    /// Raw output of the last convolution, [N, P, C].
    y: Vec<f32>,
    /// [4, C]; see [`BatchNorm::coefficients`](crate::ops::BatchNorm::coefficients).
    coefficients: Vec<f32>,
    /// [classes, C], and [classes].
    weight: Vec<f32>,
    bias: Vec<f32>,
    head: HeadForward,
}

impl Inference {
    /// The head's pass for a set of weights: the last one.
    ///
    /// # Panics
    /// For weights that are none of the sets.
    pub fn head(&self, weights: Weights) -> HeadForward {
        let last = self.itinerary(weights).entries().last();
        match last.map(|entry| entry.pass) {
            Some(Pass::HeadForward(head)) => head,
            other => unreachable!("inference ends with the head, not with {other:?}"),
        }
    }

    /// Features for a set of weights. `parameters` is the buffer of these weights.
    ///
    /// # Panics
    /// For weights that are none of the sets.
    pub fn features(&self, weights: Weights, parameters: &[f32]) -> Features {
        let head = self.head(weights);
        let of = |param: Param| parameters[param.range()].to_vec();
        Features {
            y: vec![0.0; head.y.elements],
            coefficients: vec![0.0; head.bn.coefficients.elements],
            weight: of(head.classifier.weight),
            bias: of(head.classifier.bias),
            head,
        }
    }
}

impl Features {
    /// The tensors that are read: the last convolution's output, and the coefficients of its batch norm.
    pub fn tensors(&self) -> [Tensor; 2] {
        [self.head.y, self.head.bn.coefficients]
    }

    /// Reads the activation of the batch that has passed through the network last.
    ///
    /// # Errors
    /// Those of the device.
    pub fn read<O: Ops>(&mut self, ops: &mut O) -> Result {
        let Features { y, coefficients, head, .. } = self;
        ops.download(head.y, y)?;
        ops.download(head.bn.coefficients, coefficients)
    }

    /// The sides of a map in places.
    pub fn side(&self) -> usize {
        self.head.pixels.isqrt()
    }

    /// The map of a class over an image of the batch, row by row.
    ///
    /// # Panics
    /// If there is no such image or class.
    pub fn map(&self, image: usize, class: usize) -> Vec<f64> {
        let HeadForward { pixels, channels, .. } = self.head;
        let weight = &self.weight[class * channels..][..channels];
        let (scale, shift) = self.coefficients[2 * channels..].split_at(channels);
        let places = self.y[image * pixels * channels..][..pixels * channels].chunks_exact(channels);
        places
            .map(|place| {
                let activated = place.iter().zip(scale.iter().zip(shift));
                let activated = activated.map(|(&y, (&scale, &shift))| {
                    let z = f64::from(y) * f64::from(scale) + f64::from(shift);
                    z / (1.0 + (-z).exp())
                });
                activated.zip(weight).map(|(a, &weight)| a * f64::from(weight)).sum()
            })
            .collect()
    }

    /// The bias of a class.
    pub fn bias(&self, class: usize) -> f64 {
        f64::from(self.bias[class])
    }
}
