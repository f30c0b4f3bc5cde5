//! Ships a shard's committed log from its primary region to every replica: the protocol, without
//! I/O.
//!
//! | module | type | where it lives | what it decides |
//! |---|---|---|---|
//! | `receiver` | [`Receiver`] | one per shard on a node that is not a voter of it | what to connect to, persist, report |
//! | `relay` | [`RelayElection`] | beside each receiver | whether this node is its region's relay, and which node to subscribe to |
//! | `sender` | [`Sender`] | one per subscription, on the source | what to read and send, within a window |
//! | `lag` | [`CommitHistory`] | one per shard on a source | lag of any replica in batches, bytes, milliseconds |
//! | `retention` | [`retain`] | – | how far the log may be purged |
//! | `status` | [`Status`], [`Heartbeat`] | in every exchange between nodes | – |
//!
//! Invariants:
//! - A stream belongs to one epoch. Both ends close it when they learn of another.
//! - The receiver's log is a contiguous prefix of the source's: every batch names its predecessor.
//! - A batch is reported, and sent onwards, only once it is durable here.
//! - Safety never rests on the relay's election or on any clock; those decide only which node
//!   carries the bytes.
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
pub use status::{AdvertisedCommit, Heartbeat, Status};
