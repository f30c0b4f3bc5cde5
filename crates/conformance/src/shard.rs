//! One shard: transactions are evaluated, encoded, applied and read as a leader does it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use meridian_gateway::{
    Changed, ChangesWanted, Database, Listen, Listened, NoChanges, NoRoom, QueueList, QueuePage,
    Read, ReadOutput, Reports, Unavailable, Watch, WatchNews, WatchedValue, Watching, Write,
    WriteFailure,
};
use meridian_proto::{DecodedBatch, encode_batch};
use meridian_queue::Answer;
use meridian_storage::{
    Engine, MemoryEngine, QueuedMessage, RaftApplied, ShardState, StorageError, decode_batch,
};
use meridian_txn::{Evaluation, Overlaid, Overlay, evaluate};
use meridian_types::limits::MAX_UNDELIVERED_MESSAGES;
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Entry, Epoch, Position, QueueEffect,
    QueueTotals, ReadRange, RequestId, ShardId, Versionstamp, WriteOutcome,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The time of the shard, in milliseconds since the Unix epoch.
pub const NOW_MS: u64 = 1_700_000_000_000;
/// Batches that wait to be applied at most: the next is evaluated over them, as in a leader whose
/// disks are slow.
const IN_FLIGHT: usize = 3;

/// A shard on the in-memory engine.
pub struct Shard {
    state: ShardState,
    leader: Mutex<Leader>,
}

struct Leader {
    last: Position,
    overlay: Overlay,
    in_flight: VecDeque<DecodedBatch>,
}

impl Shard {
    /// # Errors
    /// None that is known of: the engine is in memory.
    pub fn open() -> Result<Self, StorageError> {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let leader = Leader {
            last: Position::new(Epoch::FIRST, 0),
            overlay: Overlay::new(),
            in_flight: VecDeque::new(),
        };
        let leader = Mutex::new(leader);
        Ok(Self { state: ShardState::open(engine, ShardId(1))?, leader })
    }

    /// The keys of a database that expire, and when, by key.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn expiries(&self, database: DatabaseId) -> Result<Vec<(Bytes, u64)>, StorageError> {
        self.apply(&mut self.leader.lock(), 0)?;
        let all = self.state.expired(u64::MAX, usize::MAX)?;
        let current = all.into_iter().filter(|row| row.database == database && row.is_current);
        let mut expiries: Vec<_> = current.map(|row| (row.key, row.expire_at_ms)).collect();
        expiries.sort();
        Ok(expiries)
    }

    /// The messages of a database that are not delivered, by due time.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn messages(&self, database: DatabaseId) -> Result<Vec<QueuedMessage>, StorageError> {
        self.apply(&mut self.leader.lock(), 0)?;
        self.state.messages_due(&database.into(), None, u64::MAX, usize::MAX, usize::MAX)
    }

    /// Applies the oldest batches, until no more than `left` wait.
    fn apply(&self, leader: &mut Leader, left: usize) -> Result<(), StorageError> {
        while leader.in_flight.len() > left {
            let Some(batch) = leader.in_flight.pop_front() else { break };
            let position = batch.batch.position;
            self.state.apply(&[batch], RaftApplied::default())?;
            leader.overlay.release(position);
        }
        Ok(())
    }

    /// Lets the queue of a database be as long as it may be, by its totals.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn fill_queue(&self, database: DatabaseId) -> Result<(), StorageError> {
        let mut leader = self.leader.lock();
        self.apply(&mut leader, 0)?;
        let totals =
            QueueTotals { undelivered: MAX_UNDELIVERED_MESSAGES, ..QueueTotals::default() };
        let transaction = CommittedTransaction {
            request_id: RequestId([0; 16]),
            database,
            effects: vec![Effect::Queue(QueueEffect::PutTotals(totals))],
            refusal: None,
        };
        self.append(&mut leader, transaction)?;
        self.apply(&mut leader, 0)
    }

    fn append(
        &self,
        leader: &mut Leader,
        transaction: CommittedTransaction,
    ) -> Result<(), StorageError> {
        let position = leader.last.next();
        let batch = Batch { position, time_ms: NOW_MS, transactions: vec![transaction] };
        leader.in_flight.push_back(decode_batch(encode_batch(&batch))?);
        leader.last = position;
        self.apply(leader, IN_FLIGHT)
    }

    fn commit(&self, write: &Write) -> Result<WriteOutcome, StorageError> {
        let mut leader = self.leader.lock();
        let versionstamp = Versionstamp::new(leader.last.next(), 0);
        let applied = self.state.at(NOW_MS);
        let view = Overlaid { overlay: &leader.overlay, applied: &applied, now_ms: NOW_MS };
        let effects =
            match evaluate(&view, write.database, versionstamp, NOW_MS, &write.transaction)? {
                Evaluation::Commit(effects) => effects,
                Evaluation::CheckFailed(indexes) => return Ok(WriteOutcome::CheckFailed(indexes)),
                Evaluation::Rejected(text) => return Ok(WriteOutcome::Rejected(text)),
            };
        leader.overlay.push(versionstamp, write.database, &effects);
        let transaction = CommittedTransaction {
            request_id: write.request_id,
            database: write.database,
            effects,
            refusal: None,
        };
        self.append(&mut leader, transaction)?;
        Ok(WriteOutcome::Committed(versionstamp))
    }

    fn found(&self, read: &Read) -> Result<ReadOutput, StorageError> {
        self.apply(&mut self.leader.lock(), 0)?;
        let view = self.state.read(read.database, &read.ranges, NOW_MS)?;
        Ok(ReadOutput { ranges: view.ranges })
    }
}

