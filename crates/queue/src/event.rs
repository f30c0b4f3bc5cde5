//! Events for the dispatcher, and actions that it asks for.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_types::{DatabaseId, MessageId, QueueId, Versionstamp};

/// A message's place in its queue. Messages are handed out in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKey {
    pub due_ms: u64,
    pub id: MessageId,
}

impl MessageKey {
    /// Before every message.
    pub const FIRST: Self =
        Self { due_ms: 0, id: MessageId { enqueued: Versionstamp([0; 10]), index: 0 } };
}

/// A listener, over all its sessions. Unguessable, where one must not take another's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub [u8; 16]);

/// One way that a listener has to leaders, over all its sessions: a gateway's care of it, from when
/// its client came there. A later one is greater, as far as gateways agree on the time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

/// One stream of a listener to the leader. The driver gives each a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One report that waits for its answer. The driver gives each a number of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// When something happens.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since an arbitrary start of this process (monotonic).
    pub now: Duration,
    /// The shard's time: what is due by it is handed out.
    pub time_ms: u64,
}

impl Moment {
    /// When it will be that time, on the monotonic clock.
    pub(crate) fn of_time(&self, time_ms: u64) -> Duration {
        self.now + Duration::from_millis(time_ms.saturating_sub(self.time_ms))
    }
}

/// A listener begins a session.
#[derive(Debug, Clone)]
pub struct Opening {
    pub queue: QueueId,
    pub listener: ListenerId,
    pub session: SessionId,
    /// A message that was sent to it under this one, and that it does not name, never reached it.
    /// Under another, it was lost with the listener's former life, which counts as an attempt.
    pub incarnation: Incarnation,
    /// How many messages the listener may hold at a time; or get in all, where they are leased for
    /// a time.
    pub credits: u32,
    /// A message is leased for so long; `None`: while the session lives.
    pub lease: Option<Duration>,
    /// The messages that the listener holds from earlier sessions.
    pub held: Vec<MessageKey>,
    /// Another session of this incarnation was open before. Then it does not take the place of a
    /// session of a later one: the listener has come by another way since.
    pub resumed: bool,
}

/// The word of a listener on a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    Done,
    /// `retry_after`: instead of what the message's schedule says.
    Failed {
        retry_after: Option<Duration>,
    },
    /// The listener is at work on it still: the lease ends so long from now at the earliest.
    Extended {
        by: Duration,
    },
}

/// A change of a row that took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowChange {
    /// A message was enqueued.
    Put(QueueId, MessageKey),
    /// A message that was enqueued before has this row now: its delivery failed, or an operator has
    /// moved it, or taken it out of the dead letters.
    Moved(QueueId, MessageKey),
    Deleted(QueueId, MessageKey),
}

#[derive(Debug, Clone)]
pub enum Event {
    /// In the order in which they took effect.
    Applied(Vec<RowChange>),
    /// The answer to [`Action::Read`]: the live rows from there on, in order and without a gap, and
    /// from where on there may be others.
    Read {
        queue: QueueId,
        rows: Vec<MessageKey>,
        next: Option<MessageKey>,
    },
    Opened(Opening),
    /// The session is over. A session that was closed before, or has a successor, changes nothing.
    Closed {
        queue: QueueId,
        listener: ListenerId,
        session: SessionId,
    },
    /// Messages that were to be delivered have no row any more.
    Gone {
        queue: QueueId,
        keys: Vec<MessageKey>,
    },
    /// The answer to [`Action::Check`]: of its rows these are not there. The others were.
    Checked {
        queue: QueueId,
        gone: Vec<MessageKey>,
    },
    Reported {
        queue: QueueId,
        listener: ListenerId,
        reports: Vec<(Ticket, MessageKey, Report)>,
    },
    /// The settlements of [`Action::Settle`] have committed, and their changes were told as
    /// [`Event::Applied`] before.
    Settled {
        queue: QueueId,
        lane: Lane,
    },
    /// The queues of these databases hand out nothing from now on, and those of all others do.
    Paused(BTreeSet<DatabaseId>),
    /// Time has passed.
    Tick,
}

/// The outcome of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Delivered,
    /// It is due again later than it was, or dead. `retry_after`: instead of what its schedule says.
    Failed {
        retry_after: Option<Duration>,
    },
}

/// Settlements of one kind, which are logged one after the other. Each kind is logged apart: a disk
/// that is low takes what only removes rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    Deliveries,
    Failures,
}

impl Outcome {
    pub(crate) fn lane(self) -> Lane {
        match self {
            Self::Delivered => Lane::Deliveries,
            Self::Failed { .. } => Lane::Failures,
        }
    }
}

/// The result of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It took effect, now or before.
    Done,
    /// It came too late: the message is not, or no longer, the listener's.
    Late,
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    TooManyListeners,
    /// The listener has another session by now.
    Replaced,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read up to `limit` rows from `from` on, whether due or not. Answered by [`Event::Read`].
    Read {
        queue: QueueId,
        from: MessageKey,
        limit: usize,
    },
    /// Hand the message out, if its row is there and this node may; else [`Event::Gone`], or the
    /// session is closed. `until`: when its lease ends, unless it is extended.
    Deliver {
        session: SessionId,
        key: MessageKey,
        until: Option<Duration>,
    },
    /// Look whether these have rows: listeners say that they hold them. Answered by
    /// [`Event::Checked`]; until then no others of that queue are asked for.
    Check {
        queue: QueueId,
        keys: Vec<MessageKey>,
    },
    /// The message is the listener's no more.
    Release {
        session: SessionId,
        key: MessageKey,
    },
    /// End the session.
    Refuse {
        session: SessionId,
        reason: Refused,
    },
    /// Log these, as often as it takes until they have committed. Answered by [`Event::Settled`];
    /// until then no others of that queue and lane are asked for.
    Settle {
        queue: QueueId,
        lane: Lane,
        settlements: Vec<(MessageKey, Outcome)>,
    },
    Answer {
        ticket: Ticket,
        answer: Answer,
    },
}
