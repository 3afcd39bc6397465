//! Runs: how they start, stop, go on, fail and are evaluated, within this process and as the programs.

mod checkpoint;
#[path = "../common/mod.rs"]
mod common;
mod cuda_refusals;
mod cuda_training;
#[path = "../common/data_support.rs"]
mod data_support;
mod demo;
mod determinism;
mod earlier;
mod evaluate;
mod memory;
mod not_finite;
mod ranks;
mod resume;
#[path = "../driver/stand_in.rs"]
mod stand_in;
mod start;
mod train_cli;
#[path = "../common/train_support.rs"]
mod train_support;
