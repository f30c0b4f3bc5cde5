//! The log of a group that is not open any more: its batches beyond the base of a later epoch are
//! read out, and those that the state has, and then it is deleted.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use meridian_proto::log;
use meridian_storage::{
    Engine, GroupId, GroupLog, HighWater, RecordKind, ShardState, StorageError, StoredBatch,
};
use openraft::EntryPayload;

use crate::group::{Sought, seek, sequence_of};
use crate::log_store::LogStore;
use crate::type_config::LogId;
use crate::{membership, wire};

/// The bytes of log entries that are held in memory at a time, about.
const READ_BYTES: usize = 2 << 20;

/// Called with one piece of a log after another, until it breaks.
pub type VisitPieces<'a> =
    &'a mut dyn FnMut(&[StoredBatch]) -> Result<ControlFlow<()>, StorageError>;

/// Calls `visit` with each batch behind `after_sequence` that the log of a stopped group has, in
/// order: its sequence, the id of its entry, its stored bytes, and whether this node knows that it
/// was committed. A batch that is not known to be committed may have been: the leader alone knows
/// before the others hear of it.
///
/// Where batches right behind `after_sequence` were purged, those visited begin later, or there are
/// none: the caller, which knows what the state has, says so.
pub fn log_batches_beyond(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    after_sequence: u64,
    visit: &mut dyn FnMut(u64, log::LogId, Bytes, bool) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let log = GroupLog::open(Arc::clone(engine), group, RecordKind::Entry)?;
    let (Some((first, _)), Some((last, _))) = (log.first()?, log.last()?) else { return Ok(()) };
    let sequence_at = |index| match log.get(index)? {
        Some(bytes) => sequence_of(group, &LogStore::decode(group, index, bytes)?),
        None => Ok(None),
    };
    let mut next = match seek(first, last, after_sequence.saturating_add(1), sequence_at)? {
        Sought::At(index) => index,
        Sought::Purged => first,
        Sought::Ahead => return Ok(()),
    };
    let committed = committed_index(engine, &log)?;
    while next <= last {
        let records = log.read(next..last + 1, READ_BYTES)?;
        let Some((read, _)) = records.last() else { return Ok(()) };
        next = read + 1;
        for (index, bytes) in records {
            let entry = LogStore::decode(group, index, bytes)?;
            let sequence =
                sequence_of(group, &entry)?.filter(|sequence| *sequence > after_sequence);
            if let (Some(sequence), EntryPayload::Normal(batch)) = (sequence, entry.payload) {
                let log_id = wire::log_id_to_wire(&entry.log_id);
                visit(
                    sequence,
                    log_id,
                    batch.bytes,
                    committed.is_some_and(|committed| index <= committed),
                )?;
            }
        }
    }
    Ok(())
}

/// Calls `visit` with the batches of a stopped group's log that this node's state has, from the newest
/// on: in pieces of about `max_bytes`, which ascend each, until it breaks.
///
/// There are none where the state is not a part of the group, or where the log does not have the
/// entry that the state ends with, and so may never have had what was committed before it.
pub fn applied_batches_back(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    max_bytes: usize,
    visit: VisitPieces<'_>,
) -> Result<(), StorageError> {
    let mut newest = ShardState::read_applied(&**engine, group.shard)?.position.sequence;
    let Some(last) = applied(engine, group)? else { return Ok(()) };
    let log = GroupLog::open(Arc::clone(engine), group, RecordKind::Entry)?;
    let Some(bytes) = log.get(last.index)? else { return Ok(()) };
    if LogStore::decode(group, last.index, bytes)?.log_id != last {
        return Ok(());
    }
    let mut end = last.index + 1;
    loop {
        let records = log.read_back(0..end, max_bytes)?;
        let Some((first, _)) = records.first() else { return Ok(()) };
        end = *first;
        let mut batches = Vec::new();
        for (index, bytes) in records {
            let entry = LogStore::decode(group, index, bytes)?;
            let sequence = sequence_of(group, &entry)?;
            if let (Some(sequence), EntryPayload::Normal(batch)) = (sequence, entry.payload) {
                batches.push(StoredBatch { sequence, bytes: batch.bytes });
            }
        }
        let Some(first) = batches.first().map(|first| first.sequence) else { continue };
        let follow = batches.iter().map(|batch| batch.sequence).eq(first..newest + 1);
        if !follow || visit(&batches)?.is_break() {
            return Ok(());
        }
        newest = first.saturating_sub(1);
    }
}

fn committed_index(engine: &Arc<dyn Engine>, log: &GroupLog) -> Result<Option<u64>, StorageError> {
    let applied = applied(engine, log.group())?.map(|log_id| log_id.index);
    Ok(applied.max(LogStore::committed_index(log)?))
}

/// The last entry of the group that this node's state has.
fn applied(engine: &Arc<dyn Engine>, group: GroupId) -> Result<Option<LogId>, StorageError> {
    let raft = ShardState::read_applied(&**engine, group.shard)?.raft;
    Ok(raft.log_id.filter(|_| raft.epoch == Some(group.epoch)).map(wire::log_id))
}

/// Whether this node has voted in the group, or has a log of it, that was not forgotten.
pub fn is_in_use(engine: &Arc<dyn Engine>, group: GroupId) -> Result<bool, StorageError> {
    LogStore::is_in_use(&GroupLog::open(Arc::clone(engine), group, RecordKind::Entry)?)
}

/// Whether this node has a log of the group, empty or not, that was not forgotten.
pub fn has_log(engine: &Arc<dyn Engine>, group: GroupId) -> Result<bool, StorageError> {
    LogStore::holds_log(&GroupLog::open(Arc::clone(engine), group, RecordKind::Entry)?)
}

/// Deletes, durably, what this node keeps of a stopped group of an earlier epoch: log, votes and
/// marks. A record stays that it never votes in that group again, since it has forgotten its votes.
///
/// May be called again, also after a crash in between.
pub fn forget_group(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    high_water: Option<&HighWater>,
) -> Result<(), StorageError> {
    membership::resign(engine, group)?;
    // The other way round, a crash in between would leave a mark that no log comes up to.
    high_water.map_or(Ok(()), |marks| marks.forget(group))?;
    erase(engine, group, LogStore::erase)
}

/// Deletes, durably, the log of a stopped group that goes on without this node, and keeps its votes
/// and how far its log went: made a member again, it begins with the leader's snapshot, and votes
/// once it holds as much. Before, its acknowledgements still count with members that know it for a
/// voter, and nothing here backs them.
///
/// May be called again, also after a crash in between.
pub fn leave_group(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    high_water: Option<&HighWater>,
) -> Result<(), StorageError> {
    let applied = applied(engine, group)?;
    high_water.map_or(Ok(()), |marks| marks.leave(group))?;
    erase(engine, group, |log| LogStore::leave(log, applied))
}

fn erase(
    engine: &Arc<dyn Engine>,
    group: GroupId,
    erase: impl FnOnce(&GroupLog) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    erase(&GroupLog::open(Arc::clone(engine), group, RecordKind::Entry)?)?;
    engine.sync()
}
