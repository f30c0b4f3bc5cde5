//! The queues of a shard at the node that leads it: messages to listeners, and what became of them
//! into the log.
//!
//! `leader` is the task that drives the [`Dispatcher`](meridian_queue::Dispatcher) for as long as a
//! term lasts: it tells it what is applied (`feed`), read and reported (`reports`), and has logged
//! what it decides (`settling`). A [`Session`] carries messages to one listener. The dispatcher
//! decides by keys alone; a session reads the message itself, right before it hands it out, after
//! the leadership was confirmed, and lets it go under the epoch lease only. So does `listing`, for an
//! operator.

mod feed;
mod inbox;
mod leader;
mod listing;
mod place;
mod reports;
mod session;
mod settling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use meridian_consensus::RaftGroup;
use meridian_queue::{
    Answer, Incarnation, ListenerId, MessageKey, Opening, Refused, Report, SessionId,
};
use meridian_storage::{ShardState, or_fatal};
use meridian_types::{DatabaseId, NodeId, QueueId, QueueName};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::cluster_view::epoch_lease::EpochLease;
use crate::cluster_view::view::Directory;
use crate::host::clocks::TimeSource;
use crate::read::execution::Reads;
use crate::read::read_index::ReadGate;
use crate::write::proposer::Proposer;

use inbox::{Outbox, handouts};
use leader::Leader;

pub(crate) use session::{BESIDE_BYTES, Handed, Part, Session};

/// As listeners are told, here as at gateways.
pub(crate) const TOO_MANY_LISTENERS: &str = "too many listeners are open";
/// Openings and reports that wait for the task, at most.
const COMMANDS: usize = 256;

/// Why a leader does not serve a listener, or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotListening {
    /// The leader, if this node knows one.
    NotLeader(Option<NodeId>),
    /// Not to be tried again at once, for this reason.
    Refused(&'static str),
    /// Not served at present, for this reason.
    Unavailable(&'static str),
}

impl From<Refused> for NotListening {
    fn from(refused: Refused) -> Self {
        Self::Refused(match refused {
            Refused::TooManyListeners => TOO_MANY_LISTENERS,
            Refused::Replaced => "the listener has another session",
        })
    }
}

/// A listener that wants a session.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    pub(crate) queue: QueueId,
    pub(crate) listener: ListenerId,
    pub(crate) credits: u32,
    pub(crate) lease: Option<Duration>,
    pub(crate) held: Vec<MessageKey>,
    pub(crate) incarnation: Incarnation,
    pub(crate) resumed: bool,
}

/// A request to the task.
enum Command {
    Open {
        opening: Opening,
        outbox: Outbox,
        begun: oneshot::Sender<Begun>,
    },
    Report {
        queue: QueueId,
        listener: ListenerId,
        reports: Vec<(MessageKey, Report)>,
        answers: oneshot::Sender<Result<Vec<Answer>, NotListening>>,
    },
    Look {
        queue: QueueId,
        keys: Vec<MessageKey>,
        /// Of which listeners may hold messages, too.
        names: Vec<QueueName>,
        looked: oneshot::Sender<Result<Looked, NotListening>>,
    },
    Measure(oneshot::Sender<Result<Figures, NotListening>>),
}

/// The queues of a shard in figures, as far as its leader alone knows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Messages that listeners hold.
    pub(crate) leased: usize,
    /// How long the first message has been due that no listener holds, of the queues that have
    /// listeners.
    pub(crate) due_for: Duration,
}

/// A queue, as the dispatcher knows it.
struct Looked {
    /// For each message that was asked for.
    leased: Vec<bool>,
    in_all: usize,
    /// For each name that was asked for.
    of_names: Vec<usize>,
    is_paused: bool,
}

/// The term that a session is for.
type Begun = Result<u64, NotListening>;

/// News of sessions for the task. Bounded by what sessions hold.
enum Notice {
    Gone { queue: QueueId, key: MessageKey },
    Closed { queue: QueueId, listener: ListenerId, session: SessionId },
}

/// News of the task for a session.
enum Handout {
    /// `until`: when the lease ends; `None`: with the session.
    Deliver {
        key: MessageKey,
        until: Option<Duration>,
    },
    Release(MessageKey),
    End(Refused),
}

