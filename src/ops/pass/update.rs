//! Update: one step of the optimiser over the flat buffers.

use super::{About, Describe, Direction, Parts};
use crate::ops::frozen::Frozen;
use crate::ops::optimiser::{Rule, WeightDecay};

/// One optimiser step over the flat buffers: trainable elements by the rule, then, with `ema`, all elements
/// (running statistics too) ema = d·ema + (1−d)·p with the step's decay d. With `clip_norm`, the rule gets the gradients of
/// all parameters times min(1, clip_norm/(norm + 1e-6)), where norm is their L2 norm before the decay is added. Of every
/// buffer, what is `frozen` keeps its bits.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub rule: Rule,
    pub weight_decay: WeightDecay,
    pub clip_norm: Option<f32>,
    pub ema: bool,
    pub frozen: Frozen,
}

impl Describe for Update {
    fn about(&self) -> About {
        About { name: "update", operator: "update", direction: Direction::Update }
    }
    fn shape(&self) -> String {
        let clipping = if self.clip_norm.is_some() { ", clipped" } else { "" };
        format!("{}{clipping}{}", self.rule.name(), if self.ema { " and EMA" } else { "" })
    }
    /// The flat buffers are no tensors of a plan.
    fn parts(&mut self, _: &mut Parts) {}
}

impl Update {
    /// Bytes of the flat buffers that an update must move: parameters, the rule's slots and the average both ways,
    /// gradients and decay factors one way, and gradients once more for their norm.
    pub fn bytes(&self, trainable: usize, total: usize) -> u64 {
        let statistics = total - trainable - self.frozen.statistics;
        let trainable = trainable - self.frozen.parameters;
        let total = trainable + statistics;
        let moved =
            (3 + 2 * self.rule.slots().len() + usize::from(self.weight_decay.by_parameter)) * trainable;
        let moved = moved + usize::from(self.clip_norm.is_some()) * trainable;
        let average = if self.ema { 2 * total } else { 0 };
        4 * (moved + average) as u64
    }
}
