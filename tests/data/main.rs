//! The data path: what `effnet-pack` writes, what the loader hands out, and damaged bytes.

mod codec;
#[path = "../common/mod.rs"]
mod common;
mod damage;
mod loader;
mod memory;
mod pack_cli;
mod sampling;
