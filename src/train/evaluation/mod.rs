//! Accuracy and loss of weights over a split, during training and of a checkpoint on its own.

pub mod evaluate;
pub mod evaluator;
