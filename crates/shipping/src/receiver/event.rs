//! Events of a receiver, and the actions that it asks for.

use std::time::Duration;

use meridian_types::{Epoch, NodeId, Position};

use crate::{Heartbeat, Source};

/// Names one stream of a receiver. Late messages of an older stream are ignored.
pub type StreamId = u64;

#[derive(Debug, Clone)]
pub struct ReceiverConfig {
    /// Bytes handed to the disk and not yet durable; may be exceeded by one batch.
    pub max_unpersisted_bytes: u64,
    pub max_unpersisted_batches: usize,
    pub connect_timeout: Duration,
    /// No batch and no heartbeat for this long: the source is given up. More than two heartbeats,
    /// and well below the bound on what may be lost: where all regions follow one member, its loss
    /// holds up writes so long.
    pub idle_timeout: Duration,
    /// Without word from the primary region for this long, the node no longer says that it follows
    /// it. Longer than `idle_timeout`, so that a relay may change its source and stay the relay.
    pub stale_after: Duration,
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            max_unpersisted_bytes: 16 << 20,
            max_unpersisted_batches: 16_384,
            connect_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_millis(600),
            stale_after: Duration::from_secs(3),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// The choice of [`RelayElection::choose`](crate::RelayElection::choose). The same source again
    /// changes nothing.
    Source(Option<Source>),
    /// The directory says that the shard is active in `epoch`, whose history begins right after
    /// `base`. Every epoch must be given, in order, also the epochs that passed while this node was
    /// away: each base tells whether this node holds batches that were lost. One already known
    /// changes nothing.
    Epoch {
        epoch: Epoch,
        base: Position,
    },
    /// The failover controller wants no more batches of this epoch to be taken. Answered by
    /// [`ReceiverAction::Sealed`], each time it is given. Only a higher epoch ends it; for an epoch
    /// that has passed it does nothing. To be given again after a restart.
    Seal {
        epoch: Epoch,
    },
    Stream(StreamId, StreamEvent),
    /// Everything handed out up to `position` is fsynced.
    Persisted {
        position: Position,
    },
    /// A sealed node has pulled what the failover wanted it to have: everything up to `position` is
    /// durable and applied, without gaps. Only to be given between [`ReceiverAction::Sealed`] and
    /// the next epoch; it is answered by `Sealed` again.
    Drained {
        position: Position,
    },
    /// Fetching is over, and installing begins: from here on it is not cancelled. To be given
    /// before the first byte is replaced.
    SnapshotFetched,
    /// The node's log and state were replaced by a snapshot, durably.
    SnapshotInstalled {
        position: Position,
    },
    SnapshotFailed,
    /// At least every 250 ms.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// The source accepted, and said which epoch it is in.
    Connected {
        epoch: Epoch,
    },
    /// `previous` is what the source's log has before it.
    Batch {
        position: Position,
        previous: Position,
        bytes: u64,
    },
    Heartbeat(Heartbeat),
    SnapshotNeeded {
        diverged: bool,
    },
    /// It ended or could not be opened, for whatever reason.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiverAction {
    /// Open a stream at the source for what follows `from`.
    Connect {
        stream: StreamId,
        source: NodeId,
        from: Position,
    },
    CloseStream {
        stream: StreamId,
    },
    /// Append the batch that this event brought, after those before it. Must succeed, or the
    /// process ends.
    Persist {
        position: Position,
    },
    /// Tell the source.
    ReportDurable {
        stream: StreamId,
        position: Position,
    },
    /// Keep the batches that this node holds beyond `base` in an orphan file, before the snapshot
    /// that follows replaces them: they are not in the new epoch's history. Nothing is being
    /// persisted now.
    SaveOrphans {
        base: Position,
    },
    /// Fetch a snapshot (`SnapshotFetched`) and install it (`SnapshotInstalled`), or say
    /// `SnapshotFailed`. Nothing is being persisted now, and nothing will be until the answer. A
    /// source that is not in `epoch`, or that may not serve
    /// ([`Receiver::may_serve`](crate::Receiver::may_serve)), must refuse.
    FetchSnapshot {
        source: NodeId,
        epoch: Epoch,
    },
    /// Give up fetching, and answer `SnapshotFailed`. Never said once `SnapshotFetched` was given.
    CancelSnapshot,
    /// No batch of the sealed epoch will be taken any more, and `durable` is final.
    Sealed {
        durable: Position,
    },
    /// For the election, and for a metric.
    SourceFailed {
        source: NodeId,
        reason: FailureReason,
    },
    /// A source is in an epoch that the directory has not told this node of: ask the directory.
    EpochAhead {
        epoch: Epoch,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureReason {
    Closed,
    ConnectTimeout,
    Idle,
    /// A batch that does not follow the one before it.
    Gap,
    /// The source is in an older epoch, or sent a batch that the epoch's history does not hold.
    WrongEpoch,
    Snapshot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiverPhase {
    /// Without a source, or waiting to try again, or waiting for the disk before a snapshot.
    Disconnected,
    Subscribing,
    Following,
    FetchingSnapshot,
    Sealed,
}
