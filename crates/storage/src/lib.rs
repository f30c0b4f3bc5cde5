//! Storage of a node: the logs of its Raft groups, the batches it follows, and the state of its
//! shards.
//!
//! | module | what it holds |
//! |---|---|
//! | `engine` | the key-value engine below all else, as a trait |
//! | `rocks`, `memory` | RocksDB, and its in-memory twin |
//! | `hooked`, `watched` | engines for tests: with hooks around calls, and noting waits for a disk |
//! | `schema` | every stored key, and the values of state |
//! | `group_log`, `record` | the log of one group, and its records |
//! | `shipped_log` | what a node took of a shard as a replica |
//! | `syncer` | the thread that makes logged writes durable |
//! | `high_water` | how far logs had certainly been durable, in a file of its own |
//! | `shard_state`, `state_read` | the state of a shard, and reads of it |
//! | `snapshot` | whole states, as they are sent and filled |
//! | `digest`, `refusals` | what nodes compare, and what they did not store |
//! | `forgotten` | what compactions may drop |
//! | `error` | why storage could not, and how a process ends that must not go on |
//!
//! Invariants:
//! - A log record is readable once appended, and durable once [`Syncer`] has called back.
//! - State is written in one atomic write with the position it reflects, and sequences are
//!   contiguous, also from one epoch to the next: a gap stops the process.
//! - State is not in the write-ahead log; what was not flushed is applied again from the log, so a
//!   log is purged only up to what [`ShardState::flush`] returned.
//! - An I/O error on the log, or bytes that fail their checksum, stop the process. Nothing is
//!   retried.
//!
//! Absent on purpose: Raft (see `meridian-consensus`), evaluation (`meridian-txn`), networks.

mod digest;
mod engine;
mod error;
mod forgotten;
mod group_log;
mod high_water;
mod hooked;
mod memory;
mod record;
mod refusals;
mod rocks;
pub mod schema;
mod shard_state;
mod shipped_log;
mod snapshot;
mod state_read;
mod syncer;
mod watched;

pub use digest::Digest;
pub use engine::{Durability, Effort, Engine, EngineSnapshot, Scan, Scanned, Visit, WriteBatch};
pub use error::{StorageError, abort_soon, fatal, or_fatal};
pub use forgotten::Forgotten;
pub use group_log::GroupLog;
pub use high_water::{HighWater, MemberMark};
pub use hooked::{Call, HookedEngine, Hooks};
pub use memory::MemoryEngine;
pub use refusals::Refusals;
pub use rocks::{RocksEngine, RocksOptions};
pub use schema::{GroupId, LogMark, RecordKind};
pub use shard_state::{
    Applied, AppliedMark, Expired, LogSubscription, QueuedMessage, RaftApplied, Replace,
    RequestsSoFar, ShardState, StateAt, StateChange, StoredSize,
};
pub use shipped_log::{ShippedLog, StoredBatch, decode_batch};
pub use snapshot::{StagedState, StateRows, StateSnapshot};
pub use state_read::{ReadView, StateRead, Turn};
pub use syncer::Syncer;
pub use watched::{Watch, WatchedEngine};
