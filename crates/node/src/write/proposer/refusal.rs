//! Why a leader does not carry out a write, as a value: counted and tested by kind, and turned into
//! text where it leaves the node.

use meridian_consensus::MAX_BATCH_BYTES;
use meridian_memory::Exhausted;
use meridian_types::ShardId;

use super::backlog::QUEUE_REQUESTS;
use crate::write::division::NoRoom;

/// Why a write was not committed by this call, now or later.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteRefusal {
    #[error("the leader of shard {0} holds no lease of the directory at present")]
    NoEpochLease(ShardId),
    #[error("the shard's primary region is changing")]
    Sealed,
    #[error("the disk of the shard's leader has less than {} MiB free", min_free_bytes >> 20)]
    LeaderDiskLow { min_free_bytes: u64 },
    #[error("the disks of {full} of the shard's voters have less than {} MiB free", min_free_bytes >> 20)]
    VoterDisksLow { full: usize, min_free_bytes: u64 },
    #[error(
        "replication to the other regions is {lag_ms} ms behind, more than the {max_ms} ms that may be lost"
    )]
    ReplicationLags { lag_ms: u64, max_ms: u64 },
    #[error(
        "replication to the other regions is {lag_ms} ms behind, of the {max_ms} ms that may be lost, and this database writes more than its share"
    )]
    ReplicationLagsByThis { lag_ms: u64, max_ms: u64 },
    #[error("the leader of shard {0} knows of no such database")]
    UnknownDatabase(ShardId),
    #[error("the shard's leader gets no answer from a quorum")]
    NoQuorum,
    #[error("this database writes more than its shard's leader takes at present")]
    NotItsTurn,
    #[error("more than {QUEUE_REQUESTS} writes are waiting")]
    QueueFull,
    #[error(
        "this database has its share of the {QUEUE_REQUESTS} writes that may wait for its shard's leader"
    )]
    ShareOfQueue,
    #[error(
        "this database has its share of the {total_bytes} bytes for writes that wait at its leader"
    )]
    ShareOfMemory { total_bytes: usize },
    #[error(transparent)]
    OutOfMemory(#[from] Exhausted),
    #[error(
        "a batch of {bytes} bytes is larger than the {MAX_BATCH_BYTES} bytes that the log takes"
    )]
    BatchTooLarge { bytes: usize },
    #[error("the request is so old that its outcome may be forgotten")]
    Expired,
    #[error("the node is stopping")]
    Stopping,
}

impl WriteRefusal {
    /// Whether the database has its share, and a write of another would be carried out.
    pub(crate) fn is_of_its_database(&self) -> bool {
        matches!(
            self,
            Self::ShareOfQueue
                | Self::ShareOfMemory { .. }
                | Self::ReplicationLagsByThis { .. }
                | Self::NotItsTurn
        )
    }
}

impl From<NoRoom> for WriteRefusal {
    fn from(no_room: NoRoom) -> Self {
        match no_room {
            NoRoom::All(exhausted) => Self::OutOfMemory(exhausted),
            NoRoom::OfDatabase { total_bytes } => Self::ShareOfMemory { total_bytes },
        }
    }
}
