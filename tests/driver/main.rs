//! The calls of NVIDIA's driver and of NCCL, tested with stand-ins for both libraries that need no GPU.
//!
//! The stand-ins replace the machine's driver in this process, so these tests are a separate program.

#[path = "../common/mod.rs"]
mod common;
mod engine;
mod fake;
mod gpu;
mod ranks;
