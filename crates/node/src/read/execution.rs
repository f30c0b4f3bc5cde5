//! Carries reads out: a bounded number at a time, each in bounded turns, for no more bytes than the
//! process may hold. Databases have bytes and turns one after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;
use meridian_memory::{ByteBudget, Exhausted, Held};
use meridian_storage::schema::StoredValue;
use meridian_storage::{ReadView, ShardState, StateRead, StorageError, Turn, or_fatal};
use meridian_types::{DatabaseId, Entry, Position, ReadRange, limits};
use tokio::sync::Semaphore;

use crate::read::line::Line;
use crate::read::messages::MessageBudget;
use crate::read::refusal::ReadRefusal;

/// How long a read waits for bytes before it is refused: others are answered in the meantime, and
/// clients try again what is refused.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// A read that is not done by then is given up: its caller has left.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The most bytes of one entry.
const MAX_ENTRY_BYTES: usize = limits::MAX_VALUE_BYTES + limits::MAX_READ_KEY_BYTES + 256;
/// The bytes that an entry takes beside its key and value.
const ENTRY_BYTES: usize = 256;
const SMALL_BYTES: usize = 256 << 10;
/// A read's bytes, try by try. Most need the first only; a read that needs more gives back what it
/// has, waits for the next, and begins anew, so that no read waits that holds anything.
const ALLOTMENTS: [usize; 3] = [SMALL_BYTES, 4 << 20, limits::MAX_READ_ENTRIES * MAX_ENTRY_BYTES];

/// So much of the bytes that reads may hold, and beside them, is for reads at once.
const SMALL_PART: usize = 32;

/// As much again is for messages on their way to listeners, which take them in their own time: they
/// keep nothing from reads. It has room for many parts also in the smallest process.
const MESSAGES_PART: usize = 16;
const MIN_MESSAGES_BYTES: usize = 4 << 20;

/// The reads of one node. Cheap to clone; clones share threads and bytes.
#[derive(Clone)]
pub(crate) struct Reads {
    bytes: ByteBudget,
    /// For what is read at once.
    small: ByteBudget,
    messages: MessageBudget,
    /// Turns at a time.
    turns: Arc<Semaphore>,
    /// Those that wait for bytes, and those that wait for a turn: databases one after the other.
    for_bytes: Line,
    for_turns: Line,
}

/// Rows of one moment. Their bytes are given back to the budget when this is dropped.
pub(crate) struct StoredRows {
    pub(crate) rows: Vec<Option<StoredValue>>,
    pub(crate) position: Position,
    _held: Held,
}

enum Interrupted {
    Storage(StorageError),
    Stopping,
}

