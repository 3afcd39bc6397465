//! Images from a folder to a batch.
//!
//! A dataset is packed once and read many times. Packing ([`pack`]) deals with everything unusual in image files
//! (broken ones, CMYK, palettes, rotations noted in EXIF), so that training meets only two kinds of sample: raw pixels
//! and plain JPEG. Both lie in shards ([`shard`]) that are mapped into memory instead of being read into it. Every
//! sample carries a checksum, so that damage is an error that names file and sample, never a wrong image.
//! `dataset.json` ([`dataset`]) lists the shards of a set.
//!
//! Loading is a pure function. Which sample stands at a position ([`sampler`]) and how it is cropped and mirrored
//! ([`augment`]) depend on the seed, the epoch and the sample alone. So the [`loader`] may use any number of threads,
//! and a resumed run sees the bytes that an uninterrupted run would have seen.

pub mod augment;
pub mod batch;
pub mod bench;
pub mod codec;
pub mod dataset;
pub mod demo;
mod error;
mod fingerprint;
pub mod idx;
pub mod loader;
mod normalise;
pub mod pack;
pub mod raw;
mod request;
pub mod sampler;
pub mod shard;
pub mod source;
mod split;
pub mod synthetic;

pub use augment::{CropMode, Policy, evaluate_image};
pub use batch::Batch;
pub use dataset::Dataset;
pub use error::DataError;
pub use loader::Loader;
pub use normalise::{Normalise, NormaliseBy};
pub use request::{Form, LoaderConfig};
pub use sampler::{Sampling, Share, Shuffle};
pub use source::Source;
pub use split::Split;
pub use synthetic::Synthetic;

pub use crate::pixels::BatchPixels;
