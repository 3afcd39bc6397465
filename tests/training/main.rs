//! Runs: how they start, stop, resume, fail and are evaluated, within this process and as the programs.

mod checkpoint;
mod classify;
#[path = "../common/mod.rs"]
mod common;
mod cuda_refusals;
mod cuda_training;
mod demo;
mod determinism;
mod earlier;
mod evaluate;
mod explain;
mod extend;
mod first_run;
mod frozen;
mod inputs;
mod log_files;
mod memory;
mod mixing;
mod not_finite;
mod precision;
mod presets;
mod ranks;
mod recipes;
mod report;
mod resume;
mod schedule;
mod sources;
mod start;
mod train_cli;
mod weights;
