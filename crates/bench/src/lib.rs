//! A load generator for KV Connect servers, Meridian's or any other.
//!
//! A run is a list of cells: one operation, over one HTTP version, with one number of connections. In
//! a cell every connection is a closed loop with one request in flight.
//!
//! | module | holds |
//! |---|---|
//! | [`options`] | the command line |
//! | [`endpoint`], [`metadata`], [`target`] | where requests go, learned by the metadata exchange |
//! | [`link`] | one connection (HTTP/1.1), or a share of one (HTTP/2) |
//! | [`key_space`], [`value`], [`bodies`], [`operation`] | keys, values, the encoded requests, what counts as a success |
//! | [`worker`], [`cell`], [`run`] | the closed loop, one cell of them, the whole run |
//! | [`tally`], [`report`], [`table`] | what was counted, as JSON, as Markdown |
//!
//! What always holds:
//! - An operation is counted only if its answer was decoded and says success. Everything else is an
//!   error: a status, a transport failure, no answer in time, a conflict, a key that is missing, a
//!   strong read whose answer says that it is not strong.
//! - An operation counts for throughput if it finished within the measured time. Latencies also
//!   hold what was in flight when that time ended, so that a stall at the end shows.
//! - Everything is bounded: each request, each cell, the connections, the key space.
//!
//! Absent on purpose: starting servers, TLS, retries of single requests, open-loop load.

pub mod bodies;
pub mod cell;
pub mod endpoint;
pub mod error;
pub mod key_space;
pub mod link;
pub mod load;
pub mod metadata;
pub mod operation;
pub mod options;
pub mod random;
pub mod report;
pub mod run;
pub mod table;
pub mod tally;
pub mod target;
pub mod value;
pub mod worker;
