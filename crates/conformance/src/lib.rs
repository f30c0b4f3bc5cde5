//! Meridian in one process, to be compared with its documentation and with the reference
//! implementation of KV Connect, the crate `denokv_sqlite`. For tests only.
//!
//! | module | what it holds |
//! |---|---|
//! | `shard` | [`Shard`]: the evaluation of transactions and the state, as a leader has them |
//! | `meridian` | [`Meridian`]: such a shard behind a gateway |
//! | [`document`] | the tables of a document |
//!
//! Invariants: everything between a request's bytes and an answer's is the code that ships. Absent
//! on purpose: logs, replication and routing, which change no answer; the clock: the time stands
//! still at [`NOW_MS`]; and the news of a watch after the first.

pub mod document;
mod meridian;
mod shard;

pub use meridian::{
    Catalogue, DATABASE, Meridian, OTHERS_TOKEN, PREFIX_TOKEN, READER_TOKEN, UNKNOWN_DATABASE,
    WRITER_TOKEN, whole,
};
pub use shard::{NOW_MS, Shard};
