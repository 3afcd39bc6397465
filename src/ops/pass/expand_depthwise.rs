//! Expand and depthwise as one pass, for a device that recomputes the expanded tensor instead of storing it
//! ([`Device::stores_expanded`](crate::ops::Device::stores_expanded)).

use super::{
    About, DepthwiseBackward, DepthwiseForward, DepthwiseInference, Describe, Direction, ExpandBackward,
    ExpandForward, Part, Parts,
};
use crate::ops::tensor::Tensor;

/// [`ExpandForward`] then [`DepthwiseForward`]; `expand.y` is never stored.
#[derive(Clone, Copy, Debug)]
pub struct ExpandDepthwiseForward {
    pub expand: ExpandForward,
    pub depthwise: DepthwiseForward,
}

impl Describe for ExpandDepthwiseForward {
    fn about(&self) -> About {
        About {
            name: "expand+depthwise forward",
            operator: "expand+depthwise",
            direction: Direction::Forward,
        }
    }
    fn shape(&self) -> String {
        self.depthwise.shape()
    }
    fn parts(&mut self, parts: &mut Parts) {
        let recomputed = [self.expand.y];
        let mut visit = |part: Part| parts.unless(&recomputed, part);
        let stored = &mut Parts::new(&mut visit);
        self.expand.parts(stored);
        self.depthwise.parts(stored);
    }
}

/// [`ExpandForward`] then [`DepthwiseInference`]; `expand.y` is never stored.
#[derive(Clone, Copy, Debug)]
pub struct ExpandDepthwiseInference {
    pub expand: ExpandForward,
    pub depthwise: DepthwiseInference,
}

impl Describe for ExpandDepthwiseInference {
    fn about(&self) -> About {
        About {
            name: "expand+depthwise inference",
            operator: "expand+depthwise",
            direction: Direction::Forward,
        }
    }
    fn shape(&self) -> String {
        self.depthwise.shape()
    }
    fn parts(&mut self, parts: &mut Parts) {
        let recomputed = [self.expand.y];
        let mut visit = |part: Part| parts.unless(&recomputed, part);
        let stored = &mut Parts::new(&mut visit);
        self.expand.parts(stored);
        self.depthwise.parts(stored);
    }
}

/// [`DepthwiseBackward`] then [`ExpandBackward`]; `expand.y` is never stored, `expand.du` lives within the pass.
#[derive(Clone, Copy, Debug)]
pub struct ExpandDepthwiseBackward {
    pub expand: ExpandBackward,
    pub depthwise: DepthwiseBackward,
}

impl Describe for ExpandDepthwiseBackward {
    fn about(&self) -> About {
        About {
            name: "expand+depthwise backward",
            operator: "expand+depthwise",
            direction: Direction::Backward,
        }
    }
    fn shape(&self) -> String {
        self.depthwise.shape()
    }
    fn parts(&mut self, parts: &mut Parts) {
        let recomputed = [self.expand.y];
        let mut visit = |part: Part| parts.unless(&recomputed, part);
        let stored = &mut Parts::new(&mut visit);
        self.depthwise.parts(stored);
        self.expand.parts(stored);
    }
}

impl Parts<'_> {
    /// Passes a part on that is none of these tensors.
    fn unless(&mut self, recomputed: &[Tensor], part: Part) {
        match part {
            Part::Tensor { tensor, .. } if recomputed.contains(tensor) => {}
            part => self.part(part),
        }
    }
}
