//! Everything that nodes and clients send each other.

use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Change, Cluster};
use meridian_failover::{Lease, LostTail, ProgressHint, SealAnswer};
use meridian_queue::{Answer, ListenerId, MessageKey, Opening, Report, SessionId};
use meridian_shipping::{Heartbeat, Status, StreamId};
use meridian_types::{Epoch, NodeId, Position, ShardReport, Verdict};

use crate::clock::Instant;
use crate::raft::{Entry, Members, RaftMessage, Sync};

/// One write, as it is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) position: Position,
    pub(crate) request: u64,
    pub(crate) time_ms: u64,
    pub(crate) content: Content,
}

/// The part of a write that the simulation looks into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Plain,
    /// A message with this number.
    Enqueue {
        message: u64,
        due_ms: u64,
    },
    Settle {
        key: MessageKey,
        verdict: Verdict,
    },
}

/// A subscriber, its incarnation and its stream: what a connection is.
pub(crate) type Link = (NodeId, u64, StreamId);

/// A node's committed history: sequence `n` at index `n - 1`.
pub(crate) type History = Vec<Batch>;

/// Where history ends.
pub(crate) fn end_of(history: &[Batch]) -> Position {
    history.last().map_or(Position::ZERO, |batch| batch.position)
}

/// Sequences count from one.
pub(crate) fn sequence(len: usize) -> u64 {
    len as u64
}

pub(crate) fn len_at(sequence: u64) -> usize {
    usize::try_from(sequence).unwrap_or(usize::MAX)
}

#[derive(Debug, Clone)]
pub(crate) enum Shipped {
    Connected(Epoch),
    Batch { batch: Batch, previous: Position },
    Heartbeat(Heartbeat),
    SnapshotNeeded { diverged: bool },
    Closed,
}

/// The part of another's history behind a position, as a node can give it.
#[derive(Debug, Clone)]
pub(crate) enum Tail {
    Batches(Vec<Batch>),
    /// It is no longer in its log.
    Gone,
    /// It has nothing of it, or another history.
    Nothing,
}

/// A wish for a lease, as its answer names it: of which life of the process it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question {
    pub(crate) incarnation: u64,
    pub(crate) number: u64,
    pub(crate) sent_at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Write { request: u64, content: Content },
    Read,
}

/// A gateway's word to a leader about a listener.
#[derive(Debug, Clone)]
pub(crate) enum OfListener {
    Opens(Opening),
    Closes(SessionId),
    Reports { call: u64, listener: ListenerId, key: MessageKey, report: Report },
}

/// A leader's word in a session. `as_of`: it surely led then, as its quorum has confirmed since.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told {
    pub(crate) session: SessionId,
    pub(crate) part: Part,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// The session has begun.
    Begun,
    Alive {
        as_of: Instant,
    },
    Handed {
        key: MessageKey,
        message: u64,
        attempt: u32,
        lease: Option<Duration>,
        as_of: Instant,
    },
    Released(MessageKey),
    /// The session is over, or there is none.
    Ended,
}

/// A call to the directory's leader carries the term of the caller's leadership, and so does its
/// answer.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    // Within the group of a shard.
    Shard {
        epoch: Epoch,
        raft: RaftMessage<Batch>,
    },
    NeedSeed {
        epoch: Epoch,
    },
    Seed {
        epoch: Epoch,
        history: Arc<History>,
        founders: Members,
        log: Vec<Entry<Batch>>,
    },
    // Within the directory.
    Directory(RaftMessage<Arc<Cluster>>),
    // Of nodes to the directory, and back.
    Renew {
        question: Question,
        report: Option<ShardReport>,
        lost: Vec<LostTail>,
    },
    Lease {
        question: Question,
        lease: Lease,
        cluster: Arc<Cluster>,
        hints: Vec<ProgressHint>,
    },
    NotLeader {
        question: Question,
        leader: Option<NodeId>,
    },
    Cluster(Arc<Cluster>),
    Order(Change),
    // Of the directory's leader to nodes, and back.
    Seal {
        term: u64,
        epoch: Epoch,
        planned: bool,
    },
    Sealed {
        term: u64,
        answer: SealAnswer,
    },
    Drain {
        term: u64,
        epoch: Epoch,
        source: NodeId,
        through: Position,
    },
    Drained {
        term: u64,
        epoch: Epoch,
        position: Position,
    },
    ReadLog {
        after: Position,
        through: Position,
    },
    LogRead {
        after: Position,
        tail: Tail,
    },
    ReadState {
        incarnation: u64,
        fetch: u64,
    },
    StateRead {
        incarnation: u64,
        fetch: u64,
        history: Option<Arc<History>>,
    },
    // Shipping.
    Subscribe {
        link: Link,
        from: Position,
    },
    Unsubscribe {
        link: Link,
    },
    Ack {
        source: NodeId,
        link: Link,
        durable: Position,
    },
    ToReceiver {
        source: NodeId,
        link: Link,
        event: Shipped,
    },
    Status(Status),
    FetchSnapshot {
        incarnation: u64,
        fetch: u64,
        epoch: Epoch,
    },
    Snapshot {
        incarnation: u64,
        fetch: u64,
        history: Option<Arc<History>>,
    },
    // Of clients, and back.
    Request {
        call: u64,
        operation: Operation,
        floor: Position,
    },
    Answer {
        call: u64,
        position: Position,
    },
    NotHere {
        call: u64,
        leader: Option<NodeId>,
    },
    // Of listeners' gateways, and back.
    OfListener(OfListener),
    Told(Told),
    /// `None`: it does not lead.
    Reported {
        call: u64,
        answer: Option<Answer>,
    },
}

impl Message {
    /// The session that a message is part of, which breaks where the message is lost.
    pub(crate) fn session(&self) -> Option<SessionId> {
        match self {
            Self::OfListener(OfListener::Opens(opening)) => Some(opening.session),
            Self::OfListener(OfListener::Closes(session)) => Some(*session),
            Self::Told(told) => Some(told.session),
            _ => None,
        }
    }
}

/// An event that a process asked its machine for.
#[derive(Debug, Clone)]
pub(crate) enum Wakeup {
    Tick,
    /// Entries of the shard's group, or of the directory's, are durable.
    ShardSynced(Epoch, Sync),
    DirectorySynced(Sync),
    /// The next batch handed out by the receiver is durable.
    Persisted,
    /// The pulled batches are durable.
    Pulled,
    /// A whole state has come, in place of a tail.
    StatePulled {
        fetch: u64,
        history: Arc<History>,
    },
    Installed {
        fetch: u64,
    },
    /// Rows of the queue were looked for, as a leader asked in this term.
    Looked {
        term: u64,
        number: u64,
    },
}