/// A watch that tells of the state at its beginning alone: the shard has nothing that hears of changes.
pub struct FirstLook(Option<WatchNews>);

impl Watching for FirstLook {
    fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        self.0.take().map_or(Poll::Pending, |news| Poll::Ready(Some(Ok(news))))
    }

    fn take_back(&mut self, news: &WatchNews) {
        self.0 = Some(news.clone());
    }
}

impl Database for Shard {
    type Watching = FirstLook;

    async fn watch(self: &Arc<Self>, watch: Watch) -> Result<FirstLook, Unavailable> {
        let Watch { database, consistency, keys, .. } = watch;
        let behind = |key: &Bytes| [key.as_ref(), &[0]].concat().into();
        let range =
            |key: Bytes| ReadRange { end: behind(&key), start: key, limit: 1, reverse: false };
        let ranges = keys.into_iter().map(range).collect();
        let found = self.read(Read { database, consistency, ranges }).await?;
        let value = |mut entries: Vec<Entry>| match entries.pop() {
            Some(entry) => Some(WatchedValue::present(entry)),
            None => Some(WatchedValue::absent()),
        };
        Ok(FirstLook(Some(found.ranges.into_iter().map(value).collect())))
    }

    /// No message goes to a listener: the shard has no leader that deals with them.
    fn listen(self: &Arc<Self>, _: Listen) -> Listened {
        Listened { heard: futures::stream::empty().boxed(), enough: oneshot::channel().0 }
    }

    async fn report(&self, _: Reports) -> Result<Vec<Answer>, Unavailable> {
        Err(Unavailable { reason: "This shard has no listeners.".to_owned() })
    }

    async fn changes(&self, _: ChangesWanted) -> Result<Changed, NoChanges> {
        Err(Unavailable { reason: "This shard has no log.".to_owned() }.into())
    }

    async fn list_queue(&self, _: QueueList) -> Result<QueuePage, Unavailable> {
        Err(Unavailable { reason: "This shard has no leader that lists queues.".to_owned() })
    }

    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        self.found(&read).map_err(|error| Unavailable { reason: error.to_string() })
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        let failed = |error: StorageError| Unavailable { reason: error.to_string() };
        Ok(self.commit(&write).map_err(failed)?)
    }
}
