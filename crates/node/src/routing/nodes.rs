//! How one node is asked: the seam between what the router decides and how it is carried out.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use meridian_gateway::{
    Changed, ChangesWanted, Kept, NoRoom, QueueList, QueuePage, Read, Reports, Room, Write,
};
use meridian_memory::Held;
use meridian_queue::Answer;
use meridian_types::{DatabaseId, Entry, Epoch, NodeId, Position, ShardId, WriteOutcome};
use tokio::sync::Notify;

use crate::changes::NotGiven;
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::queues::Listener;
use crate::routing::queue_calls::{Over, Told};
use crate::watches::{News, Shown};

/// The conditions of one try of a write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteTry {
    pub(crate) node: NodeId,
    /// Another try of it may arrive yet: its outcome is to be remembered whatever it is.
    pub(crate) retry: bool,
    /// It takes its turn among the first tries of this process.
    pub(crate) in_turn: bool,
    /// A node that led and does not answer.
    pub(crate) late: Option<NodeId>,
    /// The leader cannot be reached from here: a voter that does not lead is to pass the write on.
    pub(crate) pass_on: bool,
    /// On the router's clock: later it must not be carried out, since its outcome may be forgotten.
    pub(crate) expires_at: Duration,
}

/// A write that has an outcome.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Written {
    pub(crate) outcome: WriteOutcome,
    /// The leader, where the node passed the write on.
    pub(crate) leader: Option<NodeId>,
}

/// A node has begun to answer a read.
pub(crate) struct Answering {
    /// The position of the state that was read, at least.
    pub(crate) position: Position,
    /// The shard's leader, as far as the answering node knows.
    pub(crate) leader: Option<NodeId>,
    /// The entries of each range, or why their transfer broke off. To drop it stops the transfer.
    pub(crate) ranges: BoxFuture<'static, Result<Vec<Vec<Entry>>, BrokenOff>>,
}

/// Why an answer that has begun did not come to its end.
#[derive(Debug)]
pub(crate) enum BrokenOff {
    /// For this reason.
    Failed(String),
    /// There was no room for it in this process. There is by now, as long as this is held.
    ForRoom(Held),
}

/// A watch's request to one node: news of keys, behind the versions that it has shown.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) database: DatabaseId,
    pub(crate) keys: Arc<[Bytes]>,
    pub(crate) shown: Vec<Shown>,
    pub(crate) min_sequence: u64,
}

/// A node's news, until it has no more. To drop it ends the watch there.
pub(crate) type NewsStream = BoxStream<'static, Result<News, Failed>>;

/// News of a leader for a listener, until it says why there is no more. To drop it ends the session.
pub(crate) type ToldStream = BoxStream<'static, Result<Told, Over>>;

/// The first news of a node, with the room that they are kept in, and what follows them.
/// [`NoRoom`]: there was none for the first, and the watch there has ended.
pub(crate) type Feeding = Result<(News, Kept, NewsStream), NoRoom>;

/// The role of this process's node in a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalVoter {
    /// The leader, as far as it knows.
    pub(crate) leader: Option<NodeId>,
}

/// The nodes as one gateway reaches them. What it answers is not bounded in time: the router gives
/// up.
pub(crate) trait Nodes: Send + Sync + 'static {
    /// Whether the node of this process votes in the shard.
    fn local_voter(&self, shard: ShardId) -> Option<LocalVoter>;

    /// To drop the future gives the try up; it may have done something, or may yet, once it has
    /// left by `departure`.
    fn write(
        &self,
        shard: (ShardId, Epoch),
        write: &Arc<Write>,
        attempt: WriteTry,
        departure: Arc<Departure>,
    ) -> impl Future<Output = Result<Written, Failed>> + Send + 'static;

    /// Until the first byte of the answer; `working` is notified while the node says that it is at
    /// work. To drop the future stops the work. `room`: what [`BrokenOff::ForRoom`] gave.
    fn read(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        read: &Arc<Read>,
        min_sequence: u64,
        working: Arc<Notify>,
        room: Option<Held>,
    ) -> BoxFuture<'static, Result<Answering, Failed>>;

    /// Changes behind a versionstamp, of a state that is no older than `min_sequence`.
    fn changes(
        &self,
        node: NodeId,
        shard: ShardId,
        wanted: &ChangesWanted,
        min_sequence: u64,
    ) -> BoxFuture<'static, Result<Result<Changed, NotGiven>, Failed>>;

    /// Until the first news, which tell of every key that is not as it was shown. `room`: for what
    /// the client has not taken yet.
    fn watch(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        wanted: Wanted,
        room: Room,
    ) -> BoxFuture<'static, Result<Feeding, Failed>>;

    /// Begins a session of a listener, if the node leads. To drop the future ends the session.
    fn listen(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        listener: Listener,
    ) -> BoxFuture<'static, Result<ToldStream, Over>>;

    /// Has what is reported logged, if the node leads. What it did when the future was dropped, or
    /// failed, is done again without harm.
    fn report(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        reports: &Reports,
    ) -> BoxFuture<'static, Result<Vec<Answer>, Failed>>;

    /// Reads a part of a queue, if the node leads.
    fn list_queue(
        &self,
        node: NodeId,
        shard: (ShardId, Epoch),
        list: &QueueList,
    ) -> BoxFuture<'static, Result<QueuePage, Failed>>;
}