impl Reads {
    pub(crate) fn new(bytes: ByteBudget) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let small = ByteBudget::new("small reads", bytes.total_bytes() / SMALL_PART);
        let messages = (bytes.total_bytes() / MESSAGES_PART).max(MIN_MESSAGES_BYTES);
        let messages = MessageBudget::new(messages);
        let turns = Arc::new(Semaphore::new((2 * cores).clamp(4, 64)));
        let (for_bytes, for_turns) = (Line::default(), Line::default());
        Self { bytes, small, messages, turns, for_bytes, for_turns }
    }

    /// For messages on their way to listeners.
    pub(crate) fn messages(&self) -> &MessageBudget {
        &self.messages
    }

    /// Runs `work`, which reads a little, on a thread that may block, when it is the turn of the
    /// database, if it is for one. `None`: the runtime ends.
    pub(crate) async fn little<T: Send + 'static>(
        &self,
        of: Option<DatabaseId>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.turn(of, move || Ok(work())).await.ok()
    }

    /// The bytes that all reads together may hold.
    pub(crate) fn total_bytes(&self) -> usize {
        self.bytes.total_bytes()
    }

    /// For the answer of another node, at once: a small one waits behind no large one.
    pub(crate) fn take_now(&self, bytes: usize) -> Option<Held> {
        let small = (bytes <= SMALL_BYTES).then(|| self.small.take(bytes, PATIENCE).now_or_never());
        let of_all = || self.bytes_for(None, bytes, PATIENCE).now_or_never();
        let held = small.flatten().or_else(of_all);
        held.and_then(Result::ok)
    }

    /// For the answer of another node, once there is room.
    pub(crate) async fn take(&self, bytes: usize) -> Result<Held, Exhausted> {
        self.take_within(bytes, PATIENCE).await
    }

    /// For an answer to another node.
    pub(crate) async fn take_within(
        &self,
        bytes: usize,
        within: Duration,
    ) -> Result<Held, Exhausted> {
        self.bytes_for(None, bytes, within).await
    }

    /// Bytes, when it is the turn of the database, if they are for one. May be dropped at any await.
    async fn bytes_for(
        &self,
        of: Option<DatabaseId>,
        bytes: usize,
        within: Duration,
    ) -> Result<Held, Exhausted> {
        let until = Instant::now() + within;
        let head = match self.for_bytes.head(of).now_or_never() {
            Some(head) => Some(head),
            None => tokio::time::timeout_at(until.into(), self.for_bytes.head(of)).await.ok(),
        };
        match head {
            // No other caller waits for bytes meanwhile.
            Some(_head) => {
                self.bytes.take(bytes, until.saturating_duration_since(Instant::now())).await
            }
            None => self.bytes.try_take(bytes),
        }
    }

    /// Reads all ranges from one state, at its own time: what has expired is a matter of the
    /// position, and of no clock. The bytes of what is found are given back to the budget when the
    /// last entry is dropped. Storage that cannot be read stops the process.
    ///
    /// May be dropped at any await: the read ends with the turn that it is in.
    pub(crate) async fn read(
        &self,
        state: &Arc<ShardState>,
        database: DatabaseId,
        ranges: &[ReadRange],
    ) -> Result<ReadView, ReadRefusal> {
        // Most reads are small, and their rows are in memory: a thread of their own would cost them
        // more, and they do not wait behind large ones for bytes. Their answers may wait for the
        // caller as long as any other.
        if let Some(mut view) = or_fatal(state.read_cached(database, ranges, 0))
            && let Some(Ok(held)) = self
                .small
                .take(view.ranges.iter().flatten().map(weight).sum(), PATIENCE)
                .now_or_never()
        {
            hold_with_last(&mut view.ranges, held);
            return Ok(view);
        }
        let read = self.read_allotted(state, database, ranges);
        let late = |_| Err(ReadRefusal::TooLong(TIMEOUT));
        tokio::time::timeout(TIMEOUT, read).await.unwrap_or_else(late)
    }

    /// The rows of a few keys as they are stored, what has expired included, of one moment.
    pub(crate) async fn stored(
        &self,
        state: &Arc<ShardState>,
        keys: Vec<(DatabaseId, Bytes)>,
    ) -> Result<StoredRows, ReadRefusal> {
        let bytes = keys.len().saturating_mul(MAX_ENTRY_BYTES);
        // Keys that changed together, of as many databases as there are.
        let held = self.bytes_for(None, bytes, PATIENCE).await?;
        let state = Arc::clone(state);
        match self.turn(None, move || state.stored(&keys)).await {
            Ok((rows, position)) => Ok(StoredRows { rows, position, _held: held }),
            Err(Interrupted::Storage(error)) => or_fatal(Err(error)),
            Err(Interrupted::Stopping) => Err(ReadRefusal::Stopping),
        }
    }

    async fn read_allotted(
        &self,
        state: &Arc<ShardState>,
        database: DatabaseId,
        ranges: &[ReadRange],
    ) -> Result<ReadView, ReadRefusal> {
        let entries: usize = ranges.iter().map(|range| range.limit as usize).sum();
        let needed = entries.saturating_mul(MAX_ENTRY_BYTES);
        let of = Some(database);
        let mut allotments = ALLOTMENTS.into_iter();
        let mut allotment = allotments.next();
        while let Some(max_bytes) = allotment {
            let mut held = self.bytes_for(of, max_bytes.min(needed), PATIENCE).await?;
            let (state, ranges) = (Arc::clone(state), ranges.to_vec());
            let begin = move || state.begin_read(database, ranges, 0);
            match self.in_turns(of, begin, max_bytes).await {
                Ok(Some(read)) => {
                    held.shrink_to(read.bytes());
                    return Ok(read.into_view(held));
                }
                Ok(None) => allotment = allotments.next(),
                // The state was replaced by a snapshot: the read begins anew.
                Err(Interrupted::Storage(StorageError::NoFamily(_))) => {}
                Err(Interrupted::Storage(error)) => or_fatal(Err(error)),
                Err(Interrupted::Stopping) => {
                    return Err(ReadRefusal::Stopping);
                }
            }
        }
        Err(ReadRefusal::TooLarge)
    }

    /// A read that has come to its end. `None`: it found more than `max_bytes`.
    async fn in_turns(
        &self,
        of: Option<DatabaseId>,
        begin: impl FnOnce() -> Result<StateRead, StorageError> + Send + 'static,
        max_bytes: usize,
    ) -> Result<Option<StateRead>, Interrupted> {
        let turn = move |mut read: StateRead| read.turn(max_bytes).map(|turn| (read, turn));
        let (mut read, mut ended) = self.turn(of, move || turn(begin()?)).await?;
        loop {
            match ended {
                Turn::Done => return Ok(Some(read)),
                Turn::Full => return Ok(None),
                // A long read goes to the end of its database's queue after each turn.
                Turn::More => (read, ended) = self.turn(of, move || turn(read)).await?,
            }
        }
    }

    /// Runs `work` on a thread that may block, when it is its turn. A turn is bounded in work:
    /// databases that have as many have as much.
    async fn turn<T: Send + 'static>(
        &self,
        of: Option<DatabaseId>,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, Interrupted> {
        let head = self.for_turns.head(of).await;
        let turn =
            Arc::clone(&self.turns).acquire_owned().await.map_err(|_| Interrupted::Stopping)?;
        drop(head);
        let worked = tokio::task::spawn_blocking(move || {
            let result = work();
            // Here, and not where the result is awaited: a future that is dropped does not end the
            // thread.
            drop(turn);
            result
        });
        // No thread works any more when the runtime ends. A panic has stopped the process.
        worked.await.map_err(|_| Interrupted::Stopping)?.map_err(Interrupted::Storage)
    }
}

/// The bytes that an entry takes in memory.
pub(crate) fn weight(entry: &Entry) -> usize {
    entry.key.len() + entry.value.data.len() + ENTRY_BYTES
}

/// Gives the bytes that an answer takes back with its last entry, which is the last to be encoded.
pub(crate) fn hold_with_last(ranges: &mut [Vec<Entry>], held: Held) {
    if let Some(last) = ranges.iter_mut().rev().find_map(|entries| entries.last_mut()) {
        last.value.data = counted(std::mem::take(&mut last.value.data), held);
    }
}

/// Bytes that give back what is held for them when they are dropped.
pub(crate) fn counted<H: Send + 'static>(data: Bytes, held: H) -> Bytes {
    struct Counted<H> {
        data: Bytes,
        _held: H,
    }
    impl<H> AsRef<[u8]> for Counted<H> {
        fn as_ref(&self) -> &[u8] {
            &self.data
        }
    }
    Bytes::from_owner(Counted { data, _held: held })
}

#[cfg(test)]
pub(crate) mod tests;
