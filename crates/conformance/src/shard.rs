//! One shard: transactions are evaluated, encoded, applied and read as a leader does it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt;
use meridian_gateway::{
    Changed, ChangesWanted, Database, Listen, Listened, NoChanges, NoRoom, Read, ReadOutput,
    Reports, Unavailable, Watch, WatchNews, Watching, Write, WriteFailure,
};
use meridian_proto::{DecodedBatch, encode_batch};
use meridian_queue::Answer;
use meridian_storage::{Engine, MemoryEngine, RaftApplied, ShardState, StorageError, decode_batch};
use meridian_txn::{Evaluation, Overlaid, Overlay, evaluate};
use meridian_types::limits::MAX_UNDELIVERED_MESSAGES;
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, QueueEffect, QueueTotals,
    RequestId, ShardId, Versionstamp, WriteOutcome,
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

/// No watch begins here: the shard has no leader that it follows.
pub enum NoWatch {}

impl Watching for NoWatch {
    fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        match *self {}
    }

    fn take_back(&mut self, _: &WatchNews) {
        match *self {}
    }
}

impl Database for Shard {
    type Watching = NoWatch;

    async fn watch(self: &Arc<Self>, _: Watch) -> Result<NoWatch, Unavailable> {
        Err(Unavailable { reason: "This shard has no watches.".to_owned() })
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

    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        self.found(&read).map_err(|error| Unavailable { reason: error.to_string() })
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        let failed = |error: StorageError| Unavailable { reason: error.to_string() };
        Ok(self.commit(&write).map_err(failed)?)
    }
}
