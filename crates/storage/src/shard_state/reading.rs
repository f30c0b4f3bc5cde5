//! Reads of a state, each of one moment.
//!
//! No lock of the state is held while the engine is asked for anything that may need the disk.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use meridian_txn::{Stored, View};
use meridian_types::{
    DatabaseId, DeadLetter, Entry, Message, MessageId, Position, QueueId, QueueTotals, ReadRange,
};

use super::{Applied, ShardState};
use crate::schema::{self, APPLIED_KEY, StoredValue};
use crate::state_read::{ReadView, StateRead, Turn, first_key, is_point};
use crate::{EngineSnapshot, Scan, StorageError};

/// A snapshot, the state's family, and the row of what exactly the snapshot reflects.
type Moment = (Arc<dyn EngineSnapshot>, Arc<str>, Option<Bytes>);

/// A value that was to expire at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    pub expire_at_ms: u64,
    pub database: DatabaseId,
    pub key: Bytes,
    /// Whether that value is still the one stored.
    pub is_current: bool,
}

impl ShardState {
    /// Begins a read of all ranges from one state. Values that have expired at `now_ms` (or at the
    /// time of the state's last batch, if that is later) are left out. It delays no writer, and no
    /// writer delays it.
    pub fn begin_read(
        &self,
        database: DatabaseId,
        ranges: Vec<ReadRange>,
        now_ms: u64,
    ) -> Result<StateRead, StorageError> {
        let (snapshot, family, applied) = self.at_one_moment()?;
        Self::read_of(snapshot, family, applied, database, ranges, now_ms)
    }

    fn read_of(
        snapshot: Arc<dyn EngineSnapshot>,
        family: Arc<str>,
        applied: Option<Bytes>,
        database: DatabaseId,
        ranges: Vec<ReadRange>,
        now_ms: u64,
    ) -> Result<StateRead, StorageError> {
        let applied = applied.map_or_else(|| Ok(Applied::nothing()), Applied::decode)?;
        let now_ms = now_ms.max(applied.time_ms);
        Ok(StateRead::new((snapshot, family), applied.position, database, ranges, now_ms))
    }

    /// The same in one go, whatever it takes: for states that are known to be small.
    pub fn read(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
        now_ms: u64,
    ) -> Result<ReadView, StorageError> {
        loop {
            let mut read = self.begin_read(database, ranges.to_vec(), now_ms)?;
            let done = loop {
                match read.turn(usize::MAX) {
                    Ok(Turn::Done) => break true,
                    Ok(Turn::More | Turn::Full) => {}
                    Err(StorageError::NoFamily(_)) => break false,
                    Err(error) => return Err(error),
                }
            };
            if done {
                return Ok(read.into_view(()));
            }
        }
    }

    /// A read that takes some microseconds, since it is small and needs no disk. `None` says
    /// nothing about the state.
    pub fn read_cached(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
        now_ms: u64,
    ) -> Result<Option<ReadView>, StorageError> {
        if let [range] = ranges
            && let Some(key) = first_key(range)
            && let Some(view) = self.read_key(database, range, key, now_ms)?
        {
            return Ok(Some(view));
        }
        let family = Arc::clone(&self.current.read().family);
        let snapshot = self.engine.snapshot();
        let read = snapshot.get_cached(&family, APPLIED_KEY).and_then(|applied| match applied {
            None => Ok(None),
            Some(applied) => {
                Self::read_of(snapshot, family, applied, database, ranges.to_vec(), now_ms)?
                    .at_once()
            }
        });
        match read {
            Err(StorageError::NoFamily(_)) => Ok(None),
            read => read,
        }
    }

