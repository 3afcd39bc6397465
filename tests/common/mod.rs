//! What the tests share: values from names, the f64 oracle, one comparison for every pass, the golden files, GPUs: one
//! that is none, and a real one.
//!
//! Each file of `tests/` is a program of its own and uses a part of this.
#![allow(dead_code)]

pub mod fixture;
pub mod formula;
pub mod golden;
pub mod gpu;
pub mod host_gpu;
pub mod rank_support;
pub mod ranks;
pub mod reference;
