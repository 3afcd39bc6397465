//! NVIDIA's driver and NCCL as the crate calls them, on libraries without a GPU that stand in for both.
//!
//! They take the machine's driver's place in this process, so these tests have a program of their own.

#[path = "../common/mod.rs"]
mod common;
mod fake;
mod gpu;
mod ranks;
mod stand_in;
