//! What the tests share: values from names, the f64 oracle, one comparison for every pass, the golden files, a GPU
//! that is none.
//!
//! Each file of `tests/` is a program of its own and uses a part of this.
#![allow(dead_code)]

pub mod fixture;
pub mod formula;
pub mod golden;
pub mod host_gpu;
pub mod reference;
