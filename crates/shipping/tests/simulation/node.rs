use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use meridian_shipping::{
    Heartbeat, Receiver, ReceiverConfig, RelayConfig, RelayElection, Sender, SenderEvent, Status,
    StreamEvent, StreamId,
};
use meridian_types::{Epoch, NodeId, Position};

pub(crate) const PRIMARY: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];
pub(crate) const LEADER: NodeId = NodeId(1);

/// A subscriber, its incarnation and its stream: what a connection is.
pub(crate) type Link = (NodeId, u64, StreamId);

#[derive(Clone, Copy)]
pub(crate) enum Message {
    Subscribe { link: Link, from: Position },
    Unsubscribe { link: Link },
    Ack { link: Link, durable: Position },
    ToReceiver { link: Link, event: Shipped },
    Status(Status),
}

#[derive(Clone, Copy)]
pub(crate) enum Shipped {
    Connected(Epoch),
    Batch { position: Position, previous: Position },
    Heartbeat(Heartbeat),
    SnapshotNeeded { diverged: bool },
    Closed,
}

pub(crate) const BATCH_BYTES: u64 = 1000;

impl From<Shipped> for StreamEvent {
    fn from(shipped: Shipped) -> Self {
        match shipped {
            Shipped::Connected(epoch) => Self::Connected { epoch },
            Shipped::Batch { position, previous } => {
                Self::Batch { position, previous, bytes: BATCH_BYTES }
            }
            Shipped::Heartbeat(heartbeat) => Self::Heartbeat(heartbeat),
            Shipped::SnapshotNeeded { diverged } => Self::SnapshotNeeded { diverged },
            Shipped::Closed => Self::Closed,
        }
    }
}

/// The parts of a node that follows. They are lost in a crash.
pub(crate) struct Follower {
    pub(crate) receiver: Receiver,
    pub(crate) election: RelayElection,
    /// When each batch handed to the disk will be durable.
    pub(crate) writing: VecDeque<(u64, Position)>,
    pub(crate) fetching: Option<(u64, NodeId, Epoch)>,
    /// The position of the snapshot that replaces log and state, and when it will be in place.
    pub(crate) installing: Option<(u64, Position)>,
    pub(crate) streams: BTreeMap<StreamId, NodeId>,
    /// The epoch whose seal this node has confirmed, and up to where.
    pub(crate) sealed: Option<(Epoch, Position)>,
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) up: bool,
    pub(crate) incarnation: u64,
    /// On disk: what was purged, and the log behind it.
    pub(crate) purged: Position,
    pub(crate) log: Vec<Position>,
    pub(crate) epoch: Epoch,
    pub(crate) base: Position,
    pub(crate) senders: BTreeMap<Link, Sender>,
    pub(crate) follower: Option<Follower>,
    pub(crate) next_status: u64,
}

impl Node {
    pub(crate) fn new(id: NodeId) -> Self {
        let mut node = Self {
            id,
            up: true,
            incarnation: 0,
            purged: Position::ZERO,
            log: Vec::new(),
            epoch: Epoch::FIRST,
            base: Position::ZERO,
            senders: BTreeMap::new(),
            follower: None,
            next_status: 0,
        };
        node.start(0);
        node
    }

    pub(crate) fn region(&self) -> u64 {
        self.id.0 / 10
    }

    pub(crate) fn last(&self) -> Position {
        self.log.last().copied().unwrap_or(self.purged)
    }

    pub(crate) fn start(&mut self, now: u64) {
        self.up = true;
        self.incarnation += 1;
        if PRIMARY.contains(&self.id) {
            return;
        }
        let at = Duration::from_millis(now);
        let mut election = RelayElection::new(RelayConfig::default(), self.id, at);
        let mates: Vec<_> = (1..=3).map(|n| NodeId(self.region() * 10 + n)).collect();
        let mut primary = PRIMARY;
        primary.sort_by_key(|member| *member == LEADER);
        election.set_members(at, &primary, &mates);
        let config =
            ReceiverConfig { max_unpersisted_bytes: 20 * BATCH_BYTES, ..ReceiverConfig::default() };
        let receiver = Receiver::new(config, at, self.last(), self.epoch, self.base);
        self.follower = Some(Follower {
            receiver,
            election,
            writing: VecDeque::new(),
            fetching: None,
            installing: None,
            streams: BTreeMap::new(),
            sealed: None,
        });
    }

    /// Loses everything that was not persisted.
    pub(crate) fn crash(&mut self) {
        self.up = false;
        self.follower = None;
        self.senders.clear();
    }

    pub(crate) fn status(&self, now: u64) -> Status {
        match &self.follower {
            Some(follower) => follower.receiver.status(Duration::from_millis(now), self.id),
            None => Status::of_primary_member(self.id, self.epoch, self.last(), Duration::ZERO),
        }
    }

    pub(crate) fn may_serve(&self) -> bool {
        self.up && self.follower.as_ref().is_none_or(|follower| follower.receiver.may_serve())
    }

    pub(crate) fn tail(&self) -> SenderEvent {
        SenderEvent::LogTail { purged: self.purged, available: self.last() }
    }

    /// The answer to a read of what follows `after`.
    pub(crate) fn read(&self, after: Position, max_bytes: u64) -> SenderEvent {
        let Some(skip) = after.sequence.checked_sub(self.purged.sequence) else {
            return SenderEvent::ReadMissing;
        };
        let skip = skip as usize;
        let previous = if skip == 0 { self.purged } else { self.log[skip - 1] };
        let count = (max_bytes / BATCH_BYTES).max(1) as usize;
        let batch = |&position| meridian_shipping::BatchSize { position, bytes: BATCH_BYTES };
        SenderEvent::Read {
            previous,
            batches: self.log.iter().skip(skip).take(count).map(batch).collect(),
        }
    }
}
