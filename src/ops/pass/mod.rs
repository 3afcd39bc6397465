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
//! are always taken by the pass that makes `du`, the formula is always applied by the pass that loads it. If μ and r are
//! those of the running statistics, dy = γ·r·du ([`BatchNorm::values`]).
//!
//! Training may begin at a later layer. Then the last backward pass is that of the first trained layer, which makes no
//! gradient at its input: what serves only this gradient is optional in the passes that can be the last.
//!
//! The passes of inference store BN and silu of their own output instead, on a device that
//! [asks for it](super::Device::applies_norms_on_store): a batch norm's coefficients are then known before its
//! convolution runs.
//!
//! All activations are NHWC, that is [rows, channels] matrices. Weights are in PyTorch's order. Gradients of
//! parameters are *added* to the gradient buffer, so that micro-batches accumulate.
//!
//! # One pass, one description
//!
//! The file of an operator holds the struct of each of its passes and, in [`Describe`], all that may be asked about
//! it: its name, its shape in words, and its [`Part`]s: tensors with their role, batch norms with what the pass does
//! to them, gradients, weights of products. The memory plan, the buckets of gradients, the profile, the search for
//! numbers that are not finite, the tests and the benchmarks all read these descriptions. A new pass is one file
//! here, and one line in [`for_each_pass`].

mod batch_norm;
mod depthwise;
mod expand;
mod expand_depthwise;
mod head;
mod masks;
mod parts;
mod project;
mod residual;
mod squeeze_excite;
mod stem;
mod update;

pub use batch_norm::{BatchNorm, BatchNormInference, NarrowGradient, PreviousBlock, Statistics};
pub use depthwise::{DepthwiseBackward, DepthwiseForward, DepthwiseInference, DepthwiseInput};
pub use expand::{ExpandBackward, ExpandForward};
pub use expand_depthwise::{ExpandDepthwiseBackward, ExpandDepthwiseForward, ExpandDepthwiseInference};
pub use head::{Dense, HeadBackward, HeadForward, Loss};
pub use masks::{DropPathMask, DropoutMask};
pub use parts::{Access, NormUse, Part, Parts, Role, Summed};
pub use project::{ProjectBackward, ProjectForward, ProjectInference};
pub use residual::ResidualForward;
pub use squeeze_excite::{SqueezeBackward, SqueezeForward, SqueezeInference};
pub use stem::{StemBackward, StemForward};
pub use update::Update;

use super::device::Device;
use super::tensor::{Param, Tensor};

/// When in a step a pass runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Before the gradients: masks, the forward passes, the loss.
    Forward,
    Backward,
    /// After all micro-batches.
    Update,
}

/// How a pass is called, and when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// Of the pass, for tables: "expand forward".
    pub name: &'static str,
    /// Of the operator, for messages that name a layer: "expand".
    pub operator: &'static str,
    pub direction: Direction,
}

/// All that a pass says about itself.
pub trait Describe {
    fn about(&self) -> About;
    /// What makes two passes of one name alike, in words: "802816×16→96". Empty where a network has one such pass.
    fn shape(&self) -> String {
        String::new()
    }
    /// Names each part once, to be read or changed.
    fn parts(&mut self, parts: &mut Parts);
}

/// Calls a macro with the names of all passes: the one list of them.
macro_rules! for_each_pass {
    ($macro:ident) => {
        $macro! {
            DropPathMask,
            DropoutMask,
            BatchNormInference,
            StemForward,
            ExpandForward,
            DepthwiseForward,
            DepthwiseInference,
            ExpandDepthwiseForward,
            ExpandDepthwiseInference,
            SqueezeForward,
            SqueezeInference,
            ProjectForward,
            ProjectInference,
            ResidualForward,
            HeadForward,
            Loss,
            HeadBackward,
            ProjectBackward,
            SqueezeBackward,
            DepthwiseBackward,
            ExpandBackward,
            ExpandDepthwiseBackward,
            StemBackward,
            Update,
        }
    };
}
pub(crate) use for_each_pass;

macro_rules! define {
    ($($pass:ident),* $(,)?) => {
        /// One pass to run.
        #[derive(Clone, Copy, Debug)]
        #[allow(clippy::large_enum_variant, reason = "a few hundred of them, made once")]
        pub enum Pass {
            $($pass($pass)),*
        }

        $(impl From<$pass> for Pass {
            fn from(pass: $pass) -> Pass {
                Pass::$pass(pass)
            }
        })*

        impl Pass {
            fn description(&self) -> &dyn Describe {
                match self {
                    $(Pass::$pass(pass) => pass),*
                }
            }

            fn description_mut(&mut self) -> &mut dyn Describe {
                match self {
                    $(Pass::$pass(pass) => pass),*
                }
            }
        }
    };
}
for_each_pass!(define);

impl Pass {
    /// See [`About`].
    pub fn about(&self) -> About {
        self.description().about()
    }

    /// See [`Describe::shape`].
    pub fn shape(&self) -> String {
        self.description().shape()
    }

    /// The name, for tables.
    pub fn name(&self) -> &'static str {
        self.about().name
    }

    /// Calls `visit` with every part; what it changes is changed in the pass.
    pub fn parts_mut(&mut self, visit: &mut dyn FnMut(Part)) {
        self.description_mut().parts(&mut Parts::new(visit));
    }

    /// Calls `visit` with every part.
    pub fn parts(&self, visit: &mut dyn FnMut(Part)) {
        // A copy, so that one description serves reading and changing.
        let mut copy = *self;
        copy.parts_mut(visit);
    }

    /// Calls `visit` with every tensor the pass touches, and whether the pass writes it before reading it.
    pub fn tensors(&self, visit: &mut dyn FnMut(Tensor, bool)) {
        self.parts(&mut |part| {
            if let Part::Tensor { tensor, access, .. } = part {
                visit(*tensor, access == Access::Write);
            }
        });
    }

    /// The tensors that the pass writes, in the order in which they are named.
    pub fn written(&self) -> Vec<Tensor> {
        let mut written = Vec::new();
        self.tensors(&mut |tensor, writes| {
            if writes {
                written.push(tensor);
            }
        });
        written
    }

    /// Calls `visit` with every parameter whose gradient the pass adds to.
    pub fn gradients(&self, visit: &mut dyn FnMut(Param)) {
        self.parts(&mut |part| {
            if let Part::Gradient(param) = part {
                visit(param);
            }
        });
    }

    /// Bytes of the tensors that the pass names, each counted once: what it must move through memory at least, but
    /// for the weights.
    pub fn bytes(&self, device: &impl Device) -> u64 {
        let mut bytes = 0;
        self.tensors(&mut |t, _| bytes += (t.elements * device.element_bytes(t.kind)) as u64);
        bytes
    }
}
