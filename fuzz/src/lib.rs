//! Parts that the fuzz targets share. Each target has the allocator of this crate, which counts.

mod held;
mod stable;
pub mod told;
pub mod written;

pub use held::{times, within};
pub use stable::stable;
