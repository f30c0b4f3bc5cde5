//! What the end-to-end tests are made of: a cluster of real processes, and clients for it.
//!
//! - [`Cluster`] runs one `meridian serve` process for each node, and kills, pauses, restarts and
//!   wipes them. It is that of `meridian-drills`, as are [`kv_connect`], a KV Connect client that
//!   hides nothing, and what [`workload`] is made of; here a failure of any of them is a failure of
//!   the test.
//! - [`clients`] runs the real clients' programs, which lie in the folder `clients` beside `src`.
//! - [`attack`] is what somebody does who means harm, as a program, and a client that suffers or
//!   not.
//! - [`poll`] waits on conditions, with a deadline. Nothing here sleeps for any other purpose.
//!
//! What always holds here: nothing knows the inside of a node. A cluster is seen through its
//! binary, its configuration files, its ports and its signals. Failures panic: this crate is for
//! tests only.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]
pub mod attack;
pub mod clients;
pub mod cluster;
pub mod poll;
pub mod workload;
mod writer;

pub use cluster::{Cluster, ClusterOptions};
pub use meridian_drills::{KvClient, READ_ONLY_TOKEN, TOKEN, kv_connect};
pub use writer::Writer;
