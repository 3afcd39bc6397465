//! The operators: each against the f64 oracle, on the CPU, on the kernels that the host harness runs, and on a GPU.
//!
//! An operator's tests are in the file with its name: `cargo test --test operators depthwise`. `check_gpu` runs this program
//! once more, as the script for a machine with a GPU does.

mod batch_norm;
mod check_gpu;
#[path = "../common/mod.rs"]
mod common;
mod depthwise;
mod expand;
mod expand_depthwise;
mod frozen;
mod harness;
mod head;
mod image;
mod masks;
mod optimiser;
mod oracle;
mod project;
mod reduction;
mod residual;
mod squeeze_excite;
mod stem;
