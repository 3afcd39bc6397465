//! What an EfficientNet is, and nothing about how it is computed: the family's table, the layers of one member, and the
//! one table that lists every tensor of its state. [`formats`] reads and writes its weights.

pub mod architecture;
pub mod family;
pub mod formats;
pub mod initialise;
pub mod params;
pub mod summary;

pub use architecture::{Architecture, BatchNormConfig, Block, ModelError, Padding, Window};
pub use family::Variant;
pub use params::{Entry, ParamRole, ParamTable};
