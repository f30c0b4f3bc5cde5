//! The process's view of its machine: clocks and disk room.
//!
//! Absent on purpose: other nodes, shards and the cluster. Nothing here knows what a shard is.

pub(crate) mod clock;
pub(crate) mod clocks;
pub(crate) mod disk;
