//! The words of Meridian: identities, positions, versionstamps, transactions, effects,
//! messages of queues, reports of shards, rights, levels of operators, and limits, also of what a log
//! is told.
//!
//! Invariant: a value of one of these types is well formed (a [`Versionstamp`] has ten bytes, a
//! [`DatabaseId`] sixteen). Absent on purpose: clocks, I/O, wire formats and any rule of
//! evaluation; those live in the crates below.

mod effect;
mod epoch_history;
mod id;
mod key_prefix;
mod level;
pub mod limits;
mod line_limit;
mod permissions;
mod position;
mod queue;
mod queue_name;
mod quotas;
mod read;
mod shard_report;
mod transaction;

pub use effect::{Batch, CommittedTransaction, Effect, Refusal};
pub use epoch_history::EpochHistory;
pub use id::{DatabaseId, InvalidId, NodeId, RequestId, ShardId};
pub use key_prefix::{InvalidKeyPrefix, KeyPrefix};
pub use level::{Level, NotALevel};
pub use line_limit::LineLimit;
pub use permissions::{Permission, Permissions, UnknownPermission};
pub use position::{Epoch, Position, Versionstamp};
pub use queue::{
    DeadLetter, Enqueue, InvalidMessageId, Message, MessageId, QueueEffect, QueueTotals,
    Settlement, Verdict,
};
pub use queue_name::{InvalidQueueName, QueueId, QueueName};
pub use quotas::{Quota, Quotas, UnknownQuota};
pub use read::{Consistency, Entry, ReadRange};
pub use shard_report::{CommitProgress, ShardReport};
pub use transaction::{
    Check, Mutation, MutationKind, SumBounds, Transaction, V8Format, Value, ValueEncoding,
    WriteOutcome,
};
