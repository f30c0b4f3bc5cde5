//! Groups of members in this process: real gRPC over loopback, the engine in memory, with crashes
//! that lose what was not durable.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests"
)]

mod between;
mod claims;
mod confirmation;
mod damage;
mod disk;
mod distance;
mod durability;
mod elections;
mod epochs;
mod forgotten;
mod large;
mod leases;
mod orphans;
mod proposals;
mod reads;
mod seal;
mod support;
mod voters;
mod wire;
