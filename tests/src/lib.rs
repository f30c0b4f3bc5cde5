//! The parts of the end-to-end tests: a cluster of real processes, and clients for it.
//!
//! - [`Cluster`] runs one `meridian serve` process for each node, and kills, pauses, restarts and
//!   wipes them. It wraps the cluster of `meridian-drills`, which also has [`kv_connect`], a KV
//!   Connect client that hides nothing, and the parts of [`workload`]; here every failure fails the
//!   test.
//! - [`clients`] runs the real clients' programs, which lie in the folder `clients` beside `src`.
//! - [`attack`] holds all known attacks as a program, and a client that may suffer from them.
//! - [`as_node`] makes calls with the certificate of a node or a gateway.
//! - [`poll`] waits on conditions, with a deadline. Nothing here sleeps for any other purpose.
//!
//! Invariants: nothing knows the inside of a node. A cluster is seen through its binary, its
//! configuration files, its ports and its signals. Failures panic: this crate is for tests only.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

pub mod as_node;
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
