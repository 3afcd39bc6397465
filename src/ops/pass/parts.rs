//! What a pass consists of, in the words of a description: [`Parts`] is handed to [`Describe::parts`], which names
//! each tensor, batch norm, gradient and weight through its methods.
//!
//! [`Describe::parts`]: super::Describe::parts

use super::{BatchNorm, Dense, Statistics};
use crate::ops::tensor::{Kind, Param, Tensor};

/// What a tensor is to the network, from which follows how it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The image, a raw convolution output or a block's output: NHWC.
    Activation,
    /// The gradient at an activation: NHWC.
    Gradient,
    /// Of a batch norm, or partial sums that several of its parts are made of.
    Statistic,
    /// What squeeze-excite computes of an image: [N, channels].
    Gate,
    /// What the classifier computes of an image, and the gradient of it.
    Classifier,
    /// Factors of stochastic depth or dropout.
    Mask,
    /// The classes that are right, and what else the loss is told of them.
    Label,
}

impl Role {
    /// How elements of this role are stored.
    pub fn kind(self) -> Kind {
        match self {
            Role::Activation | Role::Gradient => Kind::Activation,
            Role::Statistic | Role::Gate | Role::Classifier | Role::Mask => Kind::Float,
            Role::Label => Kind::Index,
        }
    }
}

/// What a pass does to a tensor first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// The gradient at a batch norm's output, over whose rows the norm's sums are taken.
#[derive(Clone, Copy, Debug)]
pub struct Summed {
    /// What is normalised, [M, C].
    pub y: Tensor,
    /// [M, C].
    pub gradient: Tensor,
    /// [N], what the rows of an image are multiplied by first; none means one.
    pub keep: Option<Tensor>,
    /// Rows of an image.
    pub pixels: usize,
}

/// What a pass does to a batch norm.
#[derive(Clone, Copy, Debug)]
pub enum NormUse {
    /// Makes the coefficients of the running statistics.
    Inference,
    /// Stores the raw output y and, where they are the batch's, takes its statistics.
    TakesStatistics { y: Tensor },
    /// Applies it while loading, or to its own output.
    Applies,
    /// Applies its backward formula while loading.
    AppliesBackward,
    /// Takes the sums of its backward formula, and the gradients of γ and β: over a gradient that it stores, or, with
    /// none, from other sums.
    TakesSums(Option<Summed>),
}

/// One part of a pass.
#[derive(Debug)]
pub enum Part<'a> {
    Tensor {
        tensor: &'a mut Tensor,
        role: Role,
        access: Access,
    },
    /// A batch norm. The tensors of it that the pass touches are parts of their own.
    Norm {
        bn: &'a mut BatchNorm,
        used: NormUse,
    },
    /// A parameter whose gradient the pass adds to.
    Gradient(Param),
    /// The weight of a matrix product. A device may keep such weights a second time, in a form of its own.
    Product(Param),
}

/// Where a description names its parts, each once.
pub struct Parts<'a>(&'a mut dyn FnMut(Part));

impl<'a> Parts<'a> {
    pub fn new(visit: &'a mut dyn FnMut(Part)) -> Parts<'a> {
        Parts(visit)
    }

    /// Any part, as it is.
    pub(super) fn part(&mut self, part: Part) {
        (self.0)(part);
    }

    /// A tensor that is read, and not written before.
    pub fn reads(&mut self, tensor: &mut Tensor, role: Role) {
        (self.0)(Part::Tensor { tensor, role, access: Access::Read });
    }

    /// The same of one that may be missing.
    pub fn may_read(&mut self, tensor: &mut Option<Tensor>, role: Role) {
        if let Some(tensor) = tensor {
            self.reads(tensor, role);
        }
    }

    /// A tensor whose contents before do not matter.
    pub fn writes(&mut self, tensor: &mut Tensor, role: Role) {
        (self.0)(Part::Tensor { tensor, role, access: Access::Write });
    }

    /// A gradient that is added to.
    pub fn gradient(&mut self, param: Param) {
        (self.0)(Part::Gradient(param));
    }

    /// The gradients of a dense layer.
    pub fn dense_gradients(&mut self, layer: &Dense) {
        self.gradient(layer.weight);
        self.gradient(layer.bias);
    }

    /// The weight of a matrix product.
    pub fn product(&mut self, weight: Param) {
        (self.0)(Part::Product(weight));
    }

    /// Coefficients that are made of the running statistics.
    pub fn norm_inference(&mut self, bn: &mut BatchNorm) {
        self.writes(&mut bn.coefficients, Role::Statistic);
        self.norm(bn, NormUse::Inference);
    }

    /// The raw output y, and its statistics where they are the batch's.
    pub fn output(&mut self, y: &mut Tensor, bn: &mut BatchNorm) {
        self.writes(y, Role::Activation);
        if bn.statistics == Statistics::Batch {
            self.writes(&mut bn.coefficients, Role::Statistic);
        }
        self.norm(bn, NormUse::TakesStatistics { y: *y });
    }

    /// A batch norm that is applied while loading, or to the pass's own output.
    pub fn applies(&mut self, bn: &mut BatchNorm) {
        self.reads(&mut bn.coefficients, Role::Statistic);
        self.norm(bn, NormUse::Applies);
    }

    /// A batch norm whose backward formula is applied while loading.
    pub fn applies_backward(&mut self, bn: &mut BatchNorm) {
        self.reads(&mut bn.coefficients, Role::Statistic);
        self.reads(&mut bn.sums, Role::Statistic);
        self.norm(bn, NormUse::AppliesBackward);
    }

    /// A batch norm whose sums are taken over a gradient that the pass stores.
    pub fn sums(&mut self, bn: &mut BatchNorm, of: Summed) {
        self.reads(&mut bn.coefficients, Role::Statistic);
        self.takes_sums(bn, Some(of));
    }

    /// A batch norm whose sums are made of other sums.
    pub fn sums_of_sums(&mut self, bn: &mut BatchNorm) {
        self.takes_sums(bn, None);
    }

    fn takes_sums(&mut self, bn: &mut BatchNorm, of: Option<Summed>) {
        self.writes(&mut bn.sums, Role::Statistic);
        self.gradient(bn.weight);
        self.gradient(bn.bias);
        self.norm(bn, NormUse::TakesSums(of));
    }

    fn norm(&mut self, bn: &mut BatchNorm, used: NormUse) {
        (self.0)(Part::Norm { bn, used });
    }
}
