//! What this machine gives the process: clocks, disk room, open files and ports.
//!
//! Absent on purpose: other nodes, shards and the cluster. Nothing here knows what a shard is.

pub(crate) mod clock;
pub(crate) mod clocks;
pub(crate) mod disk;
pub(crate) mod open_files;
pub(crate) mod ports;
