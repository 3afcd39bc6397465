//! The passes: what each fused operator reads and writes.
//!
//! A pass is one sweep over the memory it names. Notation, per MBConv block, for rows m = (image, pixel) and
//! channels c: x is the narrow input, y1 = x·W1ᵀ (wide), z1 = BN1(y1), a1 = silu(z1), y2 = depthwise(a1)
//! (wide), z2 = BN2(y2), a2 = silu(z2), s = mean of a2 over the image, gate = sigmoid(We·silu(Wr·s + br) + be),
//! y3 = (a2·gate)·W3ᵀ (narrow), out = BN3(y3)·keep + x.
//!
//! Only *raw* convolution outputs are stored (y1, y2, y3). Normalisation, activation and gate are applied
//! while loading, statistics are taken while storing. Gradients are named after what they are the gradient
//! of: `du` is the gradient at a batch norm's output (before γ), `da` at the projection's input a2·gate.
//! With ŷ = (y−μ)·r and M rows, batch norm's backward is dy = γ·r·(du − Σdu/M − ŷ·Σ(du·ŷ)/M): the two sums
//! are always taken by the pass that makes `du`, the formula is always applied by the pass that loads it.
//!
//! All activations are NHWC, that is [rows, channels] matrices. Weights are in PyTorch's order. Gradients of
//! parameters are *added* to the gradient buffer, so that micro-batches accumulate.

use super::tensor::{Param, Tensor};
use crate::model::Window;

/// Where a batch norm's mean and variance come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// From the batch, taken in the epilogue of the pass that stores y; running statistics move with it.
    Batch,
    /// From the running statistics, by [`super::Ops::batch_norm_inference`] before the forward pass.
    Running,
}

/// A batch norm over `rows` values of each channel, or over those of all `ranks` together.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    pub channels: usize,
    /// M: images × pixels, on this rank.
    pub rows: usize,
    /// Ranks whose rows, equally many on each, have their statistics taken together, and the sums of the backward pass
    /// too: then M is `rows`·`ranks`. 1 keeps to this rank's own.
    pub ranks: usize,
    pub weight: Param,
    pub bias: Param,
    pub running_mean: Param,
    pub running_var: Param,
    /// Share of the new batch in the running statistics.
    pub momentum: f32,
    pub eps: f32,
    pub statistics: Statistics,
    /// [4, C]: mean μ, r = 1/√(variance + eps) (biased variance), scale = γ·r, shift = β − μ·scale.
    pub coefficients: Tensor,
    /// [2, C]: Σdu and Σ(du·ŷ). The pass that fills it adds both to the gradients of β and γ.
    pub sums: Tensor,
}

/// A tiny dense layer of the squeeze-excite: weight [outputs, inputs], bias [outputs].
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    pub weight: Param,
    pub bias: Param,
    pub inputs: usize,
    pub outputs: usize,
}

/// Image [N, R, R, 3] → y [N, P, P, C] with batch statistics. Weight [C, 3, k, k].
#[derive(Clone, Copy, Debug)]
pub struct StemForward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub image: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

/// The stem's weight gradient: dy from `du` (batch norm backward while loading), no image gradient.
#[derive(Clone, Copy, Debug)]
pub struct StemBackward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub image: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
    pub du: Tensor,
}

/// Pointwise convolution of a materialised input: x [M, K] → y [M, C] with statistics. Weight [C, K].
/// Serves the blocks' expansions and the head's convolution.
#[derive(Clone, Copy, Debug)]
pub struct ExpandForward {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

/// What a pass that completes a narrow gradient takes along for the batch norm that ended the block before:
/// with du = keep·dx it fills `bn.sums` (and the gradients of γ and β).
#[derive(Clone, Copy, Debug)]
pub struct PreviousBlock {
    /// y3 of the previous block, [M, C].
    pub y: Tensor,
    pub bn: BatchNorm,
    /// [N], the previous block's stochastic-depth factors; none means all one.
    pub keep: Option<Tensor>,
    /// Rows per image, to find a row's factor.
    pub pixels: usize,
}

/// dx = dy·W (+ the shortcut's gradient), dW += dyᵀ·x, with dy from `du` and y by batch norm backward.
#[derive(Clone, Copy, Debug)]
pub struct ExpandBackward {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
    pub du: Tensor,
    pub dx: Tensor,
    /// Gradient at the block's output, where the block has a shortcut: added to dx unscaled.
    pub shortcut: Option<Tensor>,
    pub previous: PreviousBlock,
}

/// Depthwise convolution: y [N, P, P, C] from a = silu(BN(x)), or from x itself where `input_bn` is none
/// (a first-stage block after the first). Padding is zero *after* the activation. Weight [C, 1, k, k].
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseForward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub x: Tensor,
    pub input_bn: Option<BatchNorm>,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

/// What the gradient at the depthwise convolution's input becomes.
#[derive(Clone, Copy, Debug)]
pub enum DepthwiseInput {
    /// a = silu(BN(x)): writes du = da·silu'(z) and fills the sums of this batch norm.
    Normalised(BatchNorm),
    /// a = x, the block's own input: writes dx = da (+ the shortcut's gradient).
    Identity { shortcut: Option<Tensor>, previous: PreviousBlock },
}

/// Backward of BN2 and silu while loading (du2 = (da·gate + squeeze gradient)·silu'(z2)), then of the depthwise
/// convolution: data and weights in one sweep. `dx` is what [`DepthwiseInput`] says.
#[derive(Clone, Copy, Debug)]
pub struct DepthwiseBackward {
    pub images: usize,
    pub window: Window,
    pub channels: usize,
    pub x: Tensor,
    pub input: DepthwiseInput,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// Gradient at a2·gate, [N, P, P, C].
    pub da: Tensor,
    /// [N, C].
    pub gate: Tensor,
    /// [N, C], ∂L/∂s divided by the pixels.
    pub squeeze_gradient: Tensor,
    pub dx: Tensor,
}

/// s = mean of silu(BN(y)) over the pixels, then the two dense layers: gate [N, C].
#[derive(Clone, Copy, Debug)]
pub struct SqueezeForward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// s, [N, C].
    pub squeezed: Tensor,
    pub reduce: Dense,
    /// Wr·s + br before its silu, [N, S].
    pub hidden: Tensor,
    pub expand: Dense,
    /// [N, C].
    pub gate: Tensor,
}

