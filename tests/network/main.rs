//! Whole networks, without the training loop: golden values, steps on the CUDA engine, memory plans, traffic.

mod buckets;
mod class_map;
#[path = "../common/mod.rs"]
mod common;
mod cuda_ranks;
mod cuda_step;
mod frozen;
mod golden;
mod memory_plan;
mod names;
mod onnx;
mod packed;
mod recompute;
mod rewrite;
mod traffic;
