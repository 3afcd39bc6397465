//! The optimisers.
//!
//! An optimiser is a [`Rule`]: how one parameter p moves by its gradient g. All that others must know about it stands
//! here, once: its name, its hyper-parameters, and its [slots](Slot), the numbers that it keeps of each parameter from
//! step to step. The state buffers, the memory plan, the checkpoint's names and the rows of a report follow from that.
//! What changes from step to step (the learning rate, the decay of the moving average) is not a rule's: it comes with
//! [`StepParams`](super::StepParams), so that recorded steps hold none of it.
//!
//! One more rule is a variant here, its arithmetic in `cpu/optimiser.rs` and `kernels/optimiser.cu`, and the same once
//! more, naively, in the tests' oracle.

/// Where RMSprop has its epsilon and its learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RmsPropForm {
    /// PyTorch: buf = m·buf + g/(√v + eps); p −= lr·buf. v starts at 0.
    PyTorch,
    /// TensorFlow: buf = m·buf + lr·g/√(v + eps); p −= buf. v starts at 1.
    TensorFlow,
}

/// How the optimiser moves a parameter p with gradient g, to which the weight decay is already added, except AdamW's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// v = α·v + (1−α)·g², then as the form says. Slots: v, buf.
    RmsProp { form: RmsPropForm, alpha: f32, momentum: f32, eps: f32 },
    /// buf = m·buf + g; p −= lr·buf, or with Nesterov's momentum p −= lr·(g + m·buf). Slot: buf.
    Sgd { momentum: f32, nesterov: bool },
    /// v += (1−β₂)·(g² − v), m += (1−β₁)·(g − m). In the t-th step that is not skipped, from 1:
    /// p −= lr·decay·p + lr·m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + eps). Slots: v, m. The betas are f64, because 1 − β must be exact.
    AdamW { beta1: f64, beta2: f64, eps: f32 },
}

/// One number that a rule keeps of each trainable parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// In checkpoints after `optimizer.`.
    pub name: &'static str,
    /// Before the first step.
    pub initial: f32,
}

impl Slot {
    const fn new(name: &'static str, initial: f32) -> Slot {
        Slot { name, initial }
    }
}

/// No rule has more slots.
pub const MOST_SLOTS: usize = 2;

impl Rule {
    /// The state of each parameter, in the order of [`Buffer::Slot`](super::Buffer::Slot) and of the checkpoint.
    pub fn slots(&self) -> &'static [Slot] {
        match self {
            Rule::RmsProp { form: RmsPropForm::PyTorch, .. } => {
                const { &[Slot::new("mean_square", 0.0), Slot::new("momentum", 0.0)] }
            }
            Rule::RmsProp { form: RmsPropForm::TensorFlow, .. } => {
                const { &[Slot::new("mean_square", 1.0), Slot::new("momentum", 0.0)] }
            }
            Rule::Sgd { .. } => const { &[Slot::new("momentum", 0.0)] },
            Rule::AdamW { .. } => const { &[Slot::new("mean_square", 0.0), Slot::new("mean", 0.0)] },
        }
    }

    /// In words.
    pub fn name(&self) -> &'static str {
        match self {
            Rule::RmsProp { form: RmsPropForm::PyTorch, .. } => "RMSprop (PyTorch)",
            Rule::RmsProp { form: RmsPropForm::TensorFlow, .. } => "RMSprop (TensorFlow)",
            Rule::Sgd { nesterov: false, .. } => "SGD",
            Rule::Sgd { nesterov: true, .. } => "SGD (Nesterov)",
            Rule::AdamW { .. } => "AdamW",
        }
    }

    /// Names and values, for reports.
    pub fn hyper_parameters(&self) -> Vec<(&'static str, f32)> {
        match *self {
            Rule::RmsProp { alpha, momentum, eps, .. } => {
                vec![("momentum", momentum), ("alpha", alpha), ("epsilon", eps)]
            }
            Rule::Sgd { momentum, .. } => vec![("momentum", momentum)],
            Rule::AdamW { beta1, beta2, eps } => {
                vec![("beta1", beta1 as f32), ("beta2", beta2 as f32), ("epsilon", eps)]
            }
        }
    }
}

/// Weight decay: a rule gets g + rate·factor·p as the gradient of p (L2). AdamW instead takes lr·rate·factor·p from p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WeightDecay {
    pub rate: f32,
    /// Each parameter has its own factor, in [`Buffer::DecayFactors`](super::Buffer::DecayFactors): 0 for those that do
    /// not decay. Otherwise all factors are 1.
    pub by_parameter: bool,
}

impl WeightDecay {
    /// The same decay for every parameter.
    pub fn uniform(rate: f32) -> WeightDecay {
        WeightDecay { rate, by_parameter: false }
    }
}

/// Elements of the flat state buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateSize {
    /// Gradients, each slot of the optimiser, and the decay factors.
    pub trainable: usize,
    /// Parameters and their moving average: the trainable ones and the running statistics.
    pub total: usize,
    /// Slots of the optimiser; none for inference.
    pub slots: usize,
    /// Whether each parameter has a factor of the weight decay.
    pub decay_factors: bool,
}

impl StateSize {
    /// With room for any optimiser and decay.
    pub fn new(trainable: usize, total: usize) -> StateSize {
        StateSize { trainable, total, slots: MOST_SLOTS, decay_factors: true }
    }
}
