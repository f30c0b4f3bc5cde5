//! A load generator for KV Connect servers, Meridian's or any other, and for etcd.
//!
//! A run is a list of cells: one operation, over one HTTP version, with one number of connections.
//! In a cell every connection has one request in flight: the next one follows at once (a closed
//! loop), or when it is due at a fixed rate (an open loop).
//!
//! | module | contents |
//! |---|---|
//! | [`options`] | the command line |
//! | [`session`] | where requests go, learned by metadata exchanges |
//! | [`key_space`], [`value`], [`bodies`], [`operation`] | keys, values, encoded requests, conditions of success |
//! | [`etcd`] | etcd's requests and answers |
//! | [`check_and_set`], [`work`] | reading and setting until the version is unchanged; a worker's operation |
//! | [`random`], [`error`] | the generator of random numbers; errors, with texts for the command line |
//! | [`schedule`] | when operations of an open loop are due |
//! | [`worker`], [`cell`], [`run`] | the loop, one cell of them, the whole run |
//! | [`load`], [`cpu`] | loading the key space; the CPU time of the servers' processes |
//! | [`tally`], [`report`], [`table`] | the counts, as JSON, as Markdown |
//! | [`queue`] | `meridian-bench-queue`: messages a second through a queue |
//! | [`watches`] | `meridian-bench-watches`: what open watches take, and how fast changes reach them |
//! | [`program`] | the frame of these two programs |
//!
//! Invariants:
//! - An operation is counted only if its answer was decoded and says success. Everything else is an
//!   error: a status, a transport failure, no answer in time, a key that is missing, a strong read
//!   whose answer says that it is not strong. But a conflict of an operation that reads and then
//!   checks is none: the operation begins anew, its conflicts are counted, and its latency holds
//!   all its attempts.
//! - An operation counts for throughput if it finished within the measured time. Latencies also
//!   cover operations in flight when that time ended, so that a stall at the end shows.
//! - An open loop's latencies count from when an operation was due, even if it was answered late or
//!   found no free connection (`unsent`): delays by a stalled server are not left out.
//! - Everything is bounded: each request, each cell, the connections, the key space.
//!
//! Absent on purpose: starting servers, TLS, retries of single requests.

pub mod bodies;
pub mod cell;
pub mod check_and_set;
pub mod cpu;
pub mod error;
pub mod etcd;
pub mod key_space;
pub mod load;
pub mod operation;
pub mod options;
pub mod program;
pub mod queue;
pub mod random;
pub mod report;
pub mod run;
pub mod schedule;
pub mod session;
pub mod table;
pub mod tally;
pub mod value;
pub mod watches;
pub mod work;
pub mod worker;
