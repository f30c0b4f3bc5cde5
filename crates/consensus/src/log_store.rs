//! The log of one Raft group: openraft's log storage over [`GroupLog`].
//!
//! Invariants: an append, a vote and a cut are acknowledged when they are fsynced; the high-water
//! mark, beside the log, is written in an order in which a crash looks like no loss.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use bytes::Bytes;
use meridian_proto::log;
use meridian_storage::{GroupId, GroupLog, HighWater, LogMark, StorageError, Syncer};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::blocking::off_the_runtime;
use crate::log_cache::{LogCache, Tail};
use crate::type_config::{Entry, LogId, TypeConfig, Vote};
use crate::wire;

mod opening;

/// The most bytes that one read returns, or one entry; openraft's own bound counts entries. So an
/// entry that is larger travels alone, and only its own size decides whether a message holds it.
const READ_BYTES: usize = 2 << 20;

/// One Raft group's log. Appends are readable at once and acknowledged when fsynced.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

/// A batch that this node proposed, and has in its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Proposed {
    pub(crate) term: u64,
    pub(crate) sequence: u64,
}

/// Where the log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// The first index that is still in the log.
    pub(crate) first: u64,
    /// The index behind the last.
    pub(crate) end: u64,
}

struct Shared {
    log: GroupLog,
    syncer: Arc<Syncer>,
    high_water: Option<Arc<HighWater>>,
    tail: Arc<Tail>,
    /// The newest batch that this node proposed itself.
    appended: watch::Sender<Proposed>,
    bounds: RwLock<Bounds>,
    /// How often the log was cut back. openraft may cut it while an earlier append waits for its
    /// fsync; that append must not raise the high-water mark any more.
    truncations: Mutex<u64>,
}

impl Shared {
    fn truncate_after(&self, last_log_id: Option<LogId>) -> Result<(), StorageError> {
        if let Some(marks) = &self.high_water {
            // Not held for the disk: the only thread that syncs logs waits for it. An earlier
            // append raises the mark before this, or not at all.
            *self.truncations.lock() += 1;
            marks.lower(self.log.group(), last_log_id.as_ref().map_or(0, |last| last.index))?;
        }
        self.bounds.write().end = last_log_id.as_ref().map_or(0, |last| last.index + 1);
        match last_log_id {
            Some(last) => {
                self.tail.truncate_after(last.index);
                self.log.truncate_after(last.index)
            }
            None => {
                self.tail.clear();
                self.log.clear()
            }
        }
    }
}

impl LogStore {
    /// Opens the log that this node's disk holds, after [`opening::repair`].
    pub(crate) fn open(
        log: GroupLog,
        syncer: Arc<Syncer>,
        high_water: Option<Arc<HighWater>>,
        cache: &LogCache,
    ) -> Result<Self, StorageError> {
        opening::repair(&log, high_water.as_deref())?;
        opening::remember_vote(&log, high_water.as_deref())?;
        let last = Self::last_log_id(&log)?.map(|last| last.index);
        let purged = log_id_mark(&log, LogMark::Purged)?.map(|purged| purged.index);
        let bounds = Bounds {
            first: purged.map_or(0, |index| index + 1),
            end: last.map_or(0, |index| index + 1),
        };
        let shared = Shared {
            log,
            syncer,
            high_water,
            tail: cache.tail(),
            appended: watch::Sender::default(),
            bounds: RwLock::new(bounds),
            truncations: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Whether this member has granted a vote, or followed a leader.
    pub(crate) fn has_vote(&self) -> Result<bool, StorageError> {
        Ok(self.shared.log.mark(LogMark::Vote)?.is_some())
    }

    /// Whether a vote is missing that was saved, and fsynced: before the first entry of its term
    /// came, or, as the mark beside the database says, without one. `applied`: the term of the last
    /// entry that the state has.
    pub(crate) fn has_lost_votes(&self, applied: u64) -> Result<bool, StorageError> {
        let last = self.last()?.map_or(0, |last| last.leader_id.term);
        let marks = self.shared.high_water.as_ref();
        let saved = marks.map_or(0, |marks| marks.voted(self.shared.log.group()));
        Ok(vote_mark(&self.shared.log)?.map_or(0, |vote| vote.leader_id.term)
            < last.max(applied).max(saved))
    }

    pub(crate) fn last(&self) -> Result<Option<LogId>, StorageError> {
        Self::last_log_id(&self.shared.log)
    }

    /// The entry that the log begins behind.
    pub(crate) fn purged(&self) -> Result<Option<LogId>, StorageError> {
        log_id_mark(&self.shared.log, LogMark::Purged)
    }

    /// The newest batch that this node proposed and has in its log.
    pub(crate) fn appended(&self) -> watch::Receiver<Proposed> {
        self.shared.appended.subscribe()
    }

    pub(crate) fn bounds(&self) -> Bounds {
        *self.shared.bounds.read()
    }

    /// Entries from `start` (inclusive) to `end` (exclusive), up to `max_bytes`, at least one if
    /// there is one.
    pub(crate) fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if let Some(entries) = self.shared.tail.read(start, end, max_bytes) {
            return Ok(entries);
        }
        let records = self.shared.log.read(start..end, max_bytes)?;
        records.into_iter().map(|(_, bytes)| Ok(wire::decode_entry(bytes)?)).collect()
    }

    /// Waits until every write so far is durable.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        // The caller waits no more if the receiver is gone.
        self.shared.syncer.sync_then(move || done.send(()).unwrap_or_default());
        synced.await.map_err(|_| io::Error::other("the log-sync thread is gone"))
    }
}

