//! The data path: what `effnet-pack` writes, what the loader hands out, and damaged bytes.

mod damage;
#[path = "../common/data_support.rs"]
mod data_support;
mod loader;
mod memory;
mod pack_cli;
