//! Reads of a state, in turns: none holds anything up for longer than one turn, whatever it has to
//! skip.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_types::{DatabaseId, Entry, Position, ReadRange, Value, ValueEncoding, Versionstamp};

use crate::schema::{self, StoredValue};
use crate::{Effort, EngineSnapshot, Scan, Scanned, StorageError};

/// One turn looks at so many rows, and copies about so many bytes, at most.
const TURN_ROWS: usize = 1024;
const TURN_BYTES: usize = 1 << 20;
/// Deleted rows that the first turn skips at most. Where they are more, nothing tells how far it
/// came: the next turn begins where this one did and skips twice as many, so that all turns
/// together look at no more than twice what there is.
const FIRST_SKIPS: u64 = 4096;
/// A read that is done within these bounds, without a disk, takes some 100 microseconds: hardly
/// more than to pass it to another thread and back. Lists of clients come in parts of 100 rows.
const ROWS_AT_ONCE: usize = 128;
const BYTES_AT_ONCE: usize = 128 << 10;
/// Before any one row, in some 40 microseconds: a queue's deleted head. Each deleted row counts
/// twice, with what was deleted there.
const SKIPS_AT_ONCE: u64 = 1024;
/// A bound for the skips before all rows together, which nothing counts: the time, from the fifth
/// row on.
const TIME_AT_ONCE: Duration = Duration::from_micros(200);
const ROWS_IN_TIME: usize = 5;
/// The bytes that an entry takes beside its key and value.
const ENTRY_BYTES: usize = size_of::<Found>() + size_of::<Entry>();

/// Entries of each range, and the position that the state had reached, at least, when they were
/// read: the shard may be in a later epoch by the time that they are looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadView {
    pub ranges: Vec<Vec<Entry>>,
    pub position: Position,
}

/// How a turn of a [`StateRead`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// With the last entry: [`StateRead::into_view`] has them.
    Done,
    /// With more to look at.
    More,
    /// With more bytes than it may hold.
    Full,
}

/// A read of several ranges, all from one state. It holds the engine's files of that moment for as
/// long as it lives.
pub struct StateRead {
    snapshot: Arc<dyn EngineSnapshot>,
    family: Arc<str>,
    database: DatabaseId,
    ranges: Vec<ReadRange>,
    /// Values that have expired at this time are left out.
    now_ms: u64,
    position: Position,
    progress: Progress,
}

#[derive(Default)]
struct Progress {
    /// The entries found in the ranges that are read to their end.
    ranges: Vec<Vec<Found>>,
    /// In the range that is being read, and the last row of it that was looked at.
    found: Vec<Found>,
    last: Option<Vec<u8>>,
    /// Keys and values, copied once, those of a turn together.
    chunks: Vec<Vec<u8>>,
    bytes: usize,
    max_skipped: u64,
}

/// An entry whose key and value lie in a chunk.
struct Found {
    chunk: usize,
    key: Range<usize>,
    data: Range<usize>,
    encoding: ValueEncoding,
    versionstamp: Versionstamp,
}

impl Progress {
    /// Looks at a row. Nothing is copied of what has expired.
    fn look(&mut self, key: &[u8], stored: &[u8], now_ms: u64) -> Result<(), StorageError> {
        let (versionstamp, encoding, expire_at_ms) = StoredValue::header(stored)?;
        if schema::is_expired(expire_at_ms, now_ms) {
            return Ok(());
        }
        let data = StoredValue::data(stored);
        let index = self.chunks.len().saturating_sub(1);
        let Some(chunk) = self.chunks.last_mut() else { return Ok(()) };
        let at = chunk.len();
        chunk.extend_from_slice(key);
        chunk.extend_from_slice(data);
        let (key, data) = (at..at + key.len(), at + key.len()..chunk.len());
        self.bytes += data.end - at + ENTRY_BYTES;
        self.found.push(Found { chunk: index, key, data, encoding, versionstamp });
        Ok(())
    }
}

/// The rows, bytes and time that a turn has left.
struct Looked {
    rows: usize,
    /// Of [`Progress::bytes`].
    until_bytes: usize,
    /// Of a read [at once](StateRead::at_once).
    until: Option<Instant>,
}

impl Looked {
    fn enough(&self, progress: &Progress) -> bool {
        let looked_at = ROWS_AT_ONCE.saturating_sub(self.rows);
        let is_late =
            || self.until.is_some_and(|until| looked_at >= ROWS_IN_TIME && Instant::now() >= until);
        self.rows == 0 || progress.bytes > self.until_bytes || is_late()
    }
}

impl StateRead {
    pub(crate) fn new(
        (snapshot, family): (Arc<dyn EngineSnapshot>, Arc<str>),
        position: Position,
        database: DatabaseId,
        ranges: Vec<ReadRange>,
        now_ms: u64,
    ) -> Self {
        let progress = Progress { max_skipped: FIRST_SKIPS, ..Progress::default() };
        Self { snapshot, family, database, ranges, now_ms, position, progress }
    }

    /// Reads on, for a bounded time, while what was found takes no more than `max_bytes`.
    ///
    /// # Errors
    /// [`StorageError::NoFamily`] when the state was replaced meanwhile, by a snapshot of another
    /// node: the read begins anew.
    pub fn turn(&mut self, max_bytes: usize) -> Result<Turn, StorageError> {
        let until_bytes = self.progress.bytes.saturating_add(TURN_BYTES).min(max_bytes);
        let done = self.read_on(Looked { rows: TURN_ROWS, until_bytes, until: None }, false)?;
        Ok(match () {
            () if self.progress.bytes > max_bytes => Turn::Full,
            () if done => Turn::Done,
            () => Turn::More,
        })
    }