/// From the five sums of [`ProjectBackward`]: gradients of both dense layers, the squeeze gradient d, and the
/// sums of BN2: Σdu2 = Σₙ(gate·S1 + d·S2), Σdu2·ŷ2 = Σₙ(gate·S3 + d·S4). No pass over wide tensors.
#[derive(Clone, Copy, Debug)]
pub struct SqueezeBackward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    /// BN2, whose `sums` this fills.
    pub bn: BatchNorm,
    pub squeezed: Tensor,
    pub reduce: Dense,
    pub hidden: Tensor,
    pub expand: Dense,
    pub gate: Tensor,
    /// [5, N, C], see [`ProjectBackward`].
    pub five_sums: Tensor,
    /// Written: d = ∂L/∂s / pixels, [N, C].
    pub squeeze_gradient: Tensor,
}

/// y = (silu(BN(x))·gate)·Wᵀ with statistics: x = y2 [N·P, K] → y = y3 [N·P, C]. Weight [C, K].
#[derive(Clone, Copy, Debug)]
pub struct ProjectForward {
    pub images: usize,
    pub pixels: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub input_bn: BatchNorm,
    /// [N, K].
    pub gate: Tensor,
    pub weight: Param,
    pub y: Tensor,
    pub bn: BatchNorm,
}

/// With dy3 from `dout`·keep by BN3's backward while loading and A = silu(BN2(x))·gate recomputed:
/// da = dy3·W, dW += dy3ᵀ·A, and per image and channel, summed over the pixels,
/// S0 = Σ da·a2, S1 = Σ da·silu'(z2), S2 = Σ silu'(z2), S3 = Σ da·silu'(z2)·ŷ2, S4 = Σ silu'(z2)·ŷ2.
#[derive(Clone, Copy, Debug)]
pub struct ProjectBackward {
    pub images: usize,
    pub pixels: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub x: Tensor,
    pub input_bn: BatchNorm,
    pub gate: Tensor,
    pub weight: Param,
    pub y: Tensor,
    /// BN3, its `sums` already filled by the pass that made `dout`.
    pub bn: BatchNorm,
    /// Gradient at the block's output, [N·P, C].
    pub dout: Tensor,
    /// [N]; none means all one.
    pub keep: Option<Tensor>,
    pub da: Tensor,
    /// [5, N, K].
    pub five_sums: Tensor,
}

/// out = BN(y)·keep (+ shortcut). A dropped image (keep 0) passes its shortcut only.
#[derive(Clone, Copy, Debug)]
pub struct ResidualForward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// [N]; none means all one.
    pub keep: Option<Tensor>,
    pub shortcut: Option<Tensor>,
    pub out: Tensor,
}

/// pooled = mean of silu(BN(y)) over the pixels; logits = (pooled·dropout)·Wᵀ + b.
#[derive(Clone, Copy, Debug)]
pub struct HeadForward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub classes: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    /// [N, C].
    pub pooled: Tensor,
    /// Factors [N, C], 0 or 1/(1−rate); none means no dropout.
    pub dropout: Option<Tensor>,
    pub classifier: Dense,
    /// [N, classes].
    pub logits: Tensor,
}

/// Cross-entropy with the target (1−ε)·onehot + ε/classes: losses [N], and dlogits = (softmax − target)·scale.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub images: usize,
    pub classes: usize,
    pub logits: Tensor,
    /// [N] of u32.
    pub labels: Tensor,
    pub smoothing: f32,
    /// One over the images of the whole step, so that micro-batches and ranks add up to the mean.
    pub scale: f32,
    pub losses: Tensor,
    pub dlogits: Tensor,
}

/// Classifier gradients, then du = dpooled/pixels·silu'(z) [N·P, C] with the sums of the head's batch norm.
#[derive(Clone, Copy, Debug)]
pub struct HeadBackward {
    pub images: usize,
    pub pixels: usize,
    pub channels: usize,
    pub classes: usize,
    pub y: Tensor,
    pub bn: BatchNorm,
    pub pooled: Tensor,
    pub dropout: Option<Tensor>,
    pub classifier: Dense,
    pub dlogits: Tensor,
    pub du: Tensor,
}

/// Stochastic-depth factors of one block, [N]: 0 with probability `rate`, else 1/(1−rate).
#[derive(Clone, Copy, Debug)]
pub struct DropPathMask {
    pub images: usize,
    pub block: u32,
    pub rate: f32,
    pub keep: Tensor,
}

/// Dropout factors of the pooled features, [N, C]: 0 with probability `rate`, else 1/(1−rate).
#[derive(Clone, Copy, Debug)]
pub struct DropoutMask {
    pub images: usize,
    pub channels: usize,
    pub rate: f32,
    pub mask: Tensor,
}

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
