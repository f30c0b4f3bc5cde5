//! What the end-to-end tests are made of: a cluster of real processes, and clients for it.
//!
//! - [`Cluster`] runs one `meridian serve` process for each node on ports and in a folder of its own, and
//!   kills, pauses, restarts and wipes them. `ports` keeps clusters that run side by side apart.
//! - [`kv_connect`] is a KV Connect client that hides nothing: no retry, every answer as it came.
//! - [`clients`] runs the real clients' programs, which lie in the folder `clients` beside `src`.
//! - [`workload`] makes client histories for `meridian-checker`.
//! - [`poll`] waits on conditions, with a deadline. Nothing here sleeps for any other purpose.
//!
//! What always holds here: nothing knows the inside of a node. A cluster is seen through its binary, its
//! configuration files, its ports and its signals. Failures panic: this crate is for tests only.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

pub mod clients;
pub mod cluster;
pub mod kv_connect;
pub mod poll;
mod ports;
mod process;
pub mod workload;

pub use cluster::{Cluster, ClusterOptions, READ_ONLY_TOKEN, TOKEN};
pub use kv_connect::KvClient;