    /// The whole read, if it is small and in memory.
    pub(crate) fn at_once(mut self) -> Result<Option<ReadView>, StorageError> {
        let until = Some(Instant::now() + TIME_AT_ONCE);
        let looked = Looked { rows: ROWS_AT_ONCE, until_bytes: BYTES_AT_ONCE, until };
        Ok(self.read_on(looked, true)?.then(|| self.into_view(())))
    }

    /// Reads on in all ranges; true at their end.
    fn read_on(&mut self, mut looked: Looked, cached_only: bool) -> Result<bool, StorageError> {
        self.progress.chunks.push(Vec::new());
        while self.progress.ranges.len() < self.ranges.len() && !looked.enough(&self.progress) {
            if !self.read_range(&mut looked, cached_only)? {
                break;
            }
            self.progress.last = None;
            let found = std::mem::take(&mut self.progress.found);
            self.progress.ranges.push(found);
        }
        if let Some(chunk) = self.progress.chunks.last_mut() {
            chunk.shrink_to_fit();
        }
        Ok(self.progress.ranges.len() == self.ranges.len())
    }

    /// Reads on in the range whose turn it is; true at its end.
    fn read_range(&mut self, looked: &mut Looked, cached_only: bool) -> Result<bool, StorageError> {
        let Self { snapshot, family, database, ranges, now_ms, progress, .. } = self;
        let Some(range) = ranges.get(progress.ranges.len()) else { return Ok(true) };
        let limit = range.limit as usize;
        if progress.found.len() >= limit {
            return Ok(true);
        }
        if is_point(range) {
            looked.rows -= 1;
            let key = schema::data_key(*database, &range.start);
            let stored = match cached_only {
                true => snapshot.get_cached(family, &key)?,
                false => Some(snapshot.get(family, &key)?),
            };
            let Some(stored) = stored else { return Ok(false) };
            if let Some(stored) = stored {
                progress.look(&range.start, &stored, *now_ms)?;
            }
            return Ok(true);
        }
        let (start, end) = rest(*database, range, progress.last.as_deref());
        let scan = Scan { start: &start, end: &end, reverse: range.reverse };
        let (mut failure, before) = (None, looked.rows);
        let max_skipped = if cached_only { SKIPS_AT_ONCE } else { progress.max_skipped };
        let effort = Effort { max_skipped, cached_only };
        let scanned = snapshot.scan_some(family, scan, effort, &mut |key, stored| {
            looked.rows -= 1;
            let last = progress.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            if let Err(error) = progress.look(schema::user_key(key), stored, *now_ms) {
                failure = Some(error);
            }
            let go_on =
                failure.is_none() && progress.found.len() < limit && !looked.enough(progress);
            if go_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        if scanned == Scanned::Skipped && looked.rows == before {
            progress.max_skipped = max_skipped.saturating_mul(2);
        }
        Ok(progress.found.len() >= limit || scanned == Scanned::All && !looked.enough(progress))
    }

    /// The bytes of all entries found so far.
    pub fn bytes(&self) -> usize {
        self.progress.bytes
    }

    /// The entries found, after [`Turn::Done`]. `beside` lives for as long as any of their keys and
    /// values.
    pub fn into_view(self, beside: impl Send + Sync + 'static) -> ReadView {
        let beside = Arc::new(beside);
        let chunk = |bytes| Bytes::from_owner(Chunk { bytes, _beside: Arc::clone(&beside) });
        let chunks: Vec<Bytes> = self.progress.chunks.into_iter().map(chunk).collect();
        let entry = |found: Found| {
            let chunk = chunks.get(found.chunk)?;
            let value = Value { encoding: found.encoding, data: chunk.slice(found.data) };
            Some(Entry { key: chunk.slice(found.key), value, versionstamp: found.versionstamp })
        };
        let entries = |range: Vec<Found>| range.into_iter().filter_map(entry).collect();
        ReadView {
            ranges: self.progress.ranges.into_iter().map(entries).collect(),
            position: self.position,
        }
    }
}

struct Chunk<T> {
    bytes: Vec<u8>,
    _beside: Arc<T>,
}

impl<T> AsRef<[u8]> for Chunk<T> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The rest of a range behind the last row that was looked at, as keys of rows.
fn rest(database: DatabaseId, range: &ReadRange, last: Option<&[u8]>) -> (Vec<u8>, Vec<u8>) {
    let (start, end) =
        (schema::data_key(database, &range.start), schema::data_key(database, &range.end));
    match last {
        None => (start, end),
        Some(last) if range.reverse => (start, last.to_vec()),
        Some(last) => ([last, &[0]].concat(), end),
    }
}

/// Whether the range can hold no other key than its start. That is so if it ends with the start and
/// a zero byte, and for no other end: whatever lies between begins with the start, and is not
/// longer.
///
/// A range that ends with the start and `ff`, as `@deno/kv` asks for one key, is not such: the keys
/// whose first parts are that key lie in it too, as `["a", "b"]` does in that of `["a"]`. See
/// [`first_key`].
pub(crate) fn is_point(range: &ReadRange) -> bool {
    range.end.strip_prefix(range.start.as_ref()) == Some(&[0])
}

/// The key that answers the range alone if it is there: the first one, where no more than the first
/// is asked for. Where it is not there, only a point is answered by that.
pub(crate) fn first_key(range: &ReadRange) -> Option<&Bytes> {
    let first = range.limit == 1 && !range.reverse && range.start < range.end;
    (first || range.limit > 0 && is_point(range)).then_some(&range.start)
}

#[cfg(test)]
mod tests;