/// Reads from the log of a group that is not open.
impl LogStore {
    /// The last entry, purged or not.
    pub(crate) fn last_log_id(log: &GroupLog) -> Result<Option<LogId>, StorageError> {
        match log.last()? {
            Some((index, bytes)) => Ok(Some(Self::decode(log.group(), index, bytes)?.log_id)),
            None => log_id_mark(log, LogMark::Purged),
        }
    }

    /// # Errors
    /// [`StorageError::Corruption`], which names the entry.
    pub(crate) fn decode(group: GroupId, index: u64, bytes: Bytes) -> Result<Entry, StorageError> {
        wire::decode_entry(bytes).map_err(|error| StorageError::Corruption {
            what: format!("log entry {index} of {group}"),
            detail: error.to_string(),
        })
    }

    /// Whether this node has a log of the group, or has purged one.
    pub(crate) fn holds_log(log: &GroupLog) -> Result<bool, StorageError> {
        Ok(log.first()?.is_some() || log.mark(LogMark::Purged)?.is_some())
    }

    /// Whether this node has voted in the group, or has a log of it.
    pub(crate) fn is_in_use(log: &GroupLog) -> Result<bool, StorageError> {
        Ok(log.mark(LogMark::Vote)?.is_some() || Self::last_log_id(log)?.is_some())
    }

    /// Makes an empty log begin behind an entry that the state has. Durable after the next sync.
    pub(crate) fn begin_behind(log: &GroupLog, applied: log::LogId) -> Result<(), StorageError> {
        log.put_mark(LogMark::Purged, &applied.encode_to_vec())
    }

    /// Up to where this node knows that entries are committed, except for what its state says.
    pub(crate) fn committed_index(log: &GroupLog) -> Result<Option<u64>, StorageError> {
        let marks = [log_id_mark(log, LogMark::Committed)?, log_id_mark(log, LogMark::Purged)?];
        Ok(marks.into_iter().flatten().map(|log_id| log_id.index).max())
    }

    /// Deletes all entries and marks. Durable after the next sync.
    pub(crate) fn erase(log: &GroupLog) -> Result<(), StorageError> {
        log.erase(&[LogMark::Committed, LogMark::Purged, LogMark::Vote, LogMark::Left], None)
    }

    /// Deletes all entries, and keeps the vote and how far the log, or the state, went. Durable
    /// after the next sync.
    pub(crate) fn leave(log: &GroupLog, applied: Option<LogId>) -> Result<(), StorageError> {
        let left = Self::last_log_id(log)?.max(applied).max(Self::left(log)?);
        let left = left.map(|left| wire::log_id_to_wire(&left).encode_to_vec());
        // In one write. A power loss that kept only that the log is empty would leave a member that
        // votes.
        log.erase(
            &[LogMark::Committed, LogMark::Purged],
            left.as_ref().map(|left| (LogMark::Left, left.as_slice())),
        )
    }

    /// How far this node's log went when it left the group, or lost an end that was durable;
    /// `None`: it never did.
    pub(crate) fn left(log: &GroupLog) -> Result<Option<LogId>, StorageError> {
        log_id_mark(log, LogMark::Left)
    }
}

