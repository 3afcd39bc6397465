//! The test kit: values from names, the f64 oracle, one comparison for all passes, the golden files, small sets, networks
//! and runs, programs and ranks, and GPUs: the host harness, and a real one.
//!
//! Each folder of `tests/` is a program and uses a part of this; `benches/` takes single files.
#![allow(dead_code)]

pub mod buffers;
pub mod data;
pub mod fixture;
pub mod formula;
pub mod golden;
pub mod gpu;
pub mod host_gpu;
pub mod network;
pub mod programs;
pub mod ranks;
pub mod reference;
pub mod shared_folder;
pub mod stand_in;
pub mod training;
pub mod trial;
