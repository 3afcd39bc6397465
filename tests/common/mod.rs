//! The kit of the tests: values from names, the f64 oracle, one comparison for all passes, the golden files, and GPUs: the
//! host harness, and a real one.
//!
//! Each folder of `tests/` is a program and uses a part of this. What tests of data and of whole runs need is in
//! `data_support.rs` and `train_support.rs`, without the harness.
#![allow(dead_code)]

pub mod fixture;
pub mod formula;
pub mod golden;
pub mod gpu;
pub mod host_gpu;
pub mod rank_support;
pub mod ranks;
pub mod reference;
