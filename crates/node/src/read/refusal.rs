//! Why a node does not serve a read, as a value: tested by kind, and turned into text where it
//! leaves the node.

use std::time::Duration;

use meridian_memory::Exhausted;
use meridian_types::NodeId;

/// Why one node did not serve a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotServed {
    /// The leader, if this node knows one.
    NotLeader(Option<NodeId>),
    Refused(ReadRefusal),
}

/// Why a read was not carried out, for the body of a 503.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadRefusal {
    #[error("this node has not caught up since it started")]
    NotCaughtUp,
    #[error("this node lags behind the leader")]
    BehindLeader,
    #[error("this node lags behind what this gateway has shown before")]
    BehindGateway,
    #[error("this node's state is not of the shard's present epoch yet")]
    OtherEpoch,
    #[error("the leader did not answer: {0}")]
    LeaderDidNotAnswer(String),
    #[error("a read finds more than 1,000 entries of 64 KiB")]
    TooLarge,
    #[error("a read took longer than {} s", .0.as_secs())]
    TooLong(Duration),
    #[error(transparent)]
    OutOfMemory(#[from] Exhausted),
    #[error("the node is stopping")]
    Stopping,
}

impl From<ReadRefusal> for NotServed {
    fn from(refusal: ReadRefusal) -> Self {
        Self::Refused(refusal)
    }
}
