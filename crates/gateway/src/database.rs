//! The interface of a database below the gateway: reads, watches, changes, writes and queues, and
//! how each may fail.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use meridian_queue::{Answer, Incarnation, ListenerId, MessageKey, Report};
use meridian_types::{
    Consistency, DatabaseId, Entry, MessageId, QueueId, QueueName, ReadRange, RequestId,
    Transaction, Versionstamp, WriteOutcome,
};
use tokio::sync::oneshot;

use crate::changes::{Changed, ChangesWanted};
use crate::room::{NoRoom, Room};
use crate::watched_value::WatchNews;

/// A read of one database. All ranges are read from one state.
#[derive(Debug, Clone)]
pub struct Read {
    pub database: DatabaseId,
    pub consistency: Consistency,
    pub ranges: Vec<ReadRange>,
}

/// Entries for each range of a [`Read`], in its order.
#[derive(Debug, Clone)]
pub struct ReadOutput {
    pub ranges: Vec<Vec<Entry>>,
}

/// Keys of one database that a client wants to hear of.
#[derive(Debug, Clone)]
pub struct Watch {
    pub database: DatabaseId,
    /// Which writes its first news shows. Later news are as fast and as late as eventual reads.
    pub consistency: Consistency,
    /// A key may be there twice.
    pub keys: Vec<Bytes>,
    /// For news that are kept until the client takes them.
    pub room: Room,
}

/// A watch under way. It keeps no queue: its news are of when they are asked for.
pub trait Watching: Send + Unpin + 'static {
    /// The next news, the first of which tell of all keys. They never go back to an earlier state,
    /// but where a failover has lost the state that was told. `None`: there is no such database any
    /// more. [`NoRoom`]: there was none for the news, which are fetched when they are asked for
    /// again; that is to be once there may be room.
    fn poll_news(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>>;

    /// The news could not be sent: what they told of is told again, as it is by then.
    fn take_back(&mut self, news: &WatchNews);
}

/// An atomic write of one database.
#[derive(Debug, Clone)]
pub struct Write {
    pub database: DatabaseId,
    pub request_id: RequestId,
    /// The client may send the request again, under the same id and through any gateway: its
    /// outcome is remembered also where nothing was written.
    pub may_come_again: bool,
    pub transaction: Transaction,
}

/// A listener to a queue.
#[derive(Debug, Clone)]
pub struct Listen {
    pub queue: QueueId,
    pub listener: ListenerId,
    /// How many messages the listener may hold at a time; or get in all, where they are leased for a
    /// time.
    pub credits: u32,
    /// A message is leased for so long; `None`: for as long as the listener listens.
    pub lease: Option<Duration>,
    /// The messages that the listener holds from before.
    pub held: Vec<MessageKey>,
    /// Of the listener at this gateway.
    pub incarnation: Incarnation,
}

/// A message that was handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedMessage {
    pub key: MessageKey,
    /// From 1.
    pub attempt: u32,
    pub payload: Bytes,
    pub enqueued_ms: u64,
    /// `None`: it is leased for as long as the listener listens.
    pub lease: Option<Duration>,
}

/// News for a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Messages(Vec<QueuedMessage>),
    /// They are not the listener's any more: settled, or handed to another.
    Released(Vec<MessageKey>),
    /// For this reason nothing more is heard.
    Ended(String),
}

/// A listener under way. It goes on from one leader to the next by itself.
pub struct Listened {
    pub heard: BoxStream<'static, Heard>,
    /// For a listener whose messages are leased for a time: it wants no more than these. What else
    /// was handed to it goes back, as if it had not been. To drop it is to want none.
    pub enough: oneshot::Sender<Vec<MessageKey>>,
}

/// The reports of a listener on messages.
#[derive(Debug, Clone)]
pub struct Reports {
    /// Of the messages.
    pub queue: QueueId,
    pub listener: ListenerId,
    pub reports: Vec<(MessageKey, Report)>,
}

