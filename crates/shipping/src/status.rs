//! The status of a node concerning one shard, as nodes exchange it.

use std::time::Duration;

use meridian_types::{Epoch, NodeId, Position};

/// The status of a node concerning one shard, in every heartbeat of a stream and in the exchange of
/// statuses between nodes. It must come straight from its node: hearing it proves that the node can
/// be reached from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub node: NodeId,
    /// The newest epoch of the shard that the node knows.
    pub epoch: Epoch,
    /// The end of the log that the node has and can send.
    pub durable: Position,
    /// Steps from the primary region: 0 for its members, 1 for a relay, 2 for what follows a relay.
    /// `None`: no fresh contact with the primary region.
    pub hops: Option<u8>,
    /// How long ago the node had word from the primary region. A primary member says here how long
    /// ago it heard of its leader (0 on the leader).
    pub primary_age: Duration,
    pub fetching_snapshot: bool,
}

impl Status {
    /// The status of a voter in the shard's primary region.
    pub fn of_primary_member(
        node: NodeId,
        epoch: Epoch,
        committed: Position,
        leader_age: Duration,
    ) -> Self {
        Self {
            node,
            epoch,
            durable: committed,
            hops: Some(0),
            primary_age: leader_age,
            fetching_snapshot: false,
        }
    }
}

/// The newest commit that a source has advertised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdvertisedCommit {
    pub position: Position,
    /// The wall clock of the primary then, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// Sent on every stream by its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    pub status: Status,
    /// The newest commit position the sender knows: its own on a primary member, the advertised one
    /// on a relay.
    pub committed: Position,
    /// The wall clock of the primary that said so, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

impl Heartbeat {
    pub fn commit(&self) -> AdvertisedCommit {
        AdvertisedCommit { position: self.committed, time_ms: self.time_ms }
    }
}
