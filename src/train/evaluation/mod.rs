//! Accuracy and loss of weights over a split, during training and of a checkpoint on its own.

pub mod details;
pub mod evaluate;
pub mod evaluator;
pub mod whole;
