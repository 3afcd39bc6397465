//! EfficientNet B0–B7: packing, training, evaluation and export with fused operators.
//!
//! The crate is a tower; every import points down.
//!
//! | floor | module | holds |
//! |---|---|---|
//! | 5 | [`cli`] | flags → a validated recipe |
//! | 4 | [`train`] | the loop, evaluation, schedule, checkpoints, reports |
//! | 3 | [`network`] | stem, MBConv, head record their passes, forward and backward; rewrites of the record |
//! | 2 | [`ops`] | the fused operators: descriptions, one folder per device, the memory plan, the optimisers |
//! | 1 | [`model`], [`data`], [`parallel`] | the family and its tables; shards, packing, loading; ranks |
//! | 0 | [`files`], [`pixels`], [`labels`], [`random`] | durable files; images and labels on their way to a device; random numbers |
//! | 0 | [`names`], [`processors`] | the names of an enum's variants; where threads run |

pub mod cli;
pub mod data;
pub mod files;
pub mod host_bytes;
pub mod labels;
pub mod model;
pub mod names;
pub mod network;
pub mod ops;
pub mod parallel;
pub mod pixels;
pub mod processors;
pub mod random;
pub mod train;
