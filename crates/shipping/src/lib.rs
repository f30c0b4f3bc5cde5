//! Ships a shard's committed log from its primary region to every replica: the protocol, without
//! I/O.
//!
//! | type | where it lives | what it decides |
//! |---|---|---|
//! | [`Receiver`] | one per shard on a node that is not a voter of it | what to connect to, persist, report |
//! | [`RelayElection`] | beside each receiver | whether this node is its region's relay, and whom to subscribe to |
//! | [`Sender`] | one per subscription, on the source | what to read and send, within a window |
//! | [`CommitHistory`] | one per shard on a source | lag of any replica in batches, bytes, milliseconds |
//! | [`retain`] | – | how far the log may be purged |
//!
//! What always holds:
//! - A stream belongs to one epoch. Both ends close it when they learn of another.
//! - The receiver's log is a contiguous prefix of the source's: every batch names its predecessor.
//! - What was not persisted is not reported, and a batch is never sent onwards before it is durable
//!   here.
//! - Safety never rests on the relay's election or on any clock; those decide only who carries the
//!   bytes.
//!
//! Absent on purpose: tokio, storage, the wire format, clocks and randomness. `now` is the time
//! since an arbitrary start of this process (monotonic); `jitter` is a number in `0.0..1.0` that
//! the caller drew. Actions are carried out in the order in which they are returned.

mod lag;
mod receiver;
mod relay;
mod retention;
mod sender;
mod status;

pub use lag::{CommitHistory, Lag};
pub use receiver::{
    FailureReason, Receiver, ReceiverAction, ReceiverConfig, ReceiverEvent, ReceiverPhase,
    StreamEvent, StreamId,
};
pub use relay::{RelayConfig, RelayElection, Source};
pub use retention::{ReplicaPosition, Retention, retain};
pub use sender::{BatchSize, CloseReason, Sender, SenderAction, SenderConfig, SenderEvent};
pub use status::{Heartbeat, Status};
