//! The training loop, from the preparation of a run to what follows each step.

mod after_step;
pub mod engine;
pub mod not_finite;
pub mod run;
pub mod schedule;
pub(super) mod session;
