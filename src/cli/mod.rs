//! From flags to what the programs do.

pub mod eval;