/// A page of a queue, for an operator.
#[derive(Debug, Clone)]
pub struct QueueList {
    pub queue: QueueId,
    pub from: ListFrom,
    /// Messages or dead letters, at most.
    pub limit: u32,
    /// With payloads and keys.
    pub whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFrom {
    /// Messages behind this one.
    Messages { after: Option<MessageKey> },
    /// Dead letters from this number on: of the queue, if it has a name, and else of all queues of the
    /// database.
    DeadLetters { first: u64 },
}

/// A part of a queue as it is at some time after it was asked for. Payloads and keys are there if
/// they were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueuePage {
    /// By due time, then in the order of commits.
    pub messages: Vec<ListedMessage>,
    pub dead_letters: Vec<ListedLetter>,
    pub totals: ListedTotals,
    /// Where the list is of the unnamed queue: the named ones that have undelivered messages.
    pub queues: Vec<ListedQueue>,
    /// Nothing of the queue is handed out.
    pub is_paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedMessage {
    pub key: MessageKey,
    /// Deliveries that failed.
    pub failed: u32,
    pub enqueued_ms: u64,
    pub payload_bytes: u32,
    pub keys: u32,
    /// A listener holds it.
    pub leased: bool,
    pub whole: Option<(Bytes, Vec<Bytes>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedLetter {
    pub number: u64,
    pub queue: QueueName,
    pub id: MessageId,
    /// Deliveries that failed.
    pub failed: u32,
    pub enqueued_ms: u64,
    pub died_ms: u64,
    pub payload_bytes: u32,
    pub payload: Option<Bytes>,
}

/// Of a whole queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListedTotals {
    /// Messages that are not delivered, due or not.
    pub undelivered: u64,
    /// Of these, those that listeners hold.
    pub leased: u64,
    /// Of all queues of the database.
    pub dead: u64,
}

/// The totals of a named queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedQueue {
    pub name: QueueName,
    pub undelivered: u64,
    pub leased: u64,
}

/// Why an operation was not carried out. Retrying such a write cannot apply it twice.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    /// For the client, as the body of a 503.
    pub reason: String,
}

/// Why a write has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteFailure {
    /// Definitely not committed, now or later: answered with 503, which clients retry.
    #[error(transparent)]
    NotCommitted(#[from] Unavailable),
    /// The write may have committed, and there is no way left to find out. Never answered: the
    /// connection is dropped.
    #[error("the outcome of the write is unknown: {0}")]
    Unknown(String),
}

/// The gateway's interface to a cluster. Implementations route to the shard's leader, retry with
/// the same request id, and hold a write until its outcome is known.
pub trait Database: Send + Sync + 'static {
    type Watching: Watching;

    fn read(&self, read: Read) -> impl Future<Output = Result<ReadOutput, Unavailable>> + Send;

    /// Begins a watch; its first news can be had at once. A strong watch begins with a state that
    /// shows every write acknowledged before this call.
    fn watch(
        self: &Arc<Self>,
        watch: Watch,
    ) -> impl Future<Output = Result<Self::Watching, Unavailable>> + Send;

    /// The next changes behind a versionstamp, of what is committed: the versionstamps of what
    /// comes later are later.
    fn changes(
        &self,
        wanted: ChangesWanted,
    ) -> impl Future<Output = Result<Changed, NoChanges>> + Send;

    fn write(
        &self,
        write: Write,
    ) -> impl Future<Output = Result<WriteOutcome, WriteFailure>> + Send;

    /// Begins to listen to a queue, until what is returned is dropped.
    fn listen(self: &Arc<Self>, listen: Listen) -> Listened;

    /// Reads a part of a queue, which shows every write acknowledged before this call. Its messages
    /// are bounded in bytes, too: there may be fewer than asked for, and others behind them. There
    /// is one at least, unless there are no more.
    fn list_queue(
        &self,
        list: QueueList,
    ) -> impl Future<Output = Result<QueuePage, Unavailable>> + Send;

    /// Takes reports on messages. A report is logged before it is answered, and may be reported
    /// again without harm; so a failure says nothing of what was logged.
    fn report(
        &self,
        reports: Reports,
    ) -> impl Future<Output = Result<Vec<Answer>, Unavailable>> + Send;
}

/// Why there are no changes to be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoChanges {
    #[error(
        "The changes behind this versionstamp are no longer kept, only those behind {floor}. \
         Take a snapshot: open the feed anew without `after`, list the prefix, and go on with the \
         feed from its first bookmark."
    )]
    Gone { floor: Versionstamp },
    #[error(
        "This versionstamp is not of the history of this database: it is of another database, or of \
         commits that a failover lost. Take a snapshot: open the feed anew without `after`, list \
         the prefix, and go on with the feed from its first bookmark."
    )]
    NotOfHistory,
    #[error(
        "This versionstamp is ahead of the database, which stands at {newest}. It may be of another \
         database."
    )]
    Ahead { newest: Versionstamp },
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl NoChanges {
    /// The name for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "gone",
            Self::NotOfHistory => "not_of_history",
            Self::Ahead { .. } => "ahead",
            Self::Unavailable(_) => "unavailable",
        }
    }
}