fn vote_mark(log: &GroupLog) -> Result<Option<Vote>, StorageError> {
    let Some(bytes) = log.mark(LogMark::Vote)? else { return Ok(None) };
    let corrupt = |error: prost::DecodeError| StorageError::Corruption {
        what: format!("the vote of {}", log.group()),
        detail: error.to_string(),
    };
    Ok(Some(wire::vote(log::Vote::decode(bytes).map_err(corrupt)?)))
}

fn log_id_mark(log: &GroupLog, mark: LogMark) -> Result<Option<LogId>, StorageError> {
    let Some(bytes) = log.mark(mark)? else { return Ok(None) };
    let corrupt = |error: prost::DecodeError| StorageError::Corruption {
        what: format!("mark `{mark}` of {}", log.group()),
        detail: error.to_string(),
    };
    Ok(Some(wire::log_id(log::LogId::decode(bytes).map_err(corrupt)?)))
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(vote_mark(&self.shared.log)?)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id = self.purged()?;
        Ok(LogState { last_purged_log_id, last_log_id: Self::last_log_id(&self.shared.log)? })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.shared.log.put_mark(LogMark::Vote, &wire::vote_to_wire(vote).encode_to_vec())?;
        self.sync().await?;
        // Behind the vote, so that a crash in between looks like no loss, and before another node
        // is told of it.
        let (shared, term) = (Arc::clone(&self.shared), vote.leader_id.term);
        let Some(marks) = shared.high_water.clone() else { return Ok(()) };
        Ok(off_the_runtime(move || marks.vote(shared.log.group(), term)).await??)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.shared
            .log
            .put_mark(LogMark::Committed, &wire::log_id_to_wire(&committed).encode_to_vec())?;
        // Not synced: losing it only makes a restart learn it from the leader. But it outlives this
        // process, to say of a region that was lost what it had committed.
        Ok(self.shared.log.write_out()?)
    }

    /// At most the end of the log. The mark is not synced with the entries that it speaks of, so
    /// after a power loss it may be there without them, and openraft does not start with what it
    /// cannot apply again.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let (log, last) = (&self.shared.log, Self::last_log_id(&self.shared.log)?);
        Ok(log_id_mark(log, LogMark::Committed)?.and_then(|committed| last.min(Some(committed))))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let encoded: Vec<(u64, Vec<u8>)> =
            entries.iter().map(|entry| (entry.log_id.index, wire::encode_entry(entry))).collect();
        self.shared.log.append(encoded.iter().map(|(index, bytes)| (*index, bytes.as_slice())))?;
        let last = entries.last().map(|entry| entry.log_id.index);
        let proposed = entries.iter().rev().find_map(|entry| match &entry.payload {
            EntryPayload::Normal(batch) if batch.proposed_sequence > 0 => Some(Proposed {
                term: entry.log_id.leader_id.term,
                sequence: batch.proposed_sequence,
            }),
            _ => None,
        });
        self.shared.tail.push(entries);
        if let Some(last) = last {
            self.shared.bounds.write().end = last + 1;
        }
        if let Some(proposed) = proposed {
            self.shared.appended.send_replace(proposed);
        }
        let shared = Arc::clone(&self.shared);
        let truncations = *self.shared.truncations.lock();
        self.shared.syncer.sync_then(move || {
            if let (Some(marks), Some(last)) = (&shared.high_water, last) {
                let present = shared.truncations.lock();
                if *present == truncations {
                    marks.raise(shared.log.group(), last);
                }
            }
            callback.io_completed(Ok(()));
        });
        Ok(())
    }

    /// Off the runtime: the mark is fsynced before the log is cut. openraft waits for it before it
    /// goes on.
    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let shared = Arc::clone(&self.shared);
        off_the_runtime(move || shared.truncate_after(last_log_id)).await??;
        // Before anything takes the place of what was cut. Else a power loss could undo the cut and
        // keep part of what was appended after it: a log without a hole that no leader ever had.
        self.sync().await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let mark = wire::log_id_to_wire(&log_id).encode_to_vec();
        self.shared.log.purge_through(log_id.index, Some((LogMark::Purged, &mark)))?;
        {
            let mut bounds = self.shared.bounds.write();
            let first = log_id.index + 1;
            *bounds = Bounds { first, end: bounds.end.max(first) };
        }
        self.shared.tail.purge_through(log_id.index);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
