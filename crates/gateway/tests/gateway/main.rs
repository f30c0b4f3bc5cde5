//! The gateway's public face: real sockets and HTTP clients, over a database in memory.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "these are tests"
)]

mod audit;
mod changes;
mod connections;
mod data_path;
mod fairness;
mod gate;
mod logged;
mod messages;
mod metadata;
mod order;
mod queues;
mod quotas;
mod reply;
mod rights;
mod support;
mod tls;
mod watch;
mod watched;