    /// Answers a range by its first key, without a snapshot, if that key is enough and can be had
    /// without a disk.
    fn read_key(
        &self,
        database: DatabaseId,
        range: &ReadRange,
        key: &Bytes,
        now_ms: u64,
    ) -> Result<Option<ReadView>, StorageError> {
        let (family, position, time_ms) = {
            let current = self.current.read();
            (Arc::clone(&current.family), current.applied.position, current.applied.time_ms)
        };
        let value = match self.engine.get_cached(&family, &schema::data_key(database, key)) {
            Ok(Some(value)) => value,
            Ok(None) | Err(StorageError::NoFamily(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let view = |entries| Ok(Some(ReadView { ranges: vec![entries], position }));
        // The applier may have written since, and the engine shows that before `current` does. What
        // was written by `position` is the newest of that one; anything else is of a moment whose
        // time is not known here. So is what is not there, unless nothing was being written: a
        // later batch may have deleted it.
        let entry = match value {
            None if self.max_served() != position.sequence => return Ok(None),
            None => None,
            Some(value) => {
                let StoredValue { versionstamp, expire_at_ms, value } = StoredValue::decode(value)?;
                if versionstamp.position().sequence > position.sequence {
                    return Ok(None);
                }
                let is_live = !schema::is_expired(expire_at_ms, now_ms.max(time_ms));
                is_live.then(|| Entry { key: key.clone(), value, versionstamp })
            }
        };
        match entry {
            Some(entry) => view(vec![entry]),
            None if is_point(range) => view(Vec::new()),
            None => Ok(None),
        }
    }

    /// The present state, of one moment: its rows and what was applied change in one write.
    pub(super) fn at_one_moment(&self) -> Result<Moment, StorageError> {
        self.in_family(|family| {
            let snapshot = self.engine.snapshot();
            let applied = snapshot.get(family, APPLIED_KEY)?;
            Ok((snapshot, Arc::clone(family), applied))
        })
    }

    /// The rows of these keys as they are stored, what has expired included, all of one moment: that
    /// of the position.
    pub fn stored(
        &self,
        keys: &[(DatabaseId, Bytes)],
    ) -> Result<(Vec<Option<StoredValue>>, Position), StorageError> {
        self.in_family(|family| {
            let snapshot = self.engine.snapshot();
            let applied = snapshot.get(family, APPLIED_KEY)?;
            let applied = applied.map_or_else(|| Ok(Applied::nothing()), Applied::decode)?;
            let row = |(database, key): &(DatabaseId, Bytes)| {
                let row = snapshot.get(family, &schema::data_key(*database, key))?;
                row.map(StoredValue::decode).transpose()
            };
            Ok((keys.iter().map(row).collect::<Result<_, _>>()?, applied.position))
        })
    }

    /// The rows that expire at or before `now_ms`, oldest first, at most `limit`.
    pub fn expired(&self, now_ms: u64, limit: usize) -> Result<Vec<Expired>, StorageError> {
        let (snapshot, family, _) = self.at_one_moment()?;
        let mut rows = Vec::new();
        let (start, end) = (schema::expiry_range().0, schema::expiry_bound(now_ms));
        snapshot.scan(
            &family,
            Scan { start: &start, end: &end, reverse: false },
            &mut |key, value| {
                rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                if rows.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )?;
        let resolve = |(key, value): (Bytes, Bytes)| {
            let corrupt = || StorageError::corruption("an expiry row", format!("{key:?}"));
            let (expire_at_ms, database, user_key) =
                schema::parse_expiry_key(&key).ok_or_else(corrupt)?;
            let stored = snapshot.get(&family, &schema::data_key(database, &user_key))?;
            let stamp = stored
                .map(|bytes| StoredValue::header(&bytes).map(|(stamp, _, _)| stamp))
                .transpose()?;
            let is_current = stamp.is_some_and(|stamp| stamp.0 == value.as_ref());
            Ok(Expired { expire_at_ms, database, key: user_key, is_current })
        };
        rows.into_iter().map(resolve).collect()
    }
}

/// The state as transactions see it at a moment: what has expired by then is absent.
pub struct StateAt<'a> {
    state: &'a ShardState,
    now_ms: u64,
}

impl ShardState {
    pub fn at(&self, now_ms: u64) -> StateAt<'_> {
        StateAt { state: self, now_ms }
    }
}

impl View for StateAt<'_> {
    type Error = StorageError;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, StorageError> {
        let key = schema::data_key(database, key);
        let bytes = self.state.in_family(|family| self.state.engine.get(family, &key))?;
        let Some(stored) = bytes.map(StoredValue::decode).transpose()? else { return Ok(None) };
        if schema::is_expired(stored.expire_at_ms, self.now_ms) {
            return Ok(None);
        }
        Ok(Some(Stored { versionstamp: stored.versionstamp, value: stored.value }))
    }

    fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, StorageError> {
        self.state.message(queue, due_ms, id)
    }

    fn queue_totals(&self, database: DatabaseId) -> Result<QueueTotals, StorageError> {
        self.state.queue_totals(database)
    }

    fn named_undelivered(&self, queue: &QueueId) -> Result<u64, StorageError> {
        self.state.named_undelivered(queue)
    }

    fn dead_letter(
        &self,
        database: DatabaseId,
        number: u64,
    ) -> Result<Option<DeadLetter>, StorageError> {
        self.state.dead_letter(database, number)
    }
}
