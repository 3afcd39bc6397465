//! Accuracy and loss of weights over a split, during training and of a checkpoint on its own; and what a checkpoint says
//! of image files.

pub mod classify;
pub mod details;
pub mod evaluate;
pub mod evaluator;
pub mod heat_map;
pub mod whole;
