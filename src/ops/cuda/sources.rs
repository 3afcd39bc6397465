//! What the kernels' sources declare and launchers must know: argument structs, layouts of memory, sizes of blocks,
//! shapes of tiles.
//!
//! `build.rs` makes one module of each source in `kernels/`: `kernels/expand.cu` declares
//! `ARGUMENTS(ExpandForwardArguments, …)`, and its launcher in `expand.rs` uses
//! `sources::expand::ExpandForwardArguments`. `build/sources.rs` says which lines are read, and how.

#![allow(dead_code, unused_imports, reason = "launchers need only some of what the sources declare")]

use bytemuck::{Pod, Zeroable};

use super::arguments::{arguments, layout};
use super::gpu::Address;

/// In `kernels/image.cu`: the value of each byte, by channel.
pub type ImageTable = [f32; 768];
/// In `kernels/masks.cu`: of the masks of stochastic depth.
pub type MaskPointers = [Address; masks::MOST_MASKS];
pub type MaskLayers = [u32; masks::MOST_MASKS];
pub type MaskRates = [f32; masks::MOST_MASKS];

include!(concat!(env!("OUT_DIR"), "/sources.rs"));

#[cfg(test)]
#[path = "../../../build/sources.rs"]
mod reader;
