//! How the log and whole states travel between nodes, and how far each node has come.
//!
//! Absent on purpose: the roles of a shard (`shard`), which use this, and the rules of shipping
//! (`meridian-shipping`).

pub(crate) mod carry_over;
pub(crate) mod catch_up;
pub(crate) mod comparison;
pub(crate) mod compression;
pub(crate) mod progress;
pub(crate) mod shipped_batch;
pub(crate) mod snapshot_transfer;
pub(crate) mod staging;
pub(crate) mod state_chunk;
pub(crate) mod wire;