/// The means that the queues of a shard work with.
pub(crate) struct QueueParts {
    pub(crate) directory: Arc<Directory>,
    pub(crate) shown: Arc<Shown>,
    pub(crate) proposer: Proposer,
}

/// The state that messages are read from, and the leases that are looked at before they leave. A
/// stream that is not read keeps no more than this.
pub(crate) struct Shown {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) lease: EpochLease,
    pub(crate) reads: Reads,
    pub(crate) time: Arc<dyn TimeSource>,
}

/// The queues of a shard that this node votes in.
pub(crate) struct Queues {
    directory: Arc<Directory>,
    shown: Arc<Shown>,
    commands: mpsc::Sender<Command>,
    notices: mpsc::UnboundedSender<Notice>,
    sessions: AtomicU64,
    /// One list is read at a time: it passes over the rows that were removed lately, and leaves the
    /// other turns to reads that do not.
    lists: Semaphore,
}

impl Queues {
    /// Whether the directory that is known here has the database in this shard: nothing is begun for
    /// others, of which there is no end. It may be too old to know a new one.
    ///
    /// # Errors
    /// The caller asks again.
    fn must_hold(&self, database: DatabaseId) -> Result<(), NotListening> {
        let holds = self.directory.holds(self.shown.group.id().shard, database);
        holds.then_some(()).ok_or(NotListening::Unavailable("the database is not known here"))
    }

    /// Starts the task. It ends when this is dropped.
    pub(crate) fn start(parts: QueueParts) -> Self {
        let (commands, asked) = mpsc::channel(COMMANDS);
        let (notices, noticed) = mpsc::unbounded_channel();
        let (shown, directory) = (Arc::clone(&parts.shown), Arc::clone(&parts.directory));
        tokio::spawn(Leader::new(Arc::new(parts), asked, noticed).run());
        let (sessions, lists) = (AtomicU64::new(0), Semaphore::new(1));
        Self { directory, shown, commands, notices, sessions, lists }
    }

    /// Begins a session, if this node leads.
    ///
    /// # Errors
    /// Why not. May be dropped at any await: a session that has begun ends then.
    pub(crate) async fn listen(&self, listener: Listener) -> Result<Session, NotListening> {
        let Listener { queue, listener, credits, lease, held, incarnation, resumed } = listener;
        self.must_hold(queue.database)?;
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let opening =
            Opening { queue, listener, session, incarnation, credits, lease, held, resumed };
        let (outbox, inbox) = handouts();
        let (begun, begins) = oneshot::channel();
        // Before the task has it, so that it hears of the end whatever happens.
        let mut opened = Session::new(Arc::clone(&self.shown), &opening, inbox, &self.notices);
        self.command(Command::Open { opening, outbox, begun })?;
        opened.term = begins.await.unwrap_or(Err(NotListening::NotLeader(None)))?;
        Ok(opened)
    }

    /// Has reports on messages logged before they are answered.
    ///
    /// # Errors
    /// Why there is no answer; reports may have taken effect all the same, and may be repeated.
    pub(crate) async fn report(
        &self,
        queue: QueueId,
        listener: ListenerId,
        reports: Vec<(MessageKey, Report)>,
    ) -> Result<Vec<Answer>, NotListening> {
        if or_fatal(self.shown.state.is_dropped(queue.database)) {
            // The messages went with their database.
            return Ok(vec![Answer::Done; reports.len()]);
        }
        self.must_hold(queue.database)?;
        let (answers, answered) = oneshot::channel();
        self.command(Command::Report { queue, listener, reports, answers })?;
        answered.await.unwrap_or(Err(NotListening::NotLeader(None)))
    }

    /// Zeros where another node leads.
    pub(crate) async fn figures(&self) -> Figures {
        let (measured, measures) = oneshot::channel();
        if self.command(Command::Measure(measured)).is_err() {
            return Figures::default();
        }
        measures.await.ok().and_then(Result::ok).unwrap_or_default()
    }

    fn command(&self, command: Command) -> Result<(), NotListening> {
        self.commands.try_send(command).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => {
                NotListening::Unavailable("too many reports and listeners wait at the leader")
            }
            mpsc::error::TrySendError::Closed(_) => {
                NotListening::Unavailable("the node is stopping")
            }
        })
    }
}

#[cfg(test)]
mod tests;
