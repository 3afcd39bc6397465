//! What an EfficientNet is, with no word about how it is computed: the family's table, the layers of one
//! member, and the one table that lists every tensor of its state.

pub mod architecture;
pub mod family;
pub mod initialise;
pub mod params;
pub mod summary;
pub mod weights;

pub use architecture::{Architecture, BatchNormConfig, Block, ModelError, Padding, Window};
pub use family::Variant;
pub use params::{Entry, ParamTable, Role};
