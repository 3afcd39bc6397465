//! Update: one step of the optimiser over the flat buffers.

use super::{About, Describe, Direction, Parts};

/// Where RMSprop has its epsilon and its learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmsPropForm {
    /// PyTorch: buf = m·buf + g/(√v + eps); p −= lr·buf. v starts at 0.
    PyTorch,
    /// TensorFlow: buf = m·buf + lr·g/√(v + eps); p −= buf. v starts at 1.
    TensorFlow,
}

/// How the optimiser moves a parameter p with gradient g (weight decay added: g + decay·p).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// v = α·v + (1−α)·g², then as the form says.
    RmsProp { form: RmsPropForm, alpha: f32, momentum: f32, eps: f32 },
    /// buf = m·buf + g; p −= lr·buf.
    Sgd { momentum: f32 },
}

impl Rule {
    /// What the mean-square buffer holds before the first step.
    pub fn initial_mean_square(&self) -> f32 {
        match self {
            Rule::RmsProp { form: RmsPropForm::TensorFlow, .. } => 1.0,
            _ => 0.0,
        }
    }
}

/// One optimiser step over the flat buffers: trainable elements by the rule, then, with `ema`, all elements
/// (running statistics too) ema = d·ema + (1−d)·p with the step's decay d.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub rule: Rule,
    pub weight_decay: f32,
    pub ema: bool,
}

impl Describe for Update {
    fn about(&self) -> About {
        About { name: "update", operator: "update", direction: Direction::Update }
    }
    fn shape(&self) -> String {
        let rule = match self.rule {
            Rule::RmsProp { form: RmsPropForm::PyTorch, .. } => "RMSprop (PyTorch)",
            Rule::RmsProp { form: RmsPropForm::TensorFlow, .. } => "RMSprop (TensorFlow)",
            Rule::Sgd { .. } => "SGD",
        };
        format!("{rule}{}", if self.ema { " and EMA" } else { "" })
    }
    /// The flat buffers are no tensors of a plan.
    fn parts(&mut self, _: &mut Parts) {}
}

impl Update {
    /// Bytes of the flat buffers that an update must move: parameters, the rule's state and the average both ways,
    /// gradients one way.
    pub fn bytes(&self, trainable: usize, total: usize) -> u64 {
        let buffers = match self.rule {
            Rule::RmsProp { .. } => 7,
            Rule::Sgd { .. } => 5,
        };
        let average = if self.ema { 2 * total } else { 0 };
        4 * (buffers * trainable + average) as u64
    }
}
